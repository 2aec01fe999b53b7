"""SmoothQuant (Xiao et al., 2211.10438): large channels of an activation become smaller, and the weights that they meet
larger by as much. The product stays what it was, and the activation's 256 steps serve all of its channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from portolan.passes import _ranges
from portolan.passes._observe import Seen

if TYPE_CHECKING:
    import numpy as np

_ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
#: What a migration must leave of the error at most, where it costs nothing and where it costs a multiplication.
_FREE, _PAID = 0.98, 0.7


def migration(seen: Seen, weights: Sequence[np.ndarray], alpha: float) -> np.ndarray:
    """By what each channel of the activation is divided: `max|X|**alpha / max|W|**(1 - alpha)`, float32 [channels].

    Args:
        seen: the activation.
        weights: those that it is multiplied with, [channels, outputs] each.
        alpha: how much of the difficulty goes to the weights, 0 to 1.
    """
    import numpy as np

    rows = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0).astype("f8")
    peaks = seen.peaks.astype("f8")
    alive = (rows > 0) & (peaks > 0)
    if not alive.any():
        return np.ones(len(peaks), "f4")
    found = np.ones(len(peaks))
    found[alive] = peaks[alive] ** alpha / rows[alive] ** (1 - alpha)
    found[alive] /= np.exp(np.log(found[alive]).mean())  # around one, so that nothing leaves float's range
    return np.clip(found, 1e-4, 1e4).astype("f4")


def smoothed(seen: Seen, scale: np.ndarray) -> Seen:
    """The activation after the migration."""
    rows, lows, highs = seen.rows / scale, seen.lows / scale, seen.highs / scale
    return replace(seen, rows=rows, lows=lows, highs=highs)


def choose(seen: Seen, weights: Sequence[np.ndarray], alpha: float | None, *, free: bool) -> np.ndarray | None:
    """The migration with the least estimated error of the products; None where none is worth it.

    Args:
        seen: the activation.
        weights: those that it is multiplied with, [channels, outputs] each.
        alpha: the only one to take; 0 for none; None to choose.
        free: whether it folds into the operator in front, so that it costs nothing at run time.
    """
    if alpha == 0 or seen.rows.shape[1] != len(weights[0]):
        return None
    if alpha is not None:
        return migration(seen, weights, alpha)
    least = _damage(seen, weights) * (_FREE if free else _PAID)
    best = None
    for candidate in _ALPHAS:
        scale = migration(seen, weights, candidate)
        found = _damage(smoothed(seen, scale), [weight * scale[:, None] for weight in weights])
        if found < least:
            best, least = scale, found
    return best


def _damage(seen: Seen, weights: Sequence[np.ndarray]) -> float:
    """The squared error that 8 bits put into the products: of the activation over its whole range, of the weights."""
    import numpy as np

    care = np.sum([np.square(weight, dtype="f8").sum(axis=1) for weight in weights], axis=0).astype("f4")
    lo, hi = min(seen.lo, 0.0), max(seen.hi, 0.0)
    rows = seen.rows[: max(1, 2**17 // seen.rows.shape[1])]
    activation = _ranges.error(rows, lo, hi, care) * len(care)
    # A rounding error is even over one step.
    steps = sum(float(np.square(np.abs(weight).max(axis=0) / 127, dtype="f8").sum()) for weight in weights)
    return activation + steps / 12 * seen.power * len(care)
