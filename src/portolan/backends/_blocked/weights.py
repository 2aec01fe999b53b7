"""Weights of convolutions: out of the runtime's order, and transformed for tiles of results."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def unblocked(weights: np.ndarray, size: int) -> np.ndarray:
    """[k, c, 3, 3], of weights that lie as [k / size, c / size, 3, 3, size, size], channels that are read first."""
    k, c = weights.shape[:2]
    blocks = weights.reshape(k // size, c // size, 3, 3, size, size)
    return blocks.transpose(0, 5, 1, 4, 2, 3).reshape(k, c, 3, 3)


@lru_cache(maxsize=4)
def _filters(side: int) -> np.ndarray:
    """[side, 3]: what weights are multiplied by along one axis; the points are those of winograd.c."""
    import numpy as np

    a = 0.5**0.5
    points = [0.0, a, -a, 2 * a, -2 * a] if side == 6 else [0.0, 1.0, -1.0]
    rows = [[x**power / np.prod([x - other for other in points if other != x]) for power in range(3)] for x in points]
    return np.asarray([*rows, [0.0, 0.0, 1.0]])


def transformed(weights: np.ndarray, points: int, columns: int) -> np.ndarray:
    """[k / columns, points, c, columns], of weights [k, c, 3, 3]; worked out in float64."""
    import numpy as np

    k, c = weights.shape[:2]
    one = _filters(round(points**0.5))
    both = np.einsum("pi,qj->pqij", one, one).reshape(points, 9)
    whole = np.pad(weights, ((0, -k % columns), (0, 0), (0, 0), (0, 0)))
    # In the order of the result before it is multiplied out: that is the smaller.
    ordered = whole.reshape(-1, columns, c, 9).transpose(0, 3, 2, 1).astype(np.float64)
    made = np.empty((len(ordered), points, c, columns), np.float32)
    for block, result in zip(ordered, made, strict=True):
        result[:] = (both @ block.reshape(9, -1)).reshape(result.shape)
    return made
