"""What a replica's process does: batches come through a socket, one after another, and their answers go back.

Frames in:

    ["load", {"folder", "cap", "inputs", "outputs", "samples", "measure"}]
    ["run", [[name, dtype, shape, bytes, parts], ...], room, times]

A tensor's parts are null when its bytes are in the frame's body, else the number of its pieces in the shared memory,
to be joined along the first axis; with `room` there is one more piece, for the outputs. Where all these pieces lie,
pairs of offset and size, is the first thing in the body. With `times` the frame holds so many calls that cannot share a
batch: the shape is that of one of them, its pieces are not joined, and they run one after another; each output then has
their outputs along a new first axis. Frames out:

    ["ready", {"profile", "batches", "fixed", "facts"}]
    ["done", [[name, datatype, shape, bytes, ends], ...], shared]      ends: of every row, where rows differ in size
    ["failed", kind, message]
"""

from __future__ import annotations

import json
import math
import mmap
import os
import socket
import sys
import time
import traceback
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from portolan.core import registry
from portolan.core.backend import Executable
from portolan.errors import PortolanError
from portolan.serving import strings, wire
from portolan.serving.calls import Piece
from portolan.serving.datatypes import WORD
from portolan.serving.warm import Warm, padded, warm_up
from portolan.worker.memory import ran_out

_COMPILED: Final = "compiled.json"
_REMEMBERED: Final = 256


class _Input:
    """One input of a frame: what it is, and where it lies in the body, or else in how many pieces in shared memory."""

    def __init__(
        self, name: str, dtype: str, shape: list[int], size: int, parts: int | None, at: int, times: int
    ) -> None:
        self.name = name
        self.kind: np.dtype[Any] | None = None if dtype == "string" else np.dtype(dtype)
        self.shape = tuple(shape)
        self.size = size
        self.parts = 0 if parts is None else parts
        self.at = at
        self.times = times
        if self.kind is not None and size != math.prod(shape) * self.kind.itemsize * max(times, 1):
            raise ValueError(f"`{name}` has {size} bytes for shape {shape}")

    def inline(self, body: memoryview) -> np.ndarray:
        """The array in a frame's body, of all calls along a new first axis where they run one after another."""
        kind, shape = self.kind, (self.times, *self.shape) if self.times else self.shape
        if kind is None:
            return strings.array(body[self.at : self.at + self.size], shape)
        if not self.size:
            return np.empty(shape, kind)
        return np.ndarray(shape, kind, body, self.at)

    def each(self, shared: mmap.mmap, places: Sequence[wire.Place]) -> list[np.ndarray]:
        """The array of every call, each in one piece of shared memory."""
        if len(places) != self.times:
            raise ValueError(f"`{self.name}` has {len(places)} pieces for {self.times} calls")
        size = self.size // self.times
        return [self._whole(shared, place, size) for place in places]

    def joined(self, shared: mmap.mmap, places: Sequence[wire.Place]) -> np.ndarray:
        """The array in pieces of shared memory; copied where there is more than one, or a runtime could not read it."""
        if len(places) == 1:
            return self._whole(shared, places[0], self.size)
        kind = self._checked(sum([size for _, size in places]), self.size)
        parts = [np.frombuffer(shared, kind, size // kind.itemsize, offset) for offset, size in places]
        return np.concatenate(parts).reshape(self.shape)

    def _whole(self, shared: mmap.mmap, place: wire.Place, size: int) -> np.ndarray:
        """An array in one piece."""
        whole: np.ndarray = np.ndarray(self.shape, self._checked(place[1], size), shared, place[0])
        return whole if whole.flags.aligned else whole.copy()

    def _checked(self, there: int, size: int) -> np.dtype[Any]:
        """The type of what lies in shared memory, if it has its size: what lies behind it is somebody else's."""
        kind = self.kind
        if kind is None:
            raise ValueError(f"text does not lie in shared memory: `{self.name}`")
        if there != size:
            raise ValueError(f"the pieces of `{self.name}` do not have its {size} bytes")
        return kind


class Feeds:
    """How the arrays of a frame are read: the same for all frames with that header.

    Args:
        listed: name, dtype, shape, bytes and parts of each input, as in the frame.
        room: whether there is a place for the outputs.
        times: how many calls run one after another; 0 for a batch.
    """

    def __init__(self, listed: list[Any], room: bool, times: int = 0) -> None:
        self._room, self._times = room, times
        self._places = sum([parts for *_, parts in listed if parts is not None]) + room
        at = wire.padded(16 * self._places)
        self._inputs: list[_Input] = []
        for name, dtype, shape, size, parts in listed:
            self._inputs.append(_Input(name, dtype, shape, size, parts, at, times))
            at += 0 if parts is not None else wire.padded(size)

    def arrays(self, shared: mmap.mmap, body: memoryview) -> tuple[dict[str, np.ndarray], wire.Place | None]:
        """The inputs of a batch, and where the outputs are to go."""
        if not self._places:
            return {one.name: one.inline(body) for one in self._inputs}, None
        places, at = wire.read_places(body, self._places), 0
        feeds: dict[str, np.ndarray] = {}
        for one in self._inputs:
            if one.parts:
                feeds[one.name] = one.joined(shared, places[at : at + one.parts])
                at += one.parts
            else:
                feeds[one.name] = one.inline(body)
        return feeds, places[-1] if self._room else None

    def calls(self, shared: mmap.mmap, body: memoryview) -> tuple[list[dict[str, np.ndarray]], wire.Place | None]:
        """The inputs of calls that run one after another, and where the outputs of all are to go."""
        places, at = wire.read_places(body, self._places), 0
        feeds: list[dict[str, np.ndarray]] = [{} for _ in range(self._times)]
        for one in self._inputs:
            if one.parts:
                for feed, array in zip(feeds, one.each(shared, places[at : at + one.parts]), strict=True):
                    feed[one.name] = array
                at += one.parts
            else:
                stacked = one.inline(body)
                for i, feed in enumerate(feeds):
                    feed[one.name] = stacked[i, ...]
        return feeds, places[-1] if self._room else None


class Replica:
    """The process's side of the socket.

    Args:
        sock: where frames come from and answers go.
        arena: descriptor of the memory that is shared with the front.
    """

    def __init__(self, sock: socket.socket, arena: int) -> None:
        self._sock = sock
        self._reader = wire.Reader()
        self._shared = mmap.mmap(arena, 0)
        self._executable: Executable | None = None
        self._fixed = 0
        self._heads: dict[Hashable, bytes] = {}
        self._feeds: dict[int, tuple[list[Any], Feeds]] = {}

    def serve(self) -> None:
        """Answers frames until there are no more."""
        while (frame := self._receive()) is not None:
            try:
                header = frame.header
                answer = self._load(header[1]) if header[0] == "load" else self._run(header, frame.body)
            except Exception as error:  # whatever a runtime raises costs this batch and no more
                answer = _failure(error)
            self._send(answer)
        os._exit(0)

    def _receive(self) -> wire.Frame | None:
        reader = self._reader
        while (frame := reader.next()) is None:
            count = self._sock.recv_into(reader.space())
            if not count:
                return None
            reader.feed(count)
        return frame

    def _send(self, pieces: list[Piece]) -> None:
        if len(pieces) == 1:
            sent = self._sock.send(pieces[0])
            if sent == len(pieces[0]):
                return
            pieces = [memoryview(pieces[0])[sent:]]
        left = [memoryview(piece) for piece in pieces if len(piece)]
        while left:
            wire.drop_sent(left, self._sock.sendmsg(left[:256]))

    def _load(self, asked: Mapping[str, Any]) -> list[Piece]:
        folder = Path(asked["folder"])
        about = json.loads((folder / _COMPILED).read_text())
        backend = registry.backend(about["backend"])
        options = backend.schema.check(about["options"])
        if "spinning" in options:
            options["spinning"] = False  # threads that spin take the processor from the front
        self._executable = backend.load(folder, **options)
        warm: Warm = warm_up(self._executable.run, asked)
        self._fixed = warm.fixed
        told = {"profile": warm.profile, "batches": warm.batches, "fixed": warm.fixed}
        ready = {**told, "facts": self._executable.facts()}
        return wire.frame(wire.header(["ready", ready]))

    def _run(self, header: list[Any], body: memoryview) -> list[Piece]:
        executable = self._executable
        if executable is None:
            raise PortolanError("nothing is loaded")
        known, in_turn, rows = self._known(header), header[3], self._fixed
        if in_turn:
            calls, room = known.calls(self._shared, body)
        else:
            feeds, room = known.arrays(self._shared, body)
            calls = [feeds]
            if self._fixed and (rows := len(next(iter(feeds.values())))) < self._fixed:
                calls = [{name: padded(array, self._fixed) for name, array in feeds.items()}]
        begin = time.perf_counter()
        answers = [executable.run(feeds) for feeds in calls]
        seconds = time.perf_counter() - begin
        outputs = _stacked(answers) if in_turn else answers[0]
        if rows < self._fixed:
            outputs = {name: value[:rows] for name, value in outputs.items()}
        arrays = {name: np.asarray(value, order="C") for name, value in outputs.items()}
        shared = room is not None and _even(arrays) and _bytes(arrays) <= room[1]
        layout = (shared, *[(name, array.dtype, array.shape) for name, array in arrays.items()])
        head = self._heads.get(layout)
        if head is None:
            return self._answer(arrays, layout, seconds, room if shared else None)
        if shared and room is not None:
            self._put(arrays, room)
            return wire.frame(head, (), seconds)
        return wire.frame(head, wire.laid_out([[_data(array)] for array in arrays.values()]), seconds)

    def _known(self, header: list[Any]) -> Feeds:
        """How the arrays of such a frame are read; the reader gives the same object when a header comes again."""
        kept = self._feeds.get(id(header))
        if kept is not None and kept[0] is header:
            return kept[1]
        feeds = Feeds(header[1], header[2], header[3])
        if len(self._feeds) >= _REMEMBERED:
            self._feeds.clear()
        self._feeds[id(header)] = header, feeds
        return feeds

    def _answer(
        self, arrays: Mapping[str, np.ndarray], layout: Hashable, seconds: float, room: wire.Place | None
    ) -> list[Piece]:
        """An answer of a layout that is new, or that no header can be remembered for, since rows differ in size."""
        same = True
        listed: list[list[Any]] = []
        pieces: list[list[Piece]] = []
        for name, array in arrays.items():
            piece: Piece
            ends: list[int] | None = None
            if array.dtype.kind in "OUS":
                word, same = "BYTES", False
                piece, ends = strings.raw(array)
            elif array.dtype.name in WORD:
                word, piece = WORD[array.dtype.name], _data(array)
            else:
                raise PortolanError(f"an output of type {array.dtype} has no word in the protocol")
            listed.append([name, word, list(array.shape), len(piece), ends])
            pieces.append([piece])
        head = wire.header(["done", listed, room is not None])
        if same:
            if len(self._heads) >= _REMEMBERED:
                self._heads.clear()
            self._heads[layout] = head
        if room is not None:
            self._put(arrays, room)
            return wire.frame(head, (), seconds)
        return wire.frame(head, wire.laid_out(pieces), seconds)

    def _put(self, arrays: Mapping[str, np.ndarray], room: wire.Place) -> None:
        """Copies the outputs to the shared memory, laid out as in a frame's body."""
        at = room[0]
        for array in arrays.values():
            there = np.frombuffer(self._shared, array.dtype, array.size, at).reshape(array.shape)
            np.copyto(there, array)
            at += wire.padded(array.nbytes)


def _stacked(answers: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The outputs of calls that ran one after another, along a new first axis."""
    if len(answers) == 1:
        return {name: np.asarray(value)[np.newaxis] for name, value in answers[0].items()}
    return {name: np.concatenate([np.asarray(one[name])[np.newaxis] for one in answers]) for name in answers[0]}


def _even(arrays: Mapping[str, np.ndarray]) -> bool:
    return all(array.dtype.kind not in "OUS" for array in arrays.values())


def _bytes(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(wire.padded(array.nbytes) for array in arrays.values())


def _data(array: np.ndarray) -> Piece:
    return array.data.cast("B") if array.size else b""


def _failure(error: Exception) -> list[Piece]:
    words = " ".join(str(error).split())[:600] or type(error).__name__
    if not isinstance(error, PortolanError):
        traceback.print_exc()
    sys.stderr.flush()
    kind = "memory" if isinstance(error, MemoryError) or ran_out(words) else "error"
    return wire.frame(wire.header(["failed", kind, words]))
