"""Convolutions in CP form (arXiv:1412.6553): a kernel as a sum of products of four vectors.

It is seen through a whitener of the inputs (`_moments.whitener`), as in `_tucker`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portolan.passes._tucker import leading, seen_through, unfold

if TYPE_CHECKING:
    import numpy as np

_ALTERNATIONS = 60
#: A sweep that lowers the relative error by less than this is the last.
_PROGRESS = 1e-4
_SEED = 0


@dataclass(frozen=True, eq=False)
class Polyadic:
    """A kernel [O, C, H, W] as a sum of `rank` products of four vectors; each is [size, rank]."""

    outputs: np.ndarray
    inputs: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    def whole(self) -> np.ndarray:
        """The kernel they stand for, [O, C, H, W]."""
        import numpy as np

        parts = (self.outputs, self.inputs, self.rows, self.columns)
        return np.asarray(np.einsum("or,cr,hr,wr->ochw", *parts, optimize=True))


def polyadic(
    kernel: np.ndarray, root: np.ndarray, rank: int, *, enough: float = 0.0, over: Callable[[], bool] = lambda: False
) -> tuple[Polyadic, float]:
    """A near CP form by alternating least squares, and its relative error (in the output, with a whitener).

    The problem has many local optima: this is a good one, not the best. Equal input gives the equal answer.

    Args:
        kernel: [O, C, *window], two axes of window.
        root: whitener of the inputs, [C, C].
        rank: number of terms.
        enough: stop at this error, and where it is out of reach.
        over: whether to stop after this sweep, with what was reached so far.
    """
    import numpy as np
    from scipy.linalg import solve_triangular

    seen = seen_through(kernel, root)
    factors = [_start(unfold(seen, mode), rank, mode) for mode in range(4)]
    norm = float((seen**2).sum()) or 1.0
    error = previous = 2.0
    for left in reversed(range(_ALTERNATIONS)):
        error = _sweep(seen, factors, norm)
        gained, previous = previous - error, error
        # Sweeps gain less and less: as many more as are left would not get there.
        if gained < _PROGRESS or error <= enough or error - left * gained > enough > 0 or over():
            break
    outputs, inputs, rows, columns = factors
    return _balanced(Polyadic(outputs, np.asarray(solve_triangular(root, inputs)), rows, columns)), error


def _sweep(seen: np.ndarray, factors: list[np.ndarray], norm: float) -> float:
    """One least-squares step for each factor, in place; gives the relative error after it."""
    import numpy as np

    def fit(mode: int, product: np.ndarray) -> np.ndarray:
        gram: np.ndarray = np.prod([f.T @ f for k, f in enumerate(factors) if k != mode], axis=0)
        ridge = np.eye(len(gram)) * (1e-9 * np.trace(gram) / len(gram) + 1e-300)
        factors[mode] = np.linalg.solve(gram + ridge, product.T).T
        if mode != 3:
            factors[mode] /= np.linalg.norm(factors[mode], axis=0) + 1e-300
        return gram

    # The two large modes are summed first: what is left is as small as the window.
    fit(0, np.einsum("ohwr,hr,wr->or", np.tensordot(seen, factors[1], (1, 0)), factors[2], factors[3], optimize=True))
    part = np.tensordot(seen, factors[0], (0, 0))
    fit(1, np.einsum("chwr,hr,wr->cr", part, factors[2], factors[3], optimize=True))
    small = np.einsum("chwr,cr->hwr", part, factors[1])
    fit(2, np.einsum("hwr,wr->hr", small, factors[3]))
    product = np.einsum("hwr,hr->wr", small, factors[2])
    gram = fit(3, product)
    # |t - t'|^2 = |t|^2 - 2 <t, t'> + |t'|^2, with the last factor's products at hand.
    inner = float((product * factors[3]).sum())
    size = float((gram * (factors[3].T @ factors[3])).sum())
    return float(max(0.0, (norm - 2 * inner + size) / norm) ** 0.5)


def _balanced(form: Polyadic) -> Polyadic:
    """The same with vectors of equal length in each term, so that no factor overflows in half precision."""
    import numpy as np

    parts = (form.outputs, form.inputs, form.rows, form.columns)
    norms = [np.linalg.norm(part, axis=0) + 1e-300 for part in parts]
    common = np.prod(norms, axis=0) ** 0.25
    return Polyadic(*(part / norm * common for part, norm in zip(parts, norms, strict=True)))


def _start(matrix: np.ndarray, rank: int, mode: int) -> np.ndarray:
    """Leading singular vectors, and random ones where more are needed than there are."""
    import numpy as np

    first = leading(matrix, min(rank, len(matrix)))
    random = np.random.default_rng([_SEED, mode]).standard_normal((len(matrix), rank - first.shape[1]))
    return np.concatenate([first, random / np.sqrt(len(matrix))], axis=1)
