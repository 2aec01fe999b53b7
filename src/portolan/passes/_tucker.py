"""Convolutions in Tucker-2 form (arXiv:1511.06530).

It takes a kernel [outputs, inputs, *window] through a whitener of the inputs (`_moments.whitener`), so that what
counts is the error in the output as far as the correlation between channels tells it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_SWEEPS = 10


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

    seen = seen_through(kernel, root)
    outputs, inputs = (leading(unfold(seen, mode), ranks[mode]) for mode in (0, 1))
    for _ in range(_SWEEPS):
        outputs = leading(unfold(_along(seen, inputs.T, 1), 0), ranks[0])
        inputs = leading(unfold(_along(seen, outputs.T, 0), 1), ranks[1])
    core = _along(_along(seen, outputs.T, 0), inputs.T, 1)
    return Tucker(np.asarray(solve_triangular(root, inputs)), core, outputs)


def spectra(kernel: np.ndarray, root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The squared singular values of outputs and of inputs, largest first: what cutting a rank costs."""
    import numpy as np

    seen = seen_through(kernel, root)
    outputs, inputs = (np.linalg.eigvalsh(_gram(unfold(seen, mode)))[::-1].clip(0) for mode in (0, 1))
    return outputs, inputs


def seen_through(kernel: np.ndarray, root: np.ndarray) -> np.ndarray:
    import numpy as np

    return _along(kernel.astype(np.float64), root, 1)


def _along(tensor: np.ndarray, matrix: np.ndarray, mode: int) -> np.ndarray:
    """The tensor with `matrix` applied to one of its modes."""
    import numpy as np

    return np.moveaxis(np.tensordot(matrix, tensor, (1, mode)), 0, mode)


def unfold(tensor: np.ndarray, mode: int) -> np.ndarray:
    import numpy as np

    return np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)


def _gram(matrix: np.ndarray) -> np.ndarray:
    found: np.ndarray = matrix @ matrix.T
    return found


def leading(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The leading left singular vectors: from the small Gram matrix, since the other side is long."""
    import numpy as np

    found: np.ndarray = np.linalg.eigh(_gram(matrix))[1][:, ::-1][:, :rank]
    return found
