"""What a number is: its value, unit, interval, sample count, and whether it was measured, estimated or predicted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from portolan import units

Kind = Literal["measured", "estimated", "predicted"]
MARKS: Mapping[str, str] = {"measured": "", "estimated": "~", "predicted": "≈"}
#: The verdict on two things that the measurements do not tell apart.
SAME: Final = "no significant difference"


@dataclass(frozen=True)
class Metric:
    """A kind of number: its unit, the dimension its limits are written in, and which direction is better."""

    name: str
    unit: str
    dimension: str
    better: Literal["lower", "higher"]
    quality: bool = False
    about: str = ""


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("latency_p50", "ms", "time", "lower", about="median time of one inference, one caller"),
        Metric("latency_p95", "ms", "time", "lower", about="95th percentile of the time of one inference"),
        Metric("latency_p99", "ms", "time", "lower", about="99th percentile; needs 459 readings"),
        Metric("throughput", "1/s", "rate", "higher", about="inferences per second under concurrent callers"),
        Metric("size", "B", "bytes", "lower", about="bytes on disk of what is shipped"),
        Metric("resident", "B", "bytes", "lower", about="bytes of the model once unpacked, as a runtime is given it"),
        Metric("memory", "B", "bytes", "lower", about="peak resident bytes of the worker"),
        Metric("cold_start", "ms", "time", "lower", about="process start to first output"),
        Metric("compile_time", "ms", "time", "lower", about="time of the backend's compile step"),
        Metric("accuracy", "share", "share", "higher", True, "share right (or the user's metric) on held-out labels"),
        Metric("accuracy_drop", "share", "share", "lower", True, "accuracy of the original minus this one's"),
        Metric("agreement", "share", "share", "higher", True, "share of samples with the original's top answer"),
        Metric("cosine", "", "share", "higher", True, "mean cosine of outputs with the original's"),
        Metric("max_abs_error", "", "share", "lower", True, "largest absolute difference from the original"),
        Metric("max_rel_error", "", "share", "lower", True, "largest difference over the original's RMS"),
        Metric(
            "cost",
            "USD",
            "money",
            "lower",
            about="USD per million inferences, served; needs `--price`",
        ),
        Metric("energy", "J", "energy", "lower", about="joules per inference"),
        Metric("carbon", "gCO2e", "carbon", "lower", about="grams of CO2e per thousand inferences"),
    )
}


@dataclass(frozen=True)
class Measurement:
    """One number. `lo`, `hi` (95 % interval) and `n` are None where they have no meaning; shares are 0 to 1."""

    value: float
    unit: str
    lo: float | None = None
    hi: float | None = None
    n: int | None = None
    kind: Kind = "measured"

    @classmethod
    def of(
        cls, metric: str, value: float, lo: float | None = None, hi: float | None = None, n: int | None = None
    ) -> Measurement:
        """A measured value of a named metric, in that metric's unit."""
        return cls(float(value), METRICS[metric].unit, lo, hi, n)

    def to_json(self) -> dict[str, Any]:
        """The metric object of the contract."""
        return asdict(self)

    def worst(self, better: Literal["lower", "higher"]) -> float:
        """The end of the interval that is bad news, or the value where there is no interval."""
        end = self.hi if better == "lower" else self.lo
        return self.value if end is None else end

    def overlaps(self, other: Measurement) -> bool:
        """Whether the intervals have a value in common; without one, the value stands for it."""
        return self.worst("higher") <= other.worst("lower") and other.worst("higher") <= self.worst("lower")

    @property
    def short(self) -> str:
        """The number with its unit and interval, without n.

        `7.81 ms ±0.06`, where ± is half of the interval; `0.0% (0.0 to 0.6)` where the value is far from its middle.
        """
        write, unit = self._writer()
        text = MARKS[self.kind] + units.with_unit(write(self.value), "" if math.isnan(self.value) else unit)
        half = self._half
        if half is None or half <= 0 or not math.isfinite(half + self.value):
            return text
        if self._lopsided:
            return f"{text} ({' to '.join(self._ends())})"
        factor = units.scale_of(self._size, self.unit)[0]
        return f"{text} ±{units.digits(half * factor, half * factor)}"

    @property
    def interval(self) -> str:
        """The ends of the interval, `5.8 to 6.1 ms`; empty where there is none."""
        if self._half is None or not math.isfinite(self._half + self.value):
            return ""
        return units.with_unit(" to ".join(self._ends()), self._writer()[1])

    def __str__(self) -> str:
        return self.short if self.n is None else f"{self.short} (n={self.n:,})"

    @property
    def _half(self) -> float | None:
        return None if self.lo is None or self.hi is None else (self.hi - self.lo) / 2

    @property
    def _lopsided(self) -> bool:
        """Whether one arm of the interval is more than twice the other, so that ± would say something else."""
        if self.lo is None or self.hi is None:
            return False
        below, above = self.value - self.lo, self.hi - self.value
        return 2 * min(below, above) < max(below, above) * (1 - 1e-9)

    @property
    def _size(self) -> float:
        return max((abs(v) for v in (self.value, self.lo, self.hi) if v is not None and math.isfinite(v)), default=0.0)

    def _writer(self) -> tuple[Callable[[float], str], str]:
        """What writes the value and the ends of its interval, all with the same unit and noise."""
        factor, unit = units.scale_of(self._size, self.unit)
        noise = self._half * factor if self._half else units.least(unit)
        full = factor if self.unit in ("", "share") else None
        return lambda value: units.digits(value * factor, noise, full), unit

    def _ends(self) -> list[str]:
        write = self._writer()[0]
        return [write(end) for end in (self.lo, self.hi) if end is not None]


def mark(*measurements: Measurement) -> str:
    """The mark of a number that follows from several: predicted if one is, else estimated if one is."""
    kinds = {m.kind for m in measurements}
    return MARKS["predicted" if "predicted" in kinds else "estimated" if "estimated" in kinds else "measured"]


Metrics = dict[str, Measurement]

# --- under load

#: Metrics that depend on how many calls arrive, so that a goal may name a load for them.
LOADED: Final = ("latency_p50", "latency_p95", "latency_p99")


def at_load(metric: str, rate: float) -> str:
    """The key of a metric under an open-loop load of `rate` calls per second: `latency_p99@200qps`."""
    return f"{metric}@{rate:.10g}qps"


def unloaded(name: str) -> str:
    """The metric that a key names, without its load: its entry in METRICS."""
    return name.partition("@")[0]


def load_of(name: str) -> float | None:
    """Calls per second of a key that `at_load` made; None for a metric without load, and for what is no such key."""
    metric, at, rate = name.partition("@")
    if not at or metric not in LOADED or not rate.endswith("qps"):
        return None
    try:
        found = float(rate.removesuffix("qps"))
    except ValueError:
        return None
    return found if at_load(metric, found) == name and 0 < found < math.inf else None


def said(name: str) -> str:
    """A key as people write it: `latency_p99 at 200 qps`."""
    rate = load_of(name)
    return name if rate is None else f"{unloaded(name)} at {rate:.10g} qps"
