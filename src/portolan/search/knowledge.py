"""What a search knows so far: readings, failures, and judgements of quality, which recipes of equal numerics share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from portolan.core.goal import Goals, Limit, Objective
from portolan.core.measurement import METRICS, Measurement, Metrics
from portolan.core.recipe import Step
from portolan.search import pareto
from portolan.search.space import Candidate

#: Relative half-width assumed for a reading without an interval, by level.
SLACK = (0.08, 0.03)


@dataclass
class _Quality:
    level: int
    metrics: Metrics


class Knowledge:
    """Readings by place of a candidate in the space. Told in any order, and as often as one likes."""

    def __init__(self, candidates: Sequence[Candidate], goals: Goals) -> None:
        self.candidates = list(candidates)
        self.goals = goals
        self.places = {c.key: i for i, c in enumerate(self.candidates)}
        self.numerics = [c.numerics for c in self.candidates]
        self.levels: dict[int, int] = {}
        self.failures: dict[int, str] = {}
        self.seconds: dict[tuple[int, int], float] = {}
        #: Places in the order in which they were first told.
        self.order: list[int] = []
        #: Why a chain of passes cannot be built, by its steps.
        self._dead: list[tuple[tuple[Step, ...], str]] = []
        self._own: dict[int, Metrics] = {}
        self._quality: dict[str, _Quality] = {}

    def tell(self, place: int, level: int, metrics: Metrics | None, seconds: float, failure: str | None) -> None:
        """Adds one result. A failure at any level counts against the candidate for good."""
        if place not in self.levels and place not in self.failures:
            self.order.append(place)
        self.seconds[place, level] = seconds
        if failure is not None or metrics is None:
            self.failures[place] = failure or "no result"
            return
        judged = {n: m for n, m in metrics.items() if n in METRICS and METRICS[n].quality}
        known = self._quality.get(self.numerics[place])
        if judged and (known is None or level >= known.level):
            self._quality[self.numerics[place]] = _Quality(level, judged)
        rest = {n: m for n, m in metrics.items() if n not in judged}
        if level >= self.levels.get(place, 0):
            self._own[place] = {**self._own.get(place, {}), **rest}
            self.levels[place] = level

    def rule_out(self, steps: Sequence[Step], reason: str) -> None:
        """Adds that these passes cannot be applied, nor any chain that starts with them."""
        self._dead.append((tuple(steps), reason))

    @property
    def tried(self) -> set[int]:
        """Places with a result, good or bad."""
        return set(self.order)

    def metrics(self, place: int) -> Metrics:
        """All that is known of a candidate, its numerics' quality included; empty when nothing is."""
        quality = self._quality.get(self.numerics[place])
        return {**(quality.metrics if quality else {}), **self._own.get(place, {})}

    def measured(self) -> list[int]:
        """Places with readings of their own and no failure, in the order they came."""
        return [i for i in self.order if i in self._own and i not in self.failures]

    def feasible(self) -> list[int]:
        """Measured places that meet every limit and have every objective."""
        return [i for i in self.measured() if not self.goals.unmet(m := self.metrics(i)) and self._complete(m)]

    def _complete(self, metrics: Metrics) -> bool:
        return all(map(math.isfinite, self.goals.costs(metrics)))

    def needs_judging(self, place: int, level: int) -> bool:
        """Whether the quality of this candidate's outputs has to be judged in a trial at `level`."""
        known = self._quality.get(self.numerics[place])
        if known is None:
            return True
        return level > known.level and any(not x.holds(known.metrics.get(x.metric)) for x in self._quality_limits())

    def hopeless(self, place: int) -> str | None:
        """Why no more time is spent on a candidate: its passes failed, or its numerics are known to miss a limit."""
        steps = self.candidates[place].recipe.passes
        for dead, reason in self._dead:
            if steps[: len(dead)] == dead:
                return f"{' + '.join(map(str, dead))}: {reason}"
        known = self._quality.get(self.numerics[place])
        if known is None:
            return None
        for limit in self._quality_limits():
            m = known.metrics.get(limit.metric)
            if m is not None and not holds_at_best(limit, replace(m, lo=None, hi=None)):
                return f"{limit.metric} is {m.value:.4g} with the same arithmetic, and the goal is {limit.text}"
        return None

    def quality_known(self, place: int) -> bool | None:
        """Whether a candidate's numerics meet the quality limits; None when not judged, or judged and not shown."""
        known = self._quality.get(self.numerics[place])
        if known is None:
            return None
        if self.hopeless(place):
            return False
        return True if all(x.holds(known.metrics.get(x.metric)) for x in self._quality_limits()) else None

    def _quality_limits(self) -> list[Limit]:
        return [x for x in self.goals.limits if METRICS[x.metric].quality]

    def still_possible(self, place: int) -> bool:
        """Whether better readings may yet show that a measured candidate meets every limit."""
        if self.hopeless(place) or place in self.failures:
            return False
        metrics, slack = self.metrics(place), self.slack(place)
        return all(
            (m := metrics.get(x.metric)) is None or METRICS[x.metric].quality or holds_at_best(x, m, slack)
            for x in self.goals.limits
        )

    def slack(self, place: int) -> float:
        """Relative half-width to assume for this candidate's readings where they have no interval."""
        return SLACK[min(self.levels.get(place, 0), len(SLACK) - 1)]

    def box(self, place: int, goals: Goals | None = None) -> pareto.Box:
        """A measured candidate's costs with intervals."""
        return pareto.box(goals or self.goals, self.metrics(place), self.slack(place))


def holds_at_best(limit: Limit, m: Measurement, slack: float = 0.0) -> bool:
    """Whether the good end of a measurement's interval meets a limit."""
    lower = limit.op[0] == "<"
    end = m.lo if lower else m.hi
    value = m.value + (-slack if lower else slack) * abs(m.value) if end is None else end
    return limit.holds(Measurement(value, m.unit))


def coordinate(objective: Objective, value: float) -> float:
    """A cost to minimise: logarithmic, so that gains are relative, except for quality, which can be 0 or negative."""
    sign = 1.0 if objective.direction == "min" else -1.0
    if METRICS[objective.metric].quality:
        return sign * value
    return sign * math.log(max(value, 1e-12))
