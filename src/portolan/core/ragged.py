"""Sequences of arrays as two arrays, as models whose inputs or outputs are sequences take and give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from portolan.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


def pack(elements: Sequence[np.ndarray], dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """A sequence as `NAME.values` and `NAME.shapes`.

    Args:
        elements: arrays of one type and one rank.
        dtype: of the values where there are no elements.

    Returns:
        The elements' numbers one after the other [total], and their shapes [length, rank], int64.

    Raises:
        UsageError: types or ranks differ.
    """
    import numpy as np

    arrays = [np.asarray(element) for element in elements]
    kinds, ranks = {str(array.dtype) for array in arrays}, {array.ndim for array in arrays}
    if len(kinds) > 1 or len(ranks) > 1:
        found = ", ".join(sorted(kinds)) if len(kinds) > 1 else f"ranks {', '.join(map(str, sorted(ranks)))}"
        raise UsageError(
            f"the elements of a sequence differ: {found}", hint="give arrays of one type, and of one number of axes"
        )
    shapes = np.array([array.shape for array in arrays], np.int64).reshape(len(arrays), ranks.pop() if ranks else 0)
    values = np.concatenate([array.reshape(-1) for array in arrays]) if arrays else np.zeros(0, dtype)
    return values, shapes


def unpack(values: np.ndarray, shapes: np.ndarray) -> list[np.ndarray]:
    """The sequence behind `NAME.values` and `NAME.shapes`.

    Raises:
        UsageError: the shapes are not those of so many values.
    """
    import numpy as np

    sizes = shapes.prod(axis=1, dtype=np.int64)
    if values.ndim != 1 or sizes.sum() != len(values):
        raise UsageError(
            f"the shapes of a sequence ask for {sizes.sum():,} values, and there are {values.size:,}",
            hint="`portolan.core.ragged.pack` makes both of a list of arrays",
        )
    parts = np.split(values, np.cumsum(sizes)[:-1]) if len(sizes) else []
    return [part.reshape(tuple(shape)) for part, shape in zip(parts, shapes, strict=True)]
