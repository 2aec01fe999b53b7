"""An LSTM's weights in the order in which the kernel reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Units whose weights lie together, columns of the product with the inputs that do, and what units are padded to.
UNITS, COLUMNS, WHOLE = 16, 64, 32


@dataclass(frozen=True)
class Weights:
    """One layer's; units are padded with zeros to a multiple of `WHOLE`.

    Attributes:
        hidden, width: units, and numbers of an input.
        entering: [4 padded / COLUMNS, width, COLUMNS].
        recurrent: [padded / UNITS, hidden, 4, UNITS].
        bias: [4 padded], both of ONNX's.
    """

    hidden: int
    width: int
    entering: np.ndarray
    recurrent: np.ndarray
    bias: np.ndarray

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """In the order of the operator's arguments."""
        return self.entering, self.recurrent, self.bias


def packed(w: np.ndarray, r: np.ndarray, b: np.ndarray | None = None) -> Weights:
    """Weights as the kernel reads them.

    Args:
        w: [1, 4 hidden, width], gates as in ONNX: input, output, forget, cell.
        r: [1, 4 hidden, hidden].
        b: [1, 8 hidden]; zeros without.
    """
    hidden, width = r.shape[-1], w.shape[-1]
    more = -hidden % WHOLE
    padded = hidden + more

    def gates(array: np.ndarray) -> np.ndarray:
        """[4 hidden, n] as [4, padded, n]."""
        return np.pad(array.reshape(4, hidden, -1), ((0, 0), (0, more), (0, 0)))

    entering = gates(w).reshape(4 * padded // COLUMNS, COLUMNS, width).transpose(0, 2, 1)
    recurrent = gates(r).reshape(4, padded // UNITS, UNITS, hidden).transpose(1, 3, 0, 2)
    bias = np.zeros(4 * hidden, np.float32) if b is None else b.reshape(2, 4 * hidden).sum(0, dtype=np.float32)
    return Weights(
        hidden, width, np.ascontiguousarray(entering), np.ascontiguousarray(recurrent), gates(bias).reshape(-1)
    )
