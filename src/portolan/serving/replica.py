"""A replica: a process that loads one model and runs batches, one after another, until its socket closes.

`python -m portolan.serving.replica SOCKET ARENA MEMORY`: two descriptors and the bytes it may allocate. Frames in:

    ["load", {"folder", "cap", "inputs", "outputs", "samples", "measure"}]
    ["run", [[name, dtype, shape, bytes, places], ...]]

A tensor's places are null when its bytes are in the frame's body, else pairs of offset and size in the shared memory,
to be joined along the first axis. Frames out:

    ["ready", {"profile", "batches", "facts"}]
    ["done", [[name, datatype, shape, bytes, ends], ...]]      ends: of every row, where rows differ in size
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
from collections.abc import Hashable, Mapping, Sequence
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
from portolan.serving.warm import Warm, warm_up
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
        self._heads: dict[Hashable, bytes] = {}

    def serve(self) -> None:
        """Answers frames until there are no more."""
        while (frame := self._receive()) is not None:
            try:
                if frame.header[0] == "load":
                    answer = self._load(frame.header[1])
                else:
                    answer = self._run(frame.header[1], frame.body)
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
        ready = {"profile": warm.profile, "batches": warm.batches, "facts": self._executable.facts()}
        return wire.frame(wire.header(["ready", ready]))

    def _run(self, tensors: list[Any], body: memoryview) -> list[Piece]:
        if self._executable is None:
            raise PortolanError("nothing is loaded")
        feeds, at = {}, 0
        for name, dtype, shape, size, places in tensors:
            if places is not None:
                feeds[name] = self._join(dtype, shape, places)
                continue
            raw = body[at : at + size]
            feeds[name] = strings.array(raw, shape) if dtype == "string" else np.frombuffer(raw, dtype).reshape(shape)
            at += wire.padded(size)
        begin = time.perf_counter()
        outputs = self._executable.run(feeds)
        seconds = time.perf_counter() - begin
        arrays = {name: np.asarray(value, order="C") for name, value in outputs.items()}
        layout = tuple([(name, array.dtype, array.shape) for name, array in arrays.items()])
        head = self._heads.get(layout)
        if head is None:
            return self._answer(arrays, layout, seconds)
        return wire.frame(head, wire.laid_out([[_data(array)] for array in arrays.values()]), seconds)

    def _answer(self, arrays: Mapping[str, np.ndarray], layout: Hashable, seconds: float) -> list[Piece]:
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
        head = wire.header(["done", listed])
        if same:
            if len(self._heads) >= _REMEMBERED:
                self._heads.clear()
            self._heads[layout] = head
        return wire.frame(head, wire.laid_out(pieces), seconds)

    def _join(self, dtype: str, shape: list[int], places: list[tuple[int, int]]) -> np.ndarray:
        kind = np.dtype(dtype)
        parts = [np.frombuffer(self._shared, kind, size // kind.itemsize, offset) for offset, size in places]
        whole: np.ndarray = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return (whole if whole.flags.aligned else whole.copy()).reshape(shape)


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
