"""NumPy as a namespace for the operators: what sizes and other constants are computed with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def holds(value: Any) -> bool:
    """Whether a value is known now: an array of NumPy's."""
    import numpy as np

    return isinstance(value, np.ndarray)


def array(value: Any) -> np.ndarray:
    """Sizes as an array: whole numbers, or objects where one of them is a tracer's symbol."""
    import numpy as np

    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    parts = value if isinstance(value, list) else [value]
    kind = np.int64 if all(type(part) is int for part in parts) else np.bool_ if _truths(parts) else np.object_
    return np.array(value, kind)


def _truths(parts: Sequence[Any]) -> bool:
    return all(type(part) is bool for part in parts)


def number(value: Any) -> bool:
    """Whether NumPy took a result out of its array, as it does without axes."""
    import numpy as np

    return isinstance(value, np.generic) or (not hasattr(value, "shape") and value is not None)


class NumPy:
    """NumPy's functions under the names that the operators use; those that it shares with the others are its own."""

    def __getattr__(self, name: str) -> Any:
        import numpy as np

        return getattr(np, name)

    def asarray(self, value: Any) -> np.ndarray:
        """The value itself: only NumPy's arrays get here."""
        found: np.ndarray = value
        return found

    def kind(self, x: np.ndarray) -> str:
        """`f` for floats, `b` for truth values, `i` for whole numbers and sizes."""
        return x.dtype.kind if x.dtype.kind in "fb" else "i"

    def dtype(self, x: np.ndarray) -> str:
        """The element type by NumPy's name."""
        return "int64" if x.dtype.kind == "O" else str(x.dtype)

    def astype(self, x: np.ndarray, dtype: str) -> np.ndarray:
        """Another element type; a symbol stays one among whole numbers."""
        return x if x.dtype.kind == "O" and dtype.startswith("int") else x.astype(dtype)

    def bitcast(self, x: np.ndarray, dtype: str) -> np.ndarray:
        """The same bits as another element type of the same size."""
        return x.view(dtype)

    def shift(self, x: np.ndarray, count: np.ndarray, left: bool) -> np.ndarray:
        """Bits moved."""
        return x << count if left else x >> count  # type: ignore[no-any-return]

    def transpose(self, x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
        """The axes in another order."""
        return x.transpose(axes)

    def concat(self, parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
        """Along an axis that exists."""
        import numpy as np

        return np.concatenate(parts, axis)

    def pow(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Powers."""
        import numpy as np

        return np.asarray(np.power(x, y))

    def full(self, shape: Sequence[int], value: np.ndarray) -> np.ndarray:
        """An array of one value."""
        import numpy as np

        return np.full(shape, value, value.dtype)

    def arange(self, start: Any, stop: Any, step: Any, dtype: str) -> np.ndarray:
        """Numbers from `start` on, before `stop`."""
        import numpy as np

        kind: np.dtype[Any] = np.dtype(dtype)
        found: np.ndarray = np.arange(start, stop, step, dtype=kind)
        return found

    def nonzero(self, x: np.ndarray) -> np.ndarray:
        """Indices [axes, count]."""
        import numpy as np

        return np.stack(np.nonzero(x)).astype(np.int64)

    def reduce(self, name: str, x: np.ndarray, axes: tuple[int, ...], keep: bool) -> np.ndarray:
        """`sum`, `prod`, `max`, `min` or `mean` over axes, of the same element type."""
        import numpy as np

        return np.asarray(getattr(np, name)(x, axis=axes, keepdims=keep)).astype(x.dtype)

    def cumsum(self, x: np.ndarray, axis: int) -> np.ndarray:
        """Running sums of the same element type."""
        import numpy as np

        return np.cumsum(x, axis).astype(x.dtype)

    def take_along(self, x: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray:
        """One element per index along an axis."""
        import numpy as np

        return np.take_along_axis(x, indices, axis)

    def put(self, x: np.ndarray, where: tuple[np.ndarray, ...], values: np.ndarray, how: str) -> np.ndarray:
        """A copy with elements replaced, or with `add`, `mul`, `max`, `min` applied, at index arrays."""
        import numpy as np

        found = x.copy()
        if how == "none":
            found[where] = values
        else:
            ufunc = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[how]
            ufunc.at(found, where, values)
        return found
