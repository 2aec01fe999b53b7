"""A replica: a process that loads one model and runs batches, one after another, until its socket closes.

`python -m portolan.serving.replica SOCKET ARENA MEMORY`: two descriptors and the bytes it may allocate. Frames in:

    ["load", {"folder", "cap", "inputs", "outputs", "samples", "measure"}]
    ["run", [[name, dtype, shape, bytes, parts], ...], room]

A tensor's parts are null when its bytes are in the frame's body, else the number of its pieces in the shared memory,
to be joined along the first axis; with `room` there is one more piece, for the outputs. Where all these pieces lie,
pairs of offset and size, is the first thing in the body. Frames out:

    ["ready", {"profile", "batches", "fixed", "facts"}]
    ["done", [[name, datatype, shape, bytes, ends], ...], shared]      ends: of every row, where rows differ in size
    ["failed", kind, message]
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import sys
import time
import traceback
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from portolan.core import environments, registry
from portolan.core.backend import Executable
from portolan.core.silence import silence
from portolan.errors import PortolanError
from portolan.serving import strings, wire
from portolan.serving.calls import Piece
from portolan.serving.datatypes import WORD
from portolan.serving.warm import Warm, padded, warm_up
from portolan.worker.agent import end_with_parent
from portolan.worker.memory import limit_memory, ran_out

_COMPILED = "compiled.json"
_REMEMBERED = 256


def main(argv: Sequence[str]) -> None:
    """Serves until the front closes the socket."""
    end_with_parent(os.getppid())
    limit_memory(int(argv[2]))
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # what a runtime prints is no answer
    silence()
    environments.hold()
    Replica(socket.socket(fileno=int(argv[0])), int(argv[1])).serve()


class Replica:
    """The process's side of the socket."""

    def __init__(self, sock: socket.socket, arena: int) -> None:
        self._sock = sock
        self._reader = wire.Reader()
        self._shared = mmap.mmap(arena, 0)
        self._executable: Executable | None = None
        self._fixed = 0
        self._heads: dict[Hashable, bytes] = {}

    def serve(self) -> None:
        """Answers frames until there are no more."""
        while (frame := self._receive()) is not None:
            try:
                if frame.header[0] == "load":
                    answer = self._load(frame.header[1])
                else:
                    answer = self._run(frame.header[1], frame.header[2], frame.body)
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
        left = [memoryview(piece) for piece in pieces if len(piece)]
        while left:
            sent = self._sock.sendmsg(left[:256])
            while left and sent >= len(left[0]):
                sent -= len(left[0])
                del left[0]
            if sent:
                left[0] = left[0][sent:]

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

    def _run(self, tensors: list[Any], with_room: bool, body: memoryview) -> list[Piece]:
        if self._executable is None:
            raise PortolanError("nothing is loaded")
        feeds, room = self._feeds(tensors, with_room, body)
        rows = len(next(iter(feeds.values()))) if self._fixed else 0
        if rows < self._fixed:
            feeds = {name: padded(array, self._fixed) for name, array in feeds.items()}
        begin = time.perf_counter()
        outputs = self._executable.run(feeds)
        seconds = time.perf_counter() - begin
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

    def _feeds(
        self, tensors: list[Any], with_room: bool, body: memoryview
    ) -> tuple[dict[str, np.ndarray], wire.Place | None]:
        """The inputs, and where the outputs are to go."""
        feeds: dict[str, np.ndarray] = {}
        places: Iterator[wire.Place] = iter(())
        at = 0
        count = sum([parts for *_, parts in tensors if parts is not None]) + with_room
        if count:
            found, at = wire.read_places(body, count)
            places = iter(found)
        for name, dtype, shape, size, parts in tensors:
            if parts is not None:
                feeds[name] = self._join(dtype, shape, [next(places) for _ in range(parts)])
                continue
            raw = body[at : at + size]
            feeds[name] = strings.array(raw, shape) if dtype == "string" else np.frombuffer(raw, dtype).reshape(shape)
            at += wire.padded(size)
        return feeds, next(places, None)

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

    def _join(self, dtype: str, shape: list[int], places: Sequence[wire.Place]) -> np.ndarray:
        kind = np.dtype(dtype)
        parts = [np.frombuffer(self._shared, kind, size // kind.itemsize, offset) for offset, size in places]
        whole: np.ndarray = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return (whole if whole.flags.aligned else whole.copy()).reshape(shape)


def _even(arrays: Mapping[str, np.ndarray]) -> bool:
    return all(array.dtype.kind not in "OUS" for array in arrays.values())


def _bytes(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(wire.padded(array.nbytes) for array in arrays.values())


def _data(array: np.ndarray) -> Piece:
    return array.reshape(-1).view(np.uint8).data if array.size else b""


def _failure(error: Exception) -> list[Piece]:
    words = " ".join(str(error).split())[:600] or type(error).__name__
    if not isinstance(error, PortolanError):
        traceback.print_exc()
    sys.stderr.flush()
    kind = "memory" if isinstance(error, MemoryError) or ran_out(words) else "error"
    return wire.frame(wire.header(["failed", kind, words]))


if __name__ == "__main__":
    main(sys.argv[1:])
