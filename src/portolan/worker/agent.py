"""The worker's side: answers requests on stdin and stdout until stdin ends.

Before anything else it moves the frames to a private descriptor, so that a runtime that prints to stdout prints to
stderr, and asks the kernel to end it with its controller and to bound its memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from portolan.core import environments
from portolan.core.silence import silence
from portolan.errors import PortolanError, no_space
from portolan.worker import frames
from portolan.worker.frames import Frame
from portolan.worker.memory import limit_memory, ran_out
from portolan.worker.operations import Answer, Operations

_PR_SET_PDEATHSIG = 1


class Answers(Protocol):
    """What answers requests: `Operations`, or those of another kind of worker."""

    def answer(self, request: Frame) -> Answer:
        """Does what `request` asks for."""
        ...


def main(argv: Sequence[str]) -> None:
    """Serves until the controller closes stdin. `argv` is `--memory BYTES`."""
    serve(argv, Operations)


def serve(argv: Sequence[str], made: Callable[[], Answers]) -> None:
    """Serves with the operations that `made` gives, until the controller closes stdin."""
    end_with_parent(os.getppid())
    limit_memory(int(argv[argv.index("--memory") + 1]))
    source, sink = os.dup(0), os.dup(1)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    silence()
    environments.hold()
    operations = made()
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            _answer(operations, source, sink)
    os._exit(0)


def _answer(operations: Answers, source: int, sink: int) -> None:
    request = frames.decode(lambda size: _read(source, size))
    try:
        fields, tensors = operations.answer(request)
        buffers = list(frames.encode(fields, tensors))
    except Exception as error:
        # Also an error of Portolan's may only pass on what a runtime said.
        words = " ".join(str(error).split())[:600]
        if isinstance(error, MemoryError) or ran_out(words):
            said = f": {words}" if words else ""
            buffers = _failure("OutOfMemory", f"out of memory during `{request.fields.get('op')}`{said}", None, None)
        elif _disk_full(error):
            buffers = _failure("DiskFull", f"the disk is full: {words}", None, None)
        elif isinstance(error, PortolanError):
            buffers = _failure(type(error).__name__, error.message, error.hint, error.where)
        else:
            traceback.print_exc()
            buffers = _failure("WorkerError", f"{type(error).__name__}: {words}", None, None)
    sys.stderr.flush()
    for buffer in buffers:
        while buffer:
            buffer = buffer[os.write(sink, buffer[: 1 << 20]) :]


def _disk_full(error: Exception) -> bool:
    """Runtimes that write from native code tell it in words only."""
    return no_space(error) or os.strerror(errno.ENOSPC) in str(error)


def _failure(kind: str, message: str, hint: str | None, where: str | None) -> list[memoryview]:
    problem: Mapping[str, Any] = {"type": kind, "message": message, "hint": hint, "where": where}
    empty: dict[str, np.ndarray] = {}
    return list(frames.encode({"error": problem}, empty))


def _read(fd: int, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = os.readv(fd, [view])
        if got == 0:
            raise EOFError
        view = view[got:]
    return data


def end_with_parent(parent: int) -> None:
    """Asks the kernel to end this process with the thread that started it; ends it now if `parent` is gone."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
