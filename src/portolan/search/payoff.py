"""Payoff: what each produced feature was measured to bring on this machine, per backend and kind of operator.

Rules and tables say what a backend could exploit. Whether it does, here, is a measurement (`portolan doctor --bench`):
dynamic int8 makes products twice as fast and convolutions six times slower in the same runtime on the same processor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: Kinds of operators whose payoffs differ, and the operators of each.
KINDS: Mapping[str, frozenset[str]] = {
    "products": frozenset({"Gemm", "MatMul"}),
    "convolutions": frozenset({"Conv", "ConvTranspose"}),
}
#: Times as fast that the upper end of the interval must reach for a feature to be worth trying.
_LEAST = 1.02


@dataclass(frozen=True)
class Payoff:
    """How many times as fast a layer became on a backend, against the untouched layer on the same backend.

    Attributes:
        passes: what was applied.
        features: what it produced.
        operators: a key of KINDS.
        backend: where both ran, with its defaults.
        ratio: time before over time after, with the interval `lo` to `hi`.
        reason: why there is no ratio: it failed to build or to run.
    """

    passes: str
    features: tuple[str, ...]
    operators: str
    backend: str
    ratio: float | None
    lo: float | None = None
    hi: float | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "features": list(self.features)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Payoff:
        """Reads what `to_json` wrote."""
        return cls(**{**data, "features": tuple(data["features"])})


def wasted(payoffs: Sequence[Payoff], backend: str, features: Sequence[str], operators: Iterable[str]) -> str | None:
    """Why a model with these operators would not gain from these features on this backend; None if it may.

    A feature is wasted when every kind of operator in the model that it was measured on became no faster, whatever
    the options. What was not measured may pay.
    """
    present = {kind for kind, names in KINDS.items() if names & set(operators)}
    for feature in features:
        rows = [p for p in payoffs if p.backend == backend and p.features == (feature,) and p.operators in present]
        best = {kind: max((p for p in rows if p.operators == kind), key=_upper, default=None) for kind in present}
        known = [p for p in best.values() if p is not None]
        if known and len(known) == len(present) and all(_upper(p) < _LEAST for p in known):
            said = " and ".join(f"{p.operators} {_speed(p)}" for p in sorted(known, key=lambda p: p.operators))
            return f"{feature} does not pay on `{backend}` here: {said}, as `portolan doctor --bench` measured"
    return None


def _upper(payoff: Payoff) -> float:
    return payoff.hi if payoff.hi is not None else payoff.ratio if payoff.ratio is not None else 0.0


def _speed(payoff: Payoff) -> str:
    return "do not run" if payoff.ratio is None else f"run {payoff.ratio:.2f}x as fast"
