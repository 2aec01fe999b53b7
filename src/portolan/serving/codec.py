"""What was read and written once, remembered: clients repeat their JSON with other numbers behind it."""

from __future__ import annotations

from portolan.serving import protocol
from portolan.serving.calls import Answer, Call, Piece, Tensor
from portolan.serving.protocol import Wish

_REMEMBERED, _LONGEST = 256, 2048


class Codec:
    """Reads requests and writes answers; see portolan.serving.protocol for what they are."""

    def __init__(self) -> None:
        self._plans: dict[bytes, _Plan] = {}

    def decode(
        self, model: str, version: str | None, body: Piece, header: int | None, place: int = -1
    ) -> tuple[Call, Wish]:
        """As `protocol.decode`.

        Raises:
            Refusal: `invalid`, with what is wrong.
        """
        view = memoryview(body)
        if header is None or header > min(len(view), _LONGEST):
            return protocol.decode(model, version, view, header, place)
        raw = bytes(view[:header])
        plan = self._plans.get(raw)
        if plan is not None and plan.total == len(view):
            return plan.apply(model, version, view, place)
        call, wish = protocol.decode(model, version, view, header, place)
        if not call.id:
            if len(self._plans) >= _REMEMBERED:
                self._plans.clear()
            self._plans[raw] = _Plan(call, wish, header, len(view))
        return call, wish

    def encode(self, answer: Answer, wish: Wish) -> tuple[list[Piece], int | None]:
        """As `protocol.encode`.

        Raises:
            Refusal: an output that JSON cannot write.
        """
        if wish.named is not None or not wish.default or answer.id:
            return protocol.encode(answer, wish)
        outputs = answer.outputs
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
        call: the first request with that JSON.
        wish: what it wants.
        header: length of the JSON.
        total: length of the body.
    """

    def __init__(self, call: Call, wish: Wish, header: int, total: int) -> None:
        self.total = total
        self._wish = wish
        self._rest = (call.outputs, "", call.timeout, call.priority, call.parameters)
        self._binary: list[tuple[str, str, tuple[int, ...], int, int]] = []
        self._others: list[tuple[int, Tensor]] = []  # whose numbers are in the JSON
        at = header
        for i, tensor in enumerate(call.inputs):
            if isinstance(tensor.data, memoryview):
                self._binary.append((tensor.name, tensor.datatype, tensor.shape, at, at + len(tensor.data)))
                at += len(tensor.data)
            else:
                self._others.append((i, tensor))

    def apply(self, model: str, version: str | None, view: memoryview, place: int) -> tuple[Call, Wish]:
        """The request whose numbers are in `view`."""
        inputs = [
            Tensor(name, datatype, shape, view[begin:end], place + begin if place >= 0 else -1)
            for name, datatype, shape, begin, end in self._binary
        ]
        for i, tensor in self._others:
            inputs.insert(i, Tensor(tensor.name, tensor.datatype, tensor.shape, tensor.data))
        return Call(model, version, inputs, *self._rest), self._wish
