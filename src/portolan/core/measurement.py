"""What a number is: its value, unit, interval, sample count, and whether it was measured, estimated or predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from portolan import units

Kind = Literal["measured", "estimated", "predicted"]
MARKS: Mapping[str, str] = {"measured": "", "estimated": "~", "predicted": "≈"}


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
        Metric("memory", "B", "bytes", "lower", about="peak resident bytes of the worker"),
        Metric("cold_start", "ms", "time", "lower", about="process start to first output"),
        Metric("compile_time", "ms", "time", "lower", about="time of the backend's compile step"),
        Metric("accuracy", "share", "share", "higher", True, "share right (or the user's metric) on held-out labels"),
        Metric("accuracy_drop", "share", "share", "lower", True, "accuracy of the original minus this one's"),
        Metric("agreement", "share", "share", "higher", True, "share of samples with the original's top answer"),
        Metric("cosine", "", "share", "higher", True, "mean cosine of outputs with the original's"),
        Metric("max_abs_error", "", "share", "lower", True, "largest absolute difference from the original"),
        Metric("max_rel_error", "", "share", "lower", True, "largest difference over the original's RMS"),
        Metric("cost", "USD", "money", "lower", about="USD per million inferences"),
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

    def __str__(self) -> str:
        ends = [abs(v) for v in (self.value, self.lo, self.hi) if v is not None]
        factor, unit = units.scale_of(max(ends), self.unit)
        value = self.value * factor
        text = MARKS[self.kind]
        if self.lo is not None and self.hi is not None:
            half = (self.hi - self.lo) / 2 * factor
            text += f"{units.digits(value, half)}{_space(unit)}"
            text += f" ±{units.digits(half, half)}" if half > 0 else ""
        else:
            text += f"{units.digits(value, None)}{_space(unit)}"
        return text if self.n is None else f"{text} (n={self.n:,})"


def _space(unit: str) -> str:
    return unit if unit == "%" else f" {unit}" if unit else ""


Metrics = dict[str, Measurement]
