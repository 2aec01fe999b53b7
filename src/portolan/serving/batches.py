"""Batches as bytes: what goes to a replica, and how its outputs are divided among the calls."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from portolan.core.signature import Signature
from portolan.serving import wire
from portolan.serving.arena import LARGE, Arena
from portolan.serving.calls import Piece, Tensor
from portolan.serving.checks import count
from portolan.serving.datatypes import SIZE
from portolan.serving.ticket import Batch

_REMEMBERED = 256


class Packer:
    """Turns batches into frames.

    Args:
        signature: of the model.
        arena: memory shared with the replicas.
        batches: whether calls share batches.
    """

    def __init__(self, signature: Signature, arena: Arena, *, batches: bool) -> None:
        self._signature = signature
        self._arena = arena
        self._batches = batches
        self._texts = any(spec.dtype == "string" for spec in signature.inputs)
        self._heads: dict[Hashable, bytes] = {}

    def pack(self, batch: Batch) -> tuple[bytes, list[Piece]]:
        """Header and body of the frame that runs `batch`."""
        layout = batch.tickets[0].layout
        large = sum([ticket.layout.size for ticket in batch.tickets]) >= LARGE
        key = None if large or self._texts else (batch.rows, layout.key)
        head = None if key is None else self._heads.get(key)
        listed, inline = [], []
        for i, spec in enumerate(self._signature.inputs):
            tensors = [ticket.call.inputs[ticket.layout.order[i]] for ticket in batch.tickets]
            places = _places(tensors, batch, self._arena) if large and spec.dtype != "string" else None
            if places is None:
                inline.append([tensor.data for tensor in tensors])
            if head is None:
                whole = len(tensors) == 1 or not self._batches
                shape = tensors[0].shape if whole else (batch.rows, *tensors[0].shape[1:])
                size = sum([len(tensor.data) for tensor in tensors])
                listed.append([spec.name, spec.dtype, shape, size, places])
        if head is None:
            head = wire.header(["run", listed])
            if key is not None:
                if len(self._heads) >= _REMEMBERED:
                    self._heads.clear()
                self._heads[key] = head
        return head, wire.laid_out(inline)


def _places(tensors: list[Tensor], batch: Batch, arena: Arena) -> list[tuple[int, int]] | None:
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


class Outputs:
    """What a replica answered, ready to be divided.

    Args:
        listed: name, datatype, shape, bytes and row ends of each output, as in the frame.
        body: their bytes; they are copied once, for all calls together.
        signature: whose outputs they have to be, and in which order.
        rows: of the batch, if calls share batches, else None.

    Raises:
        ValueError: outputs that are not the signature's, or do not have the batch's rows.
    """

    def __init__(self, listed: list[Any], body: memoryview, signature: Signature, rows: int | None) -> None:
        blob = memoryview(bytes(body))
        found, at = {}, 0
        for name, datatype, shape, size, ends in listed:
            raw = blob[at : at + size]
            at += wire.padded(size)
            if rows is not None and (not shape or shape[0] != rows):
                raise ValueError(f"output `{name}` has shape {shape} for a batch of {rows}")
            if ends is None and size != count(shape) * SIZE[datatype]:
                raise ValueError(f"output `{name}` has {size} bytes for shape {shape}")
            found[name] = (name, datatype, tuple(shape[1:] if rows is not None else shape), raw, ends)
        missing = [spec.name for spec in signature.outputs if spec.name not in found]
        if missing:
            raise ValueError(f"the output `{missing[0]}` is missing")
        self._all = [found[spec.name] for spec in signature.outputs]
        self._rows = rows

    def part(self, first: int, rows: int, wanted: list[str]) -> list[Tensor]:
        """The outputs of the call whose rows start at `first`; those that are wanted, in that order."""
        chosen = self._all
        if wanted:
            by_name = {entry[0]: entry for entry in chosen}
            chosen = [by_name[name] for name in wanted]
        if self._rows is None:
            return [Tensor(name, datatype, shape, raw) for name, datatype, shape, raw, _ in chosen]
        tensors = []
        for name, datatype, shape, raw, ends in chosen:
            if ends is None:
                width = len(raw) // self._rows
                piece = raw[first * width : (first + rows) * width]
            else:
                piece = raw[ends[first - 1] if first else 0 : ends[first + rows - 1]]
            tensors.append(Tensor(name, datatype, (rows, *shape), piece))
        return tensors
