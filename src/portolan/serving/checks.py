"""Whether a call fits a model: names, element types, shapes, sizes. What was found is remembered by layout.

Clients repeat themselves: the same names, types and shapes, with other numbers. So a call costs one look-up and one
comparison of sizes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

from portolan.core.signature import Signature, TensorSpec
from portolan.errors import nearest
from portolan.serving.calls import Call, Refusal, Tensor
from portolan.serving.datatypes import SIZE, WORD, elements

_REMEMBERED: Final = 512
_MOST_AXES = 64


@dataclass(frozen=True)
class Layout:
    """What is known of calls of one layout.

    Attributes:
        order: for each input of the signature, where it is in the call.
        sizes: for each input in the call's order, its bytes; -1 where elements differ in size.
        rows: rows of the batch; 1 where calls do not share batches.
        key: equal for calls that may share a batch.
        size: bytes of all inputs of known size.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    rows: int
    key: Hashable
    size: int


class Checker:
    """Checks calls against one signature.

    Args:
        signature: the model's.
        batches: whether the first axis of every input is the batch.
        fixed: rows that the model runs with, where calls with fewer are padded to them; else 0.

    Raises:
        ValueError: an element type that the protocol has no word for.
    """

    def __init__(self, signature: Signature, *, batches: bool, fixed: int = 0) -> None:
        for spec in (*signature.inputs, *signature.outputs):
            if spec.dtype not in WORD:
                raise ValueError(f"`{spec.name}` is {spec.dtype}, which the protocol has no word for")
        self.batches = batches
        self._most = fixed
        self._inputs = {spec.name: (i, spec) for i, spec in enumerate(signature.inputs)}
        self._outputs = frozenset(spec.name for spec in signature.outputs)
        self._known: dict[Hashable, Layout] = {}

    def check(self, call: Call) -> Layout:
        """The layout of `call`.

        Raises:
            Refusal: what is wrong with it, `invalid`.
        """
        layout = None if call.form is None else self._known.get(call.form)
        if layout is not None:
            return layout
        signs = tuple([(tensor.name, tensor.datatype, tensor.shape) for tensor in call.inputs])
        layout = self._known.get(signs)
        if layout is None:
            layout = self._study(call.inputs)
            self._remember(signs, layout)
        for tensor, size in zip(call.inputs, layout.sizes, strict=True):
            if size < 0:
                _check_elements(tensor)
            elif len(tensor.data) != size:
                raise Refusal(
                    "invalid",
                    f"input `{tensor.name}` has {len(tensor.data):,} bytes, its shape and datatype need {size:,}",
                )
        for name in call.outputs:
            if name not in self._outputs:
                raise Refusal("invalid", f"the model has no output `{name}`: {nearest(name, self._outputs)}")
        if call.form is not None:
            self._remember(call.form, layout)
        return layout

    def _remember(self, key: Hashable, layout: Layout) -> None:
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[key] = layout

    def _study(self, inputs: Sequence[Tensor]) -> Layout:
        if len({tensor.name for tensor in inputs}) != len(inputs):
            raise Refusal("invalid", "an input is given twice")
        for tensor in inputs:
            if tensor.name not in self._inputs:
                raise Refusal(
                    "invalid", f"the model has no input `{tensor.name}`: {nearest(tensor.name, self._inputs)}"
                )
        if missing := self._inputs.keys() - {tensor.name for tensor in inputs}:
            raise Refusal("invalid", f"the input {', '.join(f'`{name}`' for name in sorted(missing))} is missing")
        for tensor in inputs:
            _check_spec(tensor, self._inputs[tensor.name][1])
        rows = self._rows(inputs)
        order = [0] * len(inputs)
        for at, tensor in enumerate(inputs):
            order[self._inputs[tensor.name][0]] = at
        sizes = tuple(_size(tensor) for tensor in inputs)
        skip = 1 if self.batches else 0
        key = tuple([inputs[at].shape[skip:] for at in order])
        return Layout(tuple(order), sizes, rows, key, sum(size for size in sizes if size > 0))

    def _rows(self, inputs: Sequence[Tensor]) -> int:
        if not self.batches:
            return 1
        rows = {tensor.shape[0] for tensor in inputs}
        if len(rows) > 1:
            said = ", ".join(f"`{tensor.name}` {tensor.shape[0]}" for tensor in inputs)
            raise Refusal("invalid", f"the inputs do not have the same number of rows: {said}")
        count = rows.pop()
        if not count:
            raise Refusal("invalid", "the inputs have no rows")
        if self._most and count > self._most:
            raise Refusal("invalid", f"the inputs have {count} rows, and the model takes at most {self._most}")
        return count


def _check_spec(tensor: Tensor, spec: TensorSpec) -> None:
    if tensor.datatype not in SIZE:
        raise Refusal(
            "invalid", f"`{tensor.datatype}` of input `{tensor.name}` is no datatype: {nearest(tensor.datatype, SIZE)}"
        )
    if tensor.datatype != WORD[spec.dtype]:
        raise Refusal("invalid", f"input `{tensor.name}` has datatype {tensor.datatype}, expected {WORD[spec.dtype]}")
    fits = len(tensor.shape) == len(spec.shape) and all(
        isinstance(want, str) or got == want for got, want in zip(tensor.shape, spec.shape, strict=True)
    )
    if not fits or any(extent < 0 for extent in tensor.shape):
        want = [-1 if isinstance(extent, str) else extent for extent in spec.shape]
        got = list(tensor.shape[:_MOST_AXES])
        raise Refusal("invalid", f"input `{tensor.name}` has shape {got}, expected {want} (-1: any)")


def count(shape: Sequence[int]) -> int:
    """Elements of a tensor of that shape."""
    total = 1
    for extent in shape:
        total *= extent
    return total


def _size(tensor: Tensor) -> int:
    width = SIZE[tensor.datatype]
    return count(tensor.shape) * width if width else -1


def _check_elements(tensor: Tensor) -> None:
    want, got = count(tensor.shape), 0
    try:
        for item in elements(tensor.data):
            got += 1
            if got > want:
                break
            bytes(item).decode()
    except UnicodeDecodeError:
        raise Refusal(
            "invalid", f"input `{tensor.name}`: the model takes text, and element {got - 1} is no UTF-8"
        ) from None
    except ValueError as error:
        raise Refusal("invalid", f"input `{tensor.name}`: {error}") from error
    if got != want:
        raise Refusal(
            "invalid", f"input `{tensor.name}` holds {got if got <= want else 'more'} elements, its shape needs {want}"
        )
