"""What a race found: every reading, and the intervals and verdicts that follow from them and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from portolan.core.measurement import SAME, Measurement
from portolan.errors import UnknownName
from portolan.measure.stats import (
    Floats,
    Interval,
    p_value,
    percentile_bound,
    percentile_intervals,
    ratio_interval,
    readings_needed,
)

Verdict = Literal["faster", "slower", "no significant difference"]
UNDECIDED: Verdict = SAME

MIN_STARTS = 5
"""No claim from fewer process starts: small models have two speeds, fixed when they are loaded."""
INDIFFERENT = 0.02
"""A difference whose whole interval lies inside ±2 % is not called one."""
ALPHA = 0.05
_ALARM = 0.99


@dataclass(frozen=True)
class Samples:
    """All readings of one arm.

    Attributes:
        blocks: per process start, per block, the milliseconds of each inference.
        warm_up: per process start, the block medians of the warm-up; they count for nothing else.
    """

    blocks: list[list[Floats]] = field(default_factory=list)
    warm_up: list[list[float]] = field(default_factory=list)

    @property
    def readings(self) -> int:
        """Inferences timed."""
        return sum(len(block) for start in self.blocks for block in start)

    @cached_property
    def medians(self) -> Floats:
        """Block medians in ms, [starts, blocks]."""
        return np.array([[float(np.median(block)) for block in start] for start in self.blocks])

    def metrics(self) -> dict[str, Measurement]:
        """`latency_p50`, and as far as there are readings for them `latency_p95` (20) and `latency_p99` (459).

        The upper end of p99 is its 99 % bound by order statistics where the bootstrap's is lower.
        """
        n = self.readings
        wanted = [p for p in (0.5, 0.95, 0.99) if n >= readings_needed(p)]
        found = percentile_intervals(self.blocks, wanted)
        return {
            f"latency_p{round(p * 100)}": self._measurement(p, value, n) for p, value in zip(wanted, found, strict=True)
        }

    def _measurement(self, p: float, found: Interval, n: int) -> Measurement:
        bound = None
        if p > 0.5:
            flat = np.concatenate([block for start in self.blocks for block in start])
            bound = percentile_bound(flat, p, 0.99 if p >= 0.99 else 0.95)
        hi = found.hi if bound is None else max(found.hi, bound)
        return Measurement.of(f"latency_p{round(p * 100)}", found.value, found.lo, hi, n)

    def to_json(self) -> dict[str, Any]:
        """The readings as plain lists."""
        blocks = [[[float(ms) for ms in block] for block in start] for start in self.blocks]
        return {"blocks": blocks, "warm_up": self.warm_up}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Samples:
        """Reads what `to_json` wrote."""
        blocks = [[np.array(block, dtype=np.float64) for block in start] for start in data["blocks"]]
        return cls(blocks, [list(start) for start in data["warm_up"]])


@dataclass(frozen=True)
class Ratio:
    """Time of `a` over time of `b`: below 1, `a` is faster. `conf` is corrected for looks and claims."""

    a: str
    b: str
    metric: str
    ratio: float
    lo: float
    hi: float
    verdict: Verdict
    conf: float
    starts: int

    def to_json(self) -> dict[str, Any]:
        """The ratio object of the contract."""
        return asdict(self)


@dataclass(frozen=True)
class Noise:
    """The baseline against itself: ratio and 95 % interval, None without an A/A arm.

    `ok` is False when even the 99 % interval excludes 1, or when nobody looked: then no claim is made.
    """

    aa_ratio: float | None
    lo: float | None
    hi: float | None
    ok: bool

    def to_json(self) -> dict[str, Any]:
        """The noise object of the contract."""
        return asdict(self)


@dataclass(frozen=True)
class Race:
    """A race's readings and what they say.

    Attributes:
        baseline: name of the arm that all are compared with.
        arms: readings of every arm that did not fail, the baseline included.
        again: readings of the baseline's second set of processes (the A/A arm); None without.
        failures: why an arm was dropped.
        eliminated: after how many starts an arm was clearly beaten and left the race.
        order: per start, per block, the order in which the arms ran.
        looks: looks at the data that were planned; each may be wrong with probability 5 % / looks.
        stopped: why it ended: `decided`, `starts`, `deadline` or `no candidates`.
        environment: conditions, see `measure.environment`.
    """

    baseline: str
    arms: dict[str, Samples]
    again: Samples | None
    failures: dict[str, str] = field(default_factory=dict)
    eliminated: dict[str, int] = field(default_factory=dict)
    order: list[list[list[str]]] = field(default_factory=list)
    looks: int = 1
    stopped: str = "starts"
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def starts(self) -> int:
        """Process starts of the baseline."""
        return len(self.arms[self.baseline].blocks)

    def log_ratios(self, a: str, b: str) -> Floats:
        """log(median of a / median of b) per start and block, over the starts that both took part in."""
        left, right = self._arm(a).medians, self._arm(b).medians
        both = min(len(left), len(right))
        return np.asarray(np.log(left[:both]) - np.log(right[:both]))

    def log_ratios_again(self) -> Floats:
        """The same for the baseline's second processes against its first ones; empty without an A/A arm."""
        first, second = self.arms[self.baseline].medians, None if self.again is None else self.again.medians
        return np.empty((0, 0)) if second is None else np.asarray(np.log(second) - np.log(first))

    @cached_property
    def noise(self) -> Noise:
        """The noise floor, from the A/A arm."""
        if self.again is None:
            return Noise(None, None, None, False)
        d = self.log_ratios_again()
        floor, alarm = ratio_interval(d), ratio_interval(d, _ALARM)
        return Noise(floor.value, floor.lo, floor.hi, alarm.lo <= 1 <= alarm.hi)

    def ratio(self, a: str, b: str) -> Ratio:
        """Arm `a` against arm `b`, as one of all claims made against `b`.

        Raises:
            UnknownName: no such arm, or it failed.
        """
        self._arm(a)
        return next(r for r in self.ratios(b) if r.a == a) if a != b else self._self_ratio(a)

    def ratios(self, reference: str | None = None) -> list[Ratio]:
        """Every other arm against `reference` (the baseline), in the arms' order, by Holm's procedure.

        The strongest claim has to hold at 5 % / looks / claims, the next at one claim less, and so on; after the first
        that does not hold the level stays.

        Raises:
            UnknownName: no such arm, or it failed.
        """
        b = self.baseline if reference is None else reference
        self._arm(b)
        logs = {a: self.log_ratios(a, b) for a in self.arms if a != b}
        found: dict[str, Ratio] = {}
        left, holding = len(logs), True
        for a in sorted(logs, key=lambda name: p_value(logs[name])):
            conf = 1 - ALPHA / self.looks / left
            interval = ratio_interval(logs[a], conf)
            holding = holding and not interval.lo <= 1 <= interval.hi
            verdict = self._verdict(interval, len(logs[a])) if holding else UNDECIDED
            found[a] = Ratio(a, b, "latency_p50", interval.value, interval.lo, interval.hi, verdict, conf, len(logs[a]))
            left -= holding
        return [found[a] for a in logs]

    def _self_ratio(self, a: str) -> Ratio:
        return Ratio(a, a, "latency_p50", 1.0, 1.0, 1.0, UNDECIDED, 1 - ALPHA, self.starts)

    def _verdict(self, interval: Interval, starts: int) -> Verdict:
        noise = self.noise
        if not noise.ok or noise.lo is None or noise.hi is None or starts < MIN_STARTS:
            return UNDECIDED
        inside_noise = noise.lo <= interval.value <= noise.hi
        if interval.lo <= 1 <= interval.hi or inside_noise or indifferent(interval):
            return UNDECIDED
        return "faster" if interval.hi < 1 else "slower"

    def _arm(self, name: str) -> Samples:
        if name not in self.arms:
            raise UnknownName("arm", name, self.arms)
        return self.arms[name]

    def to_json(self) -> dict[str, Any]:
        """Everything: the verdicts as the contract names them, and the readings they can be recomputed from."""
        return {
            "baseline": self.baseline,
            "arms": [
                {"name": name, "metrics": {k: m.to_json() for k, m in samples.metrics().items()}, **samples.to_json()}
                for name, samples in self.arms.items()
            ],
            "again": None if self.again is None else self.again.to_json(),
            "ratios": [ratio.to_json() for ratio in self.ratios()],
            "noise": self.noise.to_json(),
            "failures": dict(self.failures),
            "eliminated": dict(self.eliminated),
            "order": self.order,
            "looks": self.looks,
            "stopped": self.stopped,
            "environment": dict(self.environment),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Race:
        """Reads what `to_json` wrote; metrics, ratios and noise are computed again from the readings."""
        kept: Sequence[str] = ("baseline", "failures", "eliminated", "order", "looks", "stopped", "environment")
        arms = {arm["name"]: Samples.from_json(arm) for arm in data["arms"]}
        again = None if data["again"] is None else Samples.from_json(data["again"])
        return cls(arms=arms, again=again, **{key: data[key] for key in kept})


def indifferent(interval: Interval) -> bool:
    """Whether the whole interval lies inside ±2 %."""
    return interval.lo >= 1 / (1 + INDIFFERENT) and interval.hi <= 1 + INDIFFERENT
