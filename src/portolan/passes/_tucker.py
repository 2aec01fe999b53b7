"""Convolutions as sums of smaller ones: Tucker-2 (arXiv:1511.06530) and CP (arXiv:1412.6553).

Both take a kernel [outputs, inputs, *window] through a whitener of the inputs (`_moments.whitener`), so that what
counts is the error in the output as far as the correlation between channels tells it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_SWEEPS = 10
_ALTERNATIONS = 60
#: A sweep that lowers the relative error by less than this is the last.
_PROGRESS = 1e-4
_SEED = 0


@dataclass(frozen=True, eq=False)
class Tucker:
    """A kernel as three: inputs [C, a], core [b, a, *window], outputs [O, b]."""

    inputs: np.ndarray
    core: np.ndarray
    outputs: np.ndarray

    def whole(self) -> np.ndarray:
        """The kernel they stand for, [O, C, *window]."""
        import numpy as np

        return np.asarray(np.einsum("ob,ba...,ca->oc...", self.outputs, self.core, self.inputs, optimize=True))


def tucker(kernel: np.ndarray, root: np.ndarray, ranks: tuple[int, int]) -> Tucker:
    """The nearest Tucker-2 form, by alternating least squares (HOOI).

    Args:
        kernel: [O, C, *window].
        root: whitener of the inputs, [C, C].
        ranks: of outputs and of inputs.
    """
    import numpy as np
    from scipy.linalg import solve_triangular

    seen = _seen(kernel, root)
    outputs, inputs = (_leading(_unfold(seen, mode), ranks[mode]) for mode in (0, 1))
    for _ in range(_SWEEPS):
        outputs = _leading(_unfold(_along(seen, inputs.T, 1), 0), ranks[0])
        inputs = _leading(_unfold(_along(seen, outputs.T, 0), 1), ranks[1])
    core = _along(_along(seen, outputs.T, 0), inputs.T, 1)
    return Tucker(np.asarray(solve_triangular(root, inputs)), core, outputs)


def spectra(kernel: np.ndarray, root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The squared singular values of outputs and of inputs, largest first: what cutting a rank costs."""
    import numpy as np

    seen = _seen(kernel, root)
    outputs, inputs = (np.linalg.eigvalsh(_gram(_unfold(seen, mode)))[::-1].clip(0) for mode in (0, 1))
    return outputs, inputs


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


def polyadic(kernel: np.ndarray, root: np.ndarray, rank: int) -> tuple[Polyadic, float]:
    """A near CP form by alternating least squares, and its relative error (in the output, with a whitener).

    The problem has many local optima: this is a good one, not the best. Equal input gives the equal answer.

    Args:
        kernel: [O, C, H, W].
        root: whitener of the inputs, [C, C].
        rank: number of terms.
    """
    import numpy as np
    from scipy.linalg import solve_triangular

    seen = _seen(kernel, root)
    factors = [_start(_unfold(seen, mode), rank, mode) for mode in range(4)]
    norm = float((seen**2).sum()) or 1.0
    error = previous = 2.0
    for _ in range(_ALTERNATIONS):
        error = _sweep(seen, factors, norm)
        if previous - error < _PROGRESS:
            break
        previous = error
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


def _seen(kernel: np.ndarray, root: np.ndarray) -> np.ndarray:
    import numpy as np

    return _along(kernel.astype(np.float64), root, 1)


def _along(tensor: np.ndarray, matrix: np.ndarray, mode: int) -> np.ndarray:
    """The tensor with `matrix` applied to one of its modes."""
    import numpy as np

    return np.moveaxis(np.tensordot(matrix, tensor, (1, mode)), 0, mode)


def _unfold(tensor: np.ndarray, mode: int) -> np.ndarray:
    import numpy as np

    return np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)


def _gram(matrix: np.ndarray) -> np.ndarray:
    found: np.ndarray = matrix @ matrix.T
    return found


def _leading(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The leading left singular vectors: from the small Gram matrix, since the other side is long."""
    import numpy as np

    found: np.ndarray = np.linalg.eigh(_gram(matrix))[1][:, ::-1][:, :rank]
    return found


def _start(matrix: np.ndarray, rank: int, mode: int) -> np.ndarray:
    """Leading singular vectors, and random ones where more are needed than there are."""
    import numpy as np

    first = _leading(matrix, min(rank, len(matrix)))
    random = np.random.default_rng([_SEED, mode]).standard_normal((len(matrix), rank - first.shape[1]))
    return np.concatenate([first, random / np.sqrt(len(matrix))], axis=1)
