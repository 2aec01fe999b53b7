"""Goals: hard limits (`latency_p95 < 8ms`) and objectives (`min size`), read from one line of text each.

A latency may be asked for under load: `latency_p99 < 50ms at 200 qps`. Its metric is then keyed with the load
(`measurement.at_load`), apart from the latency of one caller.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan
from typing import Literal

from portolan import units
from portolan.core.measurement import LOADED, METRICS, Measurement, Metric, at_load, load_of, said, unloaded
from portolan.errors import UnknownName, UsageError

_LIMIT = re.compile(r"\s*([A-Za-z_]\w*)\s*(<=|>=|<|>|≤|≥)\s*(\S.*?)\s*$")
_OBJECTIVE = re.compile(r"\s*(min|max)\s+([A-Za-z_]\w*)\s*$")
_LOAD = re.compile(r"(.*\S)\s+at\s+(\S.*?)\s*$")
_MOST_RATE = 1e6
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Limit:
    """A hard limit. `metric` is its key, load included; `bound` is in its own unit (ms, bytes, share of 1)."""

    metric: str
    op: Literal["<", "<=", ">", ">="]
    bound: float
    text: str

    def holds(self, measurement: Measurement | None) -> bool:
        """Whether the whole interval meets the limit. A missing or non-finite metric never does."""
        if measurement is None:
            return False
        value = measurement.worst("lower" if self.op[0] == "<" else "higher")
        if not (isfinite(value) and isfinite(measurement.value)):
            return False
        room = self.bound - value if self.op[0] == "<" else value - self.bound
        # What differs from the bound by rounding alone is at the bound, for `<` as for `<=`.
        slack = _TOLERANCE * max(1.0, abs(self.bound))
        return room >= -slack if self.op in ("<=", ">=") else room > slack

    def shortfall(self, measurement: Measurement | None) -> float:
        """How far the limit is missed, relative to its bound: 0 when met, infinite when not measured."""
        if self.holds(measurement):
            return 0.0
        worst = inf if measurement is None else measurement.worst("lower" if self.op[0] == "<" else "higher")
        # A bound of zero has no size to compare with: a thousandth stands in for it.
        if not isfinite(worst):
            return inf
        return max(abs(worst - self.bound) / (abs(self.bound) or 1e-3), _TOLERANCE)

    def reason(self, measurement: Measurement | None) -> str | None:
        """Why the limit is not met, in two words, or None when it is."""
        if self.holds(measurement):
            return None
        if measurement is None:
            return f"{said(self.metric)} not measured"
        if isnan(measurement.value):
            return f"{said(self.metric)} is not a number"
        if self.holds(Measurement(measurement.value, measurement.unit)):
            return f"{said(self.metric)} not shown"
        words = {"latency": "too slow", "throughput": "too slow", "size": "too large", "memory": "too much memory"}
        return words.get(self.metric.split("_")[0], f"{self.metric} missed")


@dataclass(frozen=True)
class Objective:
    """A metric to minimise or maximise."""

    metric: str
    direction: Literal["min", "max"]
    text: str

    def cost(self, measurement: Measurement | None) -> float:
        """The value as a number to minimise; infinite when missing or not finite, so that it never ranks first."""
        if measurement is None or not isfinite(measurement.value):
            return inf
        return measurement.value if self.direction == "min" else -measurement.value


@dataclass(frozen=True)
class Goals:
    """What a user asked for: every limit must hold; objectives rank what is left."""

    limits: tuple[Limit, ...]
    objectives: tuple[Objective, ...]

    @property
    def texts(self) -> list[str]:
        """The goals as the user wrote them, plus the defaults that were added."""
        return [limit.text for limit in self.limits] + [objective.text for objective in self.objectives]

    @property
    def metrics(self) -> list[str]:
        """Every metric that a goal names, each once."""
        named = [limit.metric for limit in self.limits] + [objective.metric for objective in self.objectives]
        return list(dict.fromkeys(named))

    @property
    def loads(self) -> list[float]:
        """The loads that goals name, in calls per second, each once, rising."""
        return sorted({rate for name in self.metrics if (rate := load_of(name)) is not None})

    @property
    def unloaded(self) -> Goals:
        """The goals that need no load: what can be asked before anything is served."""
        limits = tuple(x for x in self.limits if load_of(x.metric) is None)
        objectives = tuple(o for o in self.objectives if load_of(o.metric) is None)
        return Goals(limits, objectives or DEFAULT_OBJECTIVES)

    @property
    def lossy(self) -> bool:
        """Whether the user allowed outputs to change, by naming any quality limit."""
        return any(METRICS[unloaded(g.metric)].quality and g not in DEFAULT_LIMITS for g in self.limits)

    def unmet(self, metrics: Mapping[str, Measurement]) -> list[str]:
        """A reason for each limit that `metrics` do not meet; empty when all hold."""
        return [why for limit in self.limits if (why := limit.reason(metrics.get(limit.metric))) is not None]

    def costs(self, metrics: Mapping[str, Measurement]) -> tuple[float, ...]:
        """One number per objective, each to be minimised."""
        return tuple(o.cost(metrics.get(o.metric)) for o in self.objectives)

    def shortfall(self, metrics: Mapping[str, Measurement]) -> float:
        """How far `metrics` are from meeting every limit; 0 when all hold."""
        return sum(limit.shortfall(metrics.get(limit.metric)) for limit in self.limits)


def _limit(text: str, name: str, op: str, bound: str) -> Limit:
    metric = _metric(name, text)
    value = _bound(bound, metric)
    op = {"≤": "<=", "≥": ">="}.get(op, op)
    return Limit(name, op, value, text.strip())  # type: ignore[arg-type]


def _metric(name: str, text: str) -> Metric:
    if name not in METRICS:
        raise UnknownName("metric", name, METRICS, where=f"goal `{text.strip()}`")
    return METRICS[name]


def _bound(text: str, metric: Metric) -> float:
    return units.parse(text, metric.dimension, into="ms" if metric.unit == "ms" else None)


def parse_goal(text: str) -> Limit | Objective:
    """Reads one goal.

    Raises:
        UsageError: the text is neither `METRIC < NUMBER UNIT` nor `min METRIC`, with or without `at NUMBER qps`; or a
            unit does not fit, or the metric has nothing to do with load.
        UnknownName: no such metric.
    """
    goal, rate = _load(text)
    if match := _OBJECTIVE.match(goal):
        _metric(match[2], text)
        return Objective(_keyed(match[2], rate), match[1], text.strip())  # type: ignore[arg-type]
    if match := _LIMIT.match(goal):
        limit = _limit(text, match[1], match[2], match[3])
        return replace(limit, metric=_keyed(limit.metric, rate))
    raise UsageError(
        f"the goal `{text}` cannot be read",
        hint="write a limit such as `latency_p95 < 8ms`, or an objective such as `min size`",
    )


def _load(text: str) -> tuple[str, float | None]:
    """The goal without its load, and the load in calls per second."""
    match = _LOAD.match(text)
    if match is None:
        return text, None
    rate = units.parse(match[2], "rate")
    if not 0 < rate <= _MOST_RATE:
        raise UsageError(f"`{match[2]}` is no load to measure at", hint="write for example `at 200 qps`")
    return match[1], rate


def _keyed(name: str, rate: float | None) -> str:
    if rate is None:
        return name
    if name not in LOADED:
        listed = ", ".join(f"`{metric}`" for metric in LOADED)
        raise UsageError(
            f"`{name}` is not measured at a load", hint=f"leave the load out; {listed} can be asked for `at 200 qps`"
        )
    return at_load(name, rate)


DEFAULT_LIMITS = (_limit("max_rel_error <= 0.001", "max_rel_error", "<=", "0.001"),)
DEFAULT_OBJECTIVES = (Objective("latency_p50", "min", "min latency_p50"),)


def parse_goals(texts: Iterable[str]) -> Goals:
    """Reads all goals. Without a quality limit, outputs must stay the original's; without an objective, speed ranks:
    under the load that a limit names, if one does, else the median latency of one caller.

    Raises:
        UsageError: a goal cannot be read, one objective is asked for in both directions, or two limits exclude each
            other.
    """
    goals: dict[Hashable, Limit | Objective] = {}
    for goal in map(parse_goal, texts):
        goals.setdefault(replace(goal, text=""), goal)  # `min  size` and `min size` are one goal
    limits = tuple(g for g in goals.values() if isinstance(g, Limit))
    objectives = tuple(g for g in goals.values() if isinstance(g, Objective))
    names = [o.metric for o in objectives]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise UsageError(f"`{said(twice)}` is to be both minimised and maximised", hint="keep one of the two goals")
    for upper, lower in itertools.product(limits, limits):
        if _exclude(upper, lower):
            raise UsageError(f"`{upper.text}` and `{lower.text}` cannot both hold", hint="keep one of the two goals")
    if not any(METRICS[unloaded(g.metric)].quality for g in limits):
        limits += DEFAULT_LIMITS
    return Goals(limits, objectives or _usual(limits))


def _usual(limits: Iterable[Limit]) -> tuple[Objective, ...]:
    """What ranks where nothing was said: the first latency under load that is limited, or the unloaded median."""
    name = next((limit.metric for limit in limits if load_of(limit.metric) is not None), None)
    return DEFAULT_OBJECTIVES if name is None else (Objective(name, "min", f"min {said(name)}"),)


def _exclude(upper: Limit, lower: Limit) -> bool:
    """Whether no value is below the one and above the other."""
    if upper.metric != lower.metric or upper.op[0] != "<" or lower.op[0] != ">":
        return False
    return upper.bound < lower.bound or (upper.bound == lower.bound and (upper.op, lower.op) != ("<=", ">="))
