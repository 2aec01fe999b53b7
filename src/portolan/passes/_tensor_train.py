"""Large dense layers in tensor-train form (Novikov et al., arXiv:1509.06569).

A matrix [K, N] with K = k1 k2 ... and N = n1 n2 ... is a tensor with one mode (k_j, n_j) per pair, and that a chain of
small cores G_j [r_(j-1), k_j, n_j, r_j], r_0 = r_d = 1. The layer then is one small product per core, last core first,
with the rows regrouped in between; outputs come out in the order (n_d, ..., n_1), so nothing is turned at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def split(size: int, parts: int) -> tuple[int, ...]:
    """`size` as a product of `parts` whole numbers as near to each other as can be, smallest first."""
    if parts == 1:
        return (size,)
    best: tuple[int, ...] = (1,) * (parts - 1) + (size,)
    for first in range(1, round(size ** (1 / parts)) + 1):
        if size % first == 0:
            found = tuple(sorted((first, *split(size // first, parts - 1))))
            best = min(best, found, key=lambda sizes: (sum(sizes), sizes))
    return best


def modes(inputs: int, outputs: int, cores: int) -> tuple[tuple[int, int], ...] | None:
    """The pairs (k_j, n_j), large inputs with small outputs; None where a size has too few factors."""
    rows, columns = split(inputs, cores), split(outputs, cores)
    if 1 in rows or 1 in columns:
        return None
    return tuple(zip(rows, reversed(columns), strict=True))


def parameters(sizes: Sequence[tuple[int, int]], ranks: Sequence[float]) -> float:
    """Numbers in all cores; `ranks` are the inner ones."""
    ends = [1, *ranks, 1]
    return sum(ends[j] * k * n * ends[j + 1] for j, (k, n) in enumerate(sizes))


def products(sizes: Sequence[tuple[int, int]], ranks: Sequence[float]) -> float:
    """Multiplications per input row, cores applied last first."""
    ends = [1, *ranks, 1]
    total = 0.0
    for j, (k, n) in enumerate(sizes):
        rows = math.prod(k for k, _ in sizes[:j]) * math.prod(n for _, n in sizes[j + 1 :])
        total += rows * k * ends[j + 1] * n * ends[j]
    return total


def spectra(w: np.ndarray, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """For each inner rank, the squared singular values of its unfolding, largest first."""
    import numpy as np

    tensor = _folded(w, sizes)
    found = []
    for j in range(1, len(sizes)):
        matrix = tensor.reshape(math.prod(tensor.shape[:j]), -1)
        short = matrix if len(matrix) <= matrix.shape[1] else matrix.T
        found.append(np.linalg.eigvalsh(short @ short.T)[::-1].clip(0))
    return found


def train(w: np.ndarray, sizes: Sequence[tuple[int, int]], ranks: Sequence[int]) -> list[np.ndarray]:
    """The cores [r_(j-1), k_j, n_j, r_j] by successive truncated SVDs (TT-SVD), with at most these ranks."""
    import numpy as np

    rest, before, cores = _folded(w, sizes), 1, []
    for (k, n), rank in zip(sizes, ranks, strict=False):
        u, s, v = np.linalg.svd(rest.reshape(before * k * n, -1), full_matrices=False)
        kept = min(rank, len(s))
        # The square root on both sides keeps the cores of one size.
        cores.append((u[:, :kept] * np.sqrt(s[:kept])).reshape(before, k, n, kept))
        rest, before = np.sqrt(s[:kept])[:, None] * v[:kept], kept
    k, n = sizes[-1]
    cores.append(rest.reshape(before, k, n, 1))
    return cores


def whole(cores: Sequence[np.ndarray]) -> np.ndarray:
    """The matrix [K, N] that the cores stand for."""
    import numpy as np

    found = cores[0]
    for core in cores[1:]:
        found = np.tensordot(found, core, 1)
    count = len(cores)
    tensor = found.reshape([size for core in cores for size in core.shape[1:3]])
    order = [*range(0, 2 * count, 2), *range(2 * count - 1, 0, -2)]
    return tensor.transpose(order).reshape(math.prod(core.shape[1] for core in cores), -1)


def _folded(w: np.ndarray, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """The matrix as a tensor [k1 n1, k2 n2, ...]; the outputs' index runs (n_d, ..., n_1)."""
    import numpy as np

    count = len(sizes)
    tensor = w.astype(np.float64).reshape([k for k, _ in sizes] + [n for _, n in reversed(sizes)])
    order = [axis for j in range(count) for axis in (j, 2 * count - 1 - j)]
    return tensor.transpose(order).reshape([k * n for k, n in sizes])
