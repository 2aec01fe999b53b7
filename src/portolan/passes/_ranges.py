"""Which range of an activation its 256 steps cover: the four calibrators.

Every range holds zero, which padding and rectified values need exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

    from portolan.passes._observe import Seen

Calibrator = Literal["mse", "minmax", "percentile", "entropy"]
Range = tuple[float, float]
LEVELS = 255
#: The share of values inside the range that `percentile` chooses, in percent.
PERCENTILE = 99.99
_BINS = 2048
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.42, 0.35, 0.29, 0.24, 0.2, 0.16, 0.13, 0.1, 0.08, 0.06)
_FINER = (1.05, 1.0, 0.95)
_MOST = 2**16


def choose(seen: Seen, calibrator: Calibrator, care: np.ndarray | None = None) -> Range:
    """The range of one activation.

    Args:
        seen: what it was.
        calibrator: `minmax`: all of it. `percentile`: without the outermost 0.01 % of values. `entropy`: the range
            whose quantized histogram is least apart from the true one (Kullback-Leibler, as in TensorRT). `mse`: the
            range with the least squared error.
        care: for `mse`, how much an error in each channel weighs, [channels]; alike without.
    """
    import numpy as np

    lo, hi = min(seen.lo, 0.0), max(seen.hi, 0.0)
    if lo == hi or calibrator == "minmax":
        return lo, hi
    if calibrator == "percentile":
        tail = (100 - PERCENTILE) / 2
        ends: np.ndarray = np.percentile(seen.rows, [tail, 100 - tail])
        low, high = float(ends[0]), float(ends[1])
        cut = min(low, 0.0), max(high, 0.0)
        return cut if cut[1] > cut[0] else (lo, hi)
    if calibrator == "entropy":
        return _entropy(seen.rows.ravel(), lo, hi)
    return _least_squares(seen.rows, lo, hi, care)


def error(rows: np.ndarray, lo: float, hi: float, care: np.ndarray | float = 1.0) -> float:
    """The mean squared error of 8-bit steps from `lo` to `hi`, channels weighted with `care`."""
    import numpy as np

    scale, zero = steps(lo, hi)
    index = np.clip(np.round(rows / np.float32(scale)) + zero, 0, LEVELS)
    return float(np.mean(np.square((index - zero) * np.float32(scale) - rows) * care))


def steps(lo: float, hi: float, levels: int = LEVELS) -> tuple[float, int]:
    """Scale and zero point of unsigned steps over a range that holds zero; of the empty range, ones."""
    import numpy as np

    if not hi > lo:
        return 1.0, 0
    scale = float(np.float32(max((hi - lo) / levels, float(np.finfo("f4").tiny))))
    return scale, int(np.clip(np.round(-lo / scale), 0, levels))


def _least_squares(rows: np.ndarray, lo: float, hi: float, care: np.ndarray | None) -> Range:
    """One end after the other from the whole range inwards, then both finer around what was best."""
    import numpy as np

    weights = np.broadcast_to(np.float32(1) if care is None else care.astype("f4"), rows.shape)
    if rows.size > _MOST:
        chosen = np.random.default_rng(0).choice(rows.size, _MOST, replace=False)
        values, weights = rows.ravel()[chosen], weights.ravel()[chosen]
    else:
        values = rows
    best, least = (lo, hi), error(values, lo, hi, weights)
    for shares in (_SHARES, _FINER):
        begin = best
        for share in shares:  # both ends alike
            best, least = _better(values, weights, (begin[0] * share, begin[1] * share), best, least)
        for end in (0, 1):
            begin = best
            for share in shares:
                trial = (begin[0] * share, begin[1]) if end == 0 else (begin[0], begin[1] * share)
                best, least = _better(values, weights, trial, best, least)
    return best


def _better(values: np.ndarray, weights: np.ndarray, trial: Range, best: Range, least: float) -> tuple[Range, float]:
    if trial == best:
        return best, least
    found = error(values, *trial, weights)
    return (trial, found) if found < least else (best, least)


def _entropy(values: np.ndarray, lo: float, hi: float) -> Range:
    import numpy as np

    largest = max(-lo, hi)
    best, least = (lo, hi), float("inf")
    for share in _SHARES:
        low, high = max(lo, -largest * share), min(hi, largest * share)
        counts, _ = np.histogram(np.clip(values, low, high), _BINS, (low, high))
        # What was cut off sits in the edge bins of the true histogram but not of the one that is quantized.
        inside, _ = np.histogram(values[(values >= low) & (values <= high)], _BINS, (low, high))
        found = _divergence(counts.astype("f8"), inside.astype("f8"))
        if found < least:
            best, least = (low, high), found
    return best


def _divergence(right: np.ndarray, inside: np.ndarray) -> float:
    """Kullback-Leibler divergence of `right` from `inside` merged into 256 steps and spread over its filled bins."""
    import numpy as np

    group = _BINS // (LEVELS + 1)
    filled = (inside > 0).reshape(-1, group)
    sums = inside.reshape(-1, group).sum(axis=1, keepdims=True)
    spread = np.where(filled, sums / np.maximum(filled.sum(axis=1, keepdims=True), 1), 0).ravel()
    if not spread.sum():
        return float("inf")
    p, q = right / right.sum(), spread / spread.sum()
    return float(np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-12) / np.maximum(q, 1e-12)), 0)))
