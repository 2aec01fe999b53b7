"""The machine's ceilings, measured, and the time below which no reading is believed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

LOW_PRECISION = 16.0
"""How far low precision and tricks may beat the fp32 ceiling: int8 dot products 4x (bf16 2x), Winograd convolution
2.25x, and the rest for what NumPy's matrix product leaves unused or lost to other work while it was measured."""
MATRIX_UNITS = 64.0
"""The same where the processor has matrix units (AMX, SME): 32x for int8 by their data sheets, and 2x for the rest."""
#: The same for results in integers where the machine's int8 rate was measured: no factor for that is left to guess.
_INTEGERS = 4.0
#: What of such a model stays in floats, which may be bf16.
_FLOATS = 8.0
_MATRIX_FEATURES = ("amx", "sme")
_SECONDS = 0.35
_SIZES = (256, 512, 1024)
_COPY_BYTES = 1 << 26


def ceilings(
    cores: int, clock: Callable[[], float] = time.perf_counter, integers: Sequence[float] = ()
) -> dict[str, Any]:
    """Measures what this machine's cores can do, in below a second.

    Args:
        cores: how many cores the caller may use; recorded. NumPy's own threads decide what is measured.
        clock: seconds.
        integers: int8 operations per second as a runtime read them: NumPy has no fast integer product.

    Returns:
        `flops_fp32` (per second, best of several matrix products), `bandwidth` (bytes per second, read and written, of
        a copy), `flops_int8` (the best of `integers` or None), `cores`, and `detail` with min, median, best and n.
    """
    compute, whole = _compute(clock), list(integers)
    copied = _copy(clock)
    return {
        "flops_fp32": compute["best"],
        "flops_int8": max(integers, default=None),
        "bandwidth": copied["best"],
        "cores": cores,
        "detail": {"flops_fp32": compute, "bandwidth": copied, **({"flops_int8": _summary(whole)} if whole else {})},
    }


def _compute(clock: Callable[[], float]) -> dict[str, Any]:
    rng, end, rates = np.random.default_rng(0), clock() + _SECONDS, []
    for size in _SIZES:
        a, b = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
        out = np.empty_like(a)
        np.matmul(a, b, out=out)
        rates += _rates(lambda a=a, b=b, out=out: np.matmul(a, b, out=out), 2.0 * size**3, clock, end, 5)  # type: ignore[misc]
    return _summary(rates)


def _copy(clock: Callable[[], float]) -> dict[str, Any]:
    source = np.ones(_COPY_BYTES // 4, dtype=np.float32)
    target = np.zeros_like(source)
    return _summary(_rates(lambda: np.copyto(target, source), 2.0 * _COPY_BYTES, clock, clock() + _SECONDS, 10))


def _rates(work: Callable[[], object], amount: float, clock: Callable[[], float], end: float, most: int) -> list[float]:
    """`amount` per second of each call of `work`: at most `most` of them, none begun after `end` but the first."""
    rates: list[float] = []
    while len(rates) < most and (not rates or clock() < end):
        begun = clock()
        work()
        rates.append(amount / max(clock() - begun, 1e-9))
    return rates


def _summary(rates: list[float]) -> dict[str, Any]:
    return {"min": min(rates), "median": float(np.median(rates)), "best": max(rates), "n": len(rates)}


def floor_ms(
    flops: float, ceilings: Mapping[str, Any], features: Iterable[str] = (), *, integers: bool = False
) -> float:
    """Milliseconds below which no honest measurement of `flops` operations can be on these cores.

    It is a bound, not an estimate: the fp32 ceiling times `LOW_PRECISION` (or `MATRIX_UNITS`), or for results in
    integers what the int8 ceiling allows, if that was measured. It holds for the processor only; an accelerator needs
    its own ceiling.

    Args:
        flops: of one inference, multiply and add counted apart.
        ceilings: what `ceilings` returned.
        features: the target's features; `amx_int8` and the like raise the bound.
        integers: whether the model computes in integers.
    """
    peak, rate = ceilings.get("flops_fp32"), ceilings.get("flops_int8")
    if not peak or flops <= 0:
        return 0.0
    matrix = any(feature.lower().startswith(_MATRIX_FEATURES) for feature in features)
    most = peak * (MATRIX_UNITS if matrix else LOW_PRECISION)
    if integers and rate:
        # One runtime's rate bounds the others' only as far as it uses what the processor has: not matrix units.
        most = max(rate * _INTEGERS, most if matrix else peak * _FLOATS)
    return float(flops / most * 1000)


def believable(
    ms: float, flops: float, ceilings: Mapping[str, Any], features: Iterable[str] = (), *, integers: bool = False
) -> str | None:
    """Why a reading of `ms` for `flops` operations cannot be true, or None when it can; see `floor_ms`."""
    if not ms > 0 or ms == float("inf"):
        return f"a latency of {ms} ms is not a time"
    floor = floor_ms(flops, ceilings, features, integers=integers)
    if ms >= floor:
        return None
    return f"{ms:.3g} ms is below the roofline floor of {floor:.3g} ms: this machine cannot compute that fast"
