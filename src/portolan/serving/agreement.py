"""Whether two versions of a model answer the same: a shadow's answers beside those that clients get.

As elsewhere, agreement is about the top answer where an output looks like scores of classes. It is no accuracy.
"""

from __future__ import annotations

from collections.abc import Callable

from portolan.serving import datatypes
from portolan.serving.calls import Answer, Refusal, Tensor

#: Elements of an output that are looked at: the front has other things to do.
_MOST = 16_384
#: How far numbers that are no scores may be apart, as a share of the largest.
_CLOSE = 0.01
_FLOATS = frozenset(("FP16", "FP32", "FP64"))


class Pair:
    """One call's two answers, whichever comes first; a refusal is compared with nothing.

    Args:
        told: whether they agree, once both are there.
    """

    def __init__(self, told: Callable[[bool], None]) -> None:
        self._told = told
        self._first: list[Tensor] | None = None

    def __call__(self, result: Answer | Refusal) -> None:
        """One of the answers has come."""
        if isinstance(result, Refusal):
            return
        if self._first is None:
            # Its data are good during this call only.
            self._first = [Tensor(t.name, t.datatype, t.shape, bytes(t.data)) for t in result.outputs]
        else:
            self._told(agree(self._first, result.outputs))


def agree(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether all outputs agree: the top of every row of scores is the same, other floating-point numbers differ by a
    hundredth of the largest at most, and everything else is equal.
    """
    return len(one) == len(other) and all(map(_agree, one, other))


def _agree(one: Tensor, other: Tensor) -> bool:
    if (one.name, one.datatype, one.shape) != (other.name, other.datatype, other.shape):
        return False
    if one.datatype not in _FLOATS or not one.shape:
        return bytes(one.data) == bytes(other.data)
    whole = max(one.shape[-1], 1)
    size = datatypes.SIZE[one.datatype] * (max(_MOST // whole, 1) * whole)
    first, second = (datatypes.decode(tensor.datatype, tensor.data[:size]) for tensor in (one, other))
    if len(one.shape) in (2, 3) and whole > 1:
        return all(_top(first[at : at + whole]) == _top(second[at : at + whole]) for at in range(0, len(first), whole))
    most = max(map(abs, first), default=0.0)
    return all(abs(a - b) <= _CLOSE * most or a == b or (a != a and b != b) for a, b in zip(first, second, strict=True))


def _top(row: list[float]) -> int:
    return row.index(max(row))
