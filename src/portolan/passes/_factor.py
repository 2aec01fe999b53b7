"""Low rank: a matrix as a product of two thinner ones, and how many ranks to keep.

With a whitener L (`_moments.whitener`) the factors minimise |L (w - a b)|, the error in the layer's output on
calibration data, in place of |w - a b|: at equal size this loses far less (SVD-LLM, arXiv:2403.07378).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Budget:
    """How far layers may shrink.

    Attributes:
        keep: the share of the parameters of all layers that their factors may have.
        error: the largest relative error of each layer instead (of its output, where calibration data are used);
            None to go by `keep`.
        align: ranks are multiples of this.
    """

    keep: float
    error: float | None
    align: int

    def rounded(self, rank: float, most: int, *, up: bool = False) -> int:
        """`rank` as a multiple of `align` from `align` up, but never above `most`."""
        steps = math.ceil(rank / self.align) if up else round(rank / self.align)
        return min(most, max(1, steps) * self.align)


def terms(energies: np.ndarray, error: float) -> int:
    """The fewest leading terms whose rest is at most `error` of the whole, both as root sums of energies."""
    import numpy as np

    total = float(energies.sum())
    # rest[r] is what is lost by keeping r terms. What rounding leaves of a rank that is not there does not count.
    rest = np.append(np.cumsum(energies[::-1])[::-1], 0.0)
    return int(np.argmax(rest <= max(error**2, 1e-13) * total))


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A matrix w [K, N] taken apart: L w = u diag(s) v.

    Attributes:
        left: L^-1 u diag(s), [K, R].
        right: v, [R, N].
        energies: s^2, largest first.
    """

    left: np.ndarray
    right: np.ndarray
    energies: np.ndarray

    def factors(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """The best a [K, rank] and b [rank, N]."""
        return self.left[:, :rank], self.right[:rank]


def spectrum(w: np.ndarray, root: np.ndarray) -> Spectrum:
    """Takes w [K, N] apart as seen through the whitener `root` [K, K]."""
    import numpy as np
    from scipy.linalg import solve_triangular

    u, s, v = np.linalg.svd(root @ w.astype(np.float64), full_matrices=False)
    return Spectrum(solve_triangular(root, u * s), v, s**2)


def largest(fits: Callable[[float], bool], steps: int = 40) -> float:
    """The largest share in (0, 1] that fits, by bisection; `fits` holds below some share and not above it."""
    low, high = 0.0, 1.0
    if fits(high):
        return high
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
