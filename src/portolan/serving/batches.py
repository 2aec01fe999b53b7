"""Batches as bytes: what goes to a replica, and how its outputs are divided among the calls."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Final, NamedTuple

from portolan.core.signature import Signature
from portolan.serving import wire
from portolan.serving.arena import LARGE, Arena
from portolan.serving.calls import Piece, Tensor
from portolan.serving.checks import count
from portolan.serving.datatypes import SIZE
from portolan.serving.ticket import Batch

_REMEMBERED: Final = 256


class Packer:
    """Turns batches into frames.

    Args:
        signature: of the model.
        arena: memory shared with the replicas.
        batches: whether calls share batches; else those of a batch run one after another.
    """

    def __init__(self, signature: Signature, arena: Arena, *, batches: bool) -> None:
        self._signature = signature
        self._arena = arena
        self._batches = batches
        self._texts = any(spec.dtype == "string" for spec in signature.inputs)
        self._heads: dict[Hashable, bytes] = {}
        self._answers: dict[Hashable, int] = {}

    def pack(self, batch: Batch) -> tuple[bytes, list[Piece]]:
        """Header and body of the frame that runs `batch`."""
        large = sum([ticket.size for ticket in batch.tickets]) >= LARGE
        placed: list[list[wire.Place] | None] = []
        inline = []
        for i, spec in enumerate(self._signature.inputs):
            tensors = [ticket.call.inputs[ticket.layout.order[i]] for ticket in batch.tickets]
            found = _places(tensors, batch, self._arena) if large and spec.dtype != "string" else None
            placed.append(found)
            if found is None:
                inline.append([tensor.data for tensor in tensors])
        spots = [place for places in placed if places is not None for place in places] if large else []
        if self._answers:
            spots += self._room(batch)
        if spots:
            inline.insert(0, [wire.places(spots)])
        return self._head(batch, placed), wire.laid_out(inline)

    def learn(self, batch: Batch, size: int) -> None:
        """An answer to such a batch has so many bytes: the next one finds room in shared memory, if it is large."""
        if size >= LARGE:
            if len(self._answers) >= _REMEMBERED:
                self._answers.clear()
            self._answers[batch.rows, batch.tickets[0].key] = size

    def outputs(self, batch: Batch, frame: wire.Frame, size: int) -> memoryview:
        """What a replica answered: in shared memory, or in the frame, from where it is copied once for all calls.

        Raises:
            ValueError: it is said to be in shared memory, where there is no room for it.
        """
        if not frame.header[2]:
            self.learn(batch, size)
            return memoryview(bytes(frame.body))
        if batch.room is None or size > batch.room[1]:
            raise ValueError("they are not where they were to be")
        return self._arena.view[batch.room[0] : batch.room[0] + size]

    def _room(self, batch: Batch) -> list[wire.Place]:
        """Shared memory for the outputs, where it is known how large they will be."""
        size = self._answers.get((batch.rows, batch.tickets[0].key))
        place = None if size is None else self._arena.take(size)
        if size is None or place is None:
            return []
        batch.places.append(place)
        batch.room = place, size
        return [batch.room]

    def _head(self, batch: Batch, placed: Sequence[list[wire.Place] | None]) -> bytes:
        parts = tuple([None if places is None else len(places) for places in placed])
        key = None if self._texts else (batch.rows, batch.tickets[0].key, parts, batch.room is None)
        head = None if key is None else self._heads.get(key)
        if head is not None:
            return head
        listed = []
        for i, spec in enumerate(self._signature.inputs):
            tensors = [ticket.call.inputs[ticket.layout.order[i]] for ticket in batch.tickets]
            shape = (batch.rows, *tensors[0].shape[1:]) if self._batches else tensors[0].shape
            listed.append([spec.name, spec.dtype, shape, sum([len(tensor.data) for tensor in tensors]), parts[i]])
        head = wire.header(["run", listed, batch.room is not None, 0 if self._batches else batch.rows])
        if key is not None:
            if len(self._heads) >= _REMEMBERED:
                self._heads.clear()
            self._heads[key] = head
        return head


def _places(tensors: list[Tensor], batch: Batch, arena: Arena) -> list[wire.Place] | None:
    """Where the tensors lie in shared memory, moved there if need be; None where they are to go through the socket."""
    if all(tensor.place < 0 and len(tensor.data) < LARGE for tensor in tensors):
        return None
    for tensor in tensors:
        if tensor.place >= 0:
            continue
        place = arena.take(len(tensor.data))
        if place is None:
            return None
        batch.places.append(place)
        arena.view[place : place + len(tensor.data)] = tensor.data
        tensor.data, tensor.place = arena.view[place : place + len(tensor.data)], place
    return [(tensor.place, len(tensor.data)) for tensor in tensors]


class _Output(NamedTuple):
    """One output of a batch: where it lies, the shape of one row, and where rows end that differ in size."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    at: int
    size: int
    ends: list[int] | None


class Division:
    """How a replica's outputs are divided among the calls of a batch: the same for all answers with that header.

    Args:
        listed: name, datatype, shape, bytes and row ends of each output, as in the frame.
        signature: whose outputs they have to be, and in which order.
        rows: of the batch.
        batches: whether calls share batches; else each has a row of its own, which is no axis of its outputs.

    Attributes:
        size: of all outputs, one after another.

    Raises:
        ValueError: outputs that are not the signature's, or do not have the batch's rows.
    """

    def __init__(self, listed: list[Any], signature: Signature, rows: int, *, batches: bool = True) -> None:
        found, at = {}, 0
        for name, datatype, shape, size, ends in listed:
            if not shape or shape[0] != rows:
                raise ValueError(f"output `{name}` has shape {shape} for a batch of {rows}")
            if ends is None and size != count(shape) * SIZE[datatype]:
                raise ValueError(f"output `{name}` has {size} bytes for shape {shape}")
            found[name] = _Output(name, datatype, tuple(shape[1:]), at, size, ends)
            at += wire.padded(size)
        missing = [spec.name for spec in signature.outputs if spec.name not in found]
        if missing:
            raise ValueError(f"the output `{missing[0]}` is missing")
        self._outputs = {spec.name: found[spec.name] for spec in signature.outputs}
        self._rows, self._batches = rows, batches
        self.size = at
        self._shares: dict[Hashable, Share] = {}

    def share(self, rows: int, wanted: list[str]) -> Share:
        """What a call of so many rows gets that wants these outputs, in that order; none named is all."""
        key: Hashable = (rows, *wanted) if wanted else rows
        found = self._shares.get(key)
        if found is None:
            if len(self._shares) >= _REMEMBERED:  # whoever asks for outputs in ever new orders fills nothing
                self._shares.clear()
            chosen = [self._outputs[name] for name in wanted or self._outputs]
            found = self._shares[key] = Share(chosen, rows, self._rows, batches=self._batches)
        return found


class Divisions:
    """Divisions by headers, which the reader of the frames gives as the same object when they come again.

    Args:
        signature: whose outputs they are.
        batches: as of `Division`.
    """

    def __init__(self, signature: Signature, *, batches: bool = True) -> None:
        self._signature, self._batches = signature, batches
        self._known: dict[int, tuple[list[Any], Division]] = {}

    def of(self, header: list[Any], rows: int) -> Division:
        """How an answer with that header is divided.

        Raises:
            ValueError: as `Division`.
        """
        kept = self._known.get(id(header))
        if kept is not None and kept[0] is header:
            return kept[1]
        division = Division(header[1], self._signature, rows, batches=self._batches)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[id(header)] = header, division
        return division


class Share:
    """The part of a batch's outputs that belongs to a call of so many rows.

    Args:
        chosen: the outputs.
        rows: of the call.
        all_rows: of the batch.
        batches: as of `Division`.

    Attributes:
        form: see `Answer`.
    """

    def __init__(self, chosen: list[_Output], rows: int, all_rows: int, *, batches: bool) -> None:
        self._chosen = chosen
        self._shapes = [(rows, *output.shape) if batches else output.shape for output in chosen]
        self._rows = rows
        self._widths = [output.size // all_rows for output in chosen]
        self.form = None if any(output.ends for output in chosen) else self
        self._even = [
            (output.name, output.datatype, shape, output.at, width, width * self._rows)
            for output, shape, width in zip(chosen, self._shapes, self._widths, strict=True)
        ]

    def tensors(self, blob: memoryview, first: int) -> list[Tensor]:
        """The outputs of the call whose rows start at `first`, as parts of what the replica answered."""
        if self.form is not None:
            return [
                Tensor(name, datatype, shape, blob[(begin := at + first * width) : begin + size])
                for name, datatype, shape, at, width, size in self._even
            ]
        last, tensors = first + self._rows, []
        for output, shape, width in zip(self._chosen, self._shapes, self._widths, strict=True):
            ends = output.ends
            begin, end = first * width, last * width
            if ends is not None:
                begin, end = ends[first - 1] if first else 0, ends[last - 1]
            tensors.append(Tensor(output.name, output.datatype, shape, blob[output.at + begin : output.at + end]))
        return tensors
