"""Convolutions as sums of smaller ones: Tucker-2 (arXiv:1511.06530) and CP (arXiv:1412.6553).

Both take a kernel [outputs, inputs, *window] through a whitener of the inputs (`_moments.whitener`), so that what
counts is the error in the output as far as the correlation between channels tells it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from portolan.passes._factor import Budget, largest, terms

if TYPE_CHECKING:
    import numpy as np

_SWEEPS = 10
_ALTERNATIONS = 60
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

        return np.einsum("ob,ba...,ca->oc...", self.outputs, self.core, self.inputs, optimize=True)


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


def tucker_ranks(kernel: np.ndarray, root: np.ndarray, budget: Budget) -> tuple[int, int]:
    """Ranks of outputs and inputs: with `error`, half of it squared to each; with `keep`, equal shares of both."""
    import numpy as np

    outputs, inputs = kernel.shape[:2]
    if budget.error is None:
        window = kernel[0, 0].size

        def fits(share: float) -> bool:
            b, a = share * outputs, share * inputs
            return a * inputs + a * b * window + b * outputs <= budget.keep * kernel.size

        share = largest(fits)
        return budget.rounded(share * outputs, outputs), budget.rounded(share * inputs, inputs)
    seen = _seen(kernel, root)
    spectra = [np.linalg.eigvalsh(_gram(_unfold(seen, mode)))[::-1].clip(0) for mode in (0, 1)]
    found = [budget.rounded(terms(s, budget.error / 2**0.5), len(s), up=True) for s in spectra]
    return found[0], found[1]


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

        return np.einsum("or,cr,hr,wr->ochw", self.outputs, self.inputs, self.rows, self.columns, optimize=True)


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
    unfolded = [_unfold(seen, mode) for mode in range(4)]
    norm = float((seen**2).sum())
    previous = 2.0
    for _ in range(_ALTERNATIONS):
        for mode in range(4):
            others = [factors[k] for k in range(4) if k != mode]
            gram = np.prod([f.T @ f for f in others], axis=0)
            ridge = np.eye(rank) * (1e-9 * np.trace(gram) / rank + 1e-300)
            product = unfolded[mode] @ _khatri_rao(others)
            factors[mode] = np.linalg.solve(gram + ridge, product.T).T
            if mode != 3:
                factors[mode] /= np.linalg.norm(factors[mode], axis=0) + 1e-300
        # |t - t'|^2 = |t|^2 - 2 <t, t'> + |t'|^2, with the last mode's products at hand.
        inner = float((product * factors[3]).sum())
        size = float((gram * (factors[3].T @ factors[3])).sum())
        error = max(0.0, (norm - 2 * inner + size) / norm) ** 0.5 if norm else 0.0
        if previous - error < 1e-5:
            break
        previous = error
    outputs, inputs, rows, columns = factors
    return _balanced(Polyadic(outputs, np.asarray(solve_triangular(root, inputs)), rows, columns)), error


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


def _khatri_rao(factors: list[np.ndarray]) -> np.ndarray:
    """Column by column outer products, flattened: [product of the sizes, rank]."""
    found = factors[0]
    for factor in factors[1:]:
        found = (found[:, None, :] * factor[None, :, :]).reshape(-1, factor.shape[1])
    return found
