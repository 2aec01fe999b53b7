"""What was read and written once, remembered: clients repeat their JSON with other numbers behind it."""

from __future__ import annotations

from collections.abc import Hashable

from portolan.serving import protocol
from portolan.serving.calls import Answer, Call, Piece, Tensor
from portolan.serving.protocol import Wish

_REMEMBERED, _LONGEST = 256, 2048


class Codec:
    """Reads requests and writes answers; see portolan.serving.protocol for what they are."""

    def __init__(self) -> None:
        self._plans: dict[bytes, _Plan] = {}
        self._last: _Plan | None = None

    def decode(
        self, model: str, version: str | None, body: Piece, header: int | None, place: int = -1
    ) -> tuple[Call, Wish]:
        """As `protocol.decode`.

        Raises:
            Refusal: `invalid`, with what is wrong.
        """
        plan = self._last
        if plan is not None and plan.header == header and plan.total == len(body) and body[:header] == plan.raw:
            return plan.apply(model, version, memoryview(body), place)
        view = memoryview(body)
        if header is None or header > min(len(view), _LONGEST):
            return protocol.decode(model, version, view, header, place)
        raw = bytes(view[:header])
        plan = self._plans.get(raw)
        if plan is not None and plan.total == len(view):
            self._last = plan
            return plan.apply(model, version, view, place)
        call, wish = protocol.decode(model, version, view, header, place)
        if not call.id:
            if len(self._plans) >= _REMEMBERED:
                self._plans.clear()
            self._plans[raw] = _Plan(raw, call, wish, len(view))
        return call, wish

    def encode(self, answer: Answer, wish: Wish) -> tuple[list[Piece], int | None]:
        """As `protocol.encode`.

        Raises:
            Refusal: an output that JSON cannot write.
        """
        if wish.named is not None or not wish.default or answer.id:
            return protocol.encode(answer, wish)
        outputs = answer.outputs
        key: Hashable = answer.form
        if key is None:
            key = (answer.model, answer.version, *[(tensor.shape, len(tensor.data)) for tensor in outputs])
        head = wish.heads.get(key)
        if head is not None:
            return [head, *[tensor.data for tensor in outputs]], len(head)
        pieces, length = protocol.encode(answer, wish)
        if len(wish.heads) >= _REMEMBERED:
            wish.heads.clear()
        wish.heads[key] = bytes(pieces[0])
        return pieces, length


class _Plan:
    """How a request is read whose JSON part is known: only its numbers differ.

    Args:
        raw: the JSON.
        call: the first request with it.
        wish: what it wants.
        total: length of the body.
    """

    def __init__(self, raw: bytes, call: Call, wish: Wish, total: int) -> None:
        self.raw, self.header, self.total = raw, len(raw), total
        self._wish = wish
        self._binary: list[tuple[str, str, tuple[int, ...], int, int]] = []
        self._others: list[tuple[int, Tensor]] = []  # whose numbers are in the JSON
        at = self.header
        for i, tensor in enumerate(call.inputs):
            if isinstance(tensor.data, memoryview):
                self._binary.append((tensor.name, tensor.datatype, tensor.shape, at, at + len(tensor.data)))
                at += len(tensor.data)
            else:
                self._others.append((i, tensor))
        form = None if any(tensor.datatype == "BYTES" for tensor in call.inputs) else self
        self._call, self._form = call, form

    def apply(self, model: str, version: str | None, view: memoryview, place: int) -> tuple[Call, Wish]:
        """The request whose numbers are in `view`."""
        inputs = [
            Tensor(name, datatype, shape, view[begin:end], place + begin if place >= 0 else -1)
            for name, datatype, shape, begin, end in self._binary
        ]
        if self._others:
            for i, tensor in self._others:
                inputs.insert(i, Tensor(tensor.name, tensor.datatype, tensor.shape, tensor.data))
        first = self._call
        return Call(
            model, version, inputs, first.outputs, "", first.timeout, first.priority, first.parameters, self._form
        ), self._wish
