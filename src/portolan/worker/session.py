"""The controller's side of a worker: start it, ask it, time it out, and say why it died."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, BinaryIO, cast

import numpy as np

from portolan import errors
from portolan.core import environments
from portolan.core.scratch import Scratch
from portolan.errors import EnvironmentGone, OutOfMemory, PortolanError, WorkerCrashed, WorkerError, WorkerTimeout
from portolan.worker import frames
from portolan.worker.frames import Frame
from portolan.worker.memory import default_memory_limit, ran_out
from portolan.worker.transport import WORKER, command, environment

Reply = Frame
_TAIL = 4000


class Worker:
    """A worker process. Use it as a context manager; leaving it ends the process.

    Args:
        python: argv that starts a Python interpreter, through any transport; None for this one.
        memory_limit: bytes of memory the process may allocate; None for the default of `default_memory_limit`.
        env: further environment variables.
        module: the package module that serves there.
    """

    def __init__(
        self,
        *,
        python: Sequence[str] | None = None,
        memory_limit: int | None = None,
        env: Mapping[str, str] | None = None,
        module: str = WORKER,
    ) -> None:
        self.memory_limit = memory_limit or default_memory_limit()
        self.started = time.monotonic()
        self._python = python
        # It is always ended by a signal, and a runtime may have unpacked a model's weights by then.
        self._scratch = Scratch("portolan-worker-")
        self._stderr = tempfile.TemporaryFile(prefix="portolan-worker-")  # noqa: SIM115 - closed with the worker
        self._op = "start"
        try:
            self._process = subprocess.Popen(
                command(python, self.memory_limit, module),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment(python, {**self._scratch.environment, **(env or {})}),
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            self._stderr.close()
            self._scratch.close()
            if lost := self._lost():
                raise lost from error
            raise WorkerError(f"no worker could be started: {error.strerror}: `{(python or [''])[0]}`") from error
        if python is not None:
            _bound(self._process.pid, self.memory_limit)
        self._pipes = (cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout))
        self._stdin, self._stdout = (pipe.fileno() for pipe in self._pipes)
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stdout, False)

    @property
    def pid(self) -> int:
        """The process id of the worker, or of its transport."""
        return self._process.pid

    def ask(self, op: str, *, timeout: float, tensors: Mapping[str, np.ndarray] | None = None, **fields: Any) -> Reply:
        """Sends one request and waits for its answer.

        Args:
            op: the operation; see portolan.worker.operations.
            timeout: seconds; at its end the process is killed.
            tensors: arrays that travel with the request.
            fields: plain data that travels with the request.

        Raises:
            WorkerTimeout, WorkerCrashed, OutOfMemory: the process is gone.
            PortolanError: what the far side raised, by its class.
        """
        self._op = op
        deadline = time.monotonic() + timeout
        try:
            for buffer in frames.encode({"op": op, **fields}, tensors or {}):
                self._write(buffer, deadline)
            reply = frames.decode(lambda size: self._read(size, deadline))
        except _Late:
            self.kill()
            raise WorkerTimeout(f"no answer to `{op}` within {timeout:.3g} s", stderr=self.tail()) from None
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise self._lost() or self._obituary() from None
        except WorkerError:
            self.kill()
            raise
        if problem := reply.fields.get("error"):
            raise self._lost() or _rebuild(problem, self.tail())
        return reply

    def tail(self) -> str:
        """The end of what the worker printed."""
        if self._stderr.closed:
            return ""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _TAIL))
        return self._stderr.read().decode(errors="replace")

    def kill(self) -> None:
        """Ends the process and all that it started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Ends the process. Nothing it holds is worth a slow goodbye."""
        self.kill()
        for stream in (*self._pipes, self._stderr):
            with contextlib.suppress(OSError):
                stream.close()
        self._scratch.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _lost(self) -> EnvironmentGone | None:
        """The better reason for any failure: what the process runs in is no longer there."""
        name = environments.gone(self._python)
        if name is None:
            return None
        reason = f"the environment `{name}` was removed while it was in use"
        return EnvironmentGone(reason, hint=f"portolan env add {name}")

    def _write(self, buffer: memoryview, deadline: float) -> None:
        while buffer:
            try:
                buffer = buffer[os.write(self._stdin, buffer[: 1 << 20]) :]
            except BlockingIOError:
                _wait(self._stdin, selectors.EVENT_WRITE, deadline)

    def _read(self, size: int, deadline: float) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            try:
                got = os.readv(self._stdout, [view])
            except BlockingIOError:
                _wait(self._stdout, selectors.EVENT_READ, deadline)
                continue
            if got == 0:
                raise EOFError
            view = view[got:]
        return data

    def _obituary(self) -> WorkerError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()
            code = 0
        tail = self.tail()
        if ran_out(tail):
            return OutOfMemory(
                f"out of memory during `{self._op}` (limit {self.memory_limit / 2**30:.3g} GiB)", stderr=tail
            )
        if code < 0:
            name = signal.Signals(-code).name
            more = " (the system's memory ran out?)" if name == "SIGKILL" else ""
            killed = name == "SIGKILL"
            return WorkerCrashed(f"crashed with {name} during `{self._op}`{more}", stderr=tail, killed=killed)
        last = tail.strip().splitlines()[-1:] or ["it printed nothing"]
        return WorkerCrashed(f"ended with code {code} during `{self._op}`: {last[0]}", stderr=tail)


def _bound(pid: int, limit: int) -> None:
    """Bounds a process's memory from outside too: under an emulator the worker's own request is ignored."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError):
            resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))


class _Late(Exception):
    """The deadline has passed."""


def _wait(fd: int, event: int, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _Late
    with selectors.DefaultSelector() as selector:
        selector.register(fd, event)
        if not selector.select(left):
            raise _Late


def _rebuild(problem: Mapping[str, Any], tail: str) -> PortolanError:
    kind = getattr(errors, str(problem.get("type")), WorkerError)
    if not (isinstance(kind, type) and issubclass(kind, PortolanError)):
        kind = WorkerError
    if issubclass(kind, WorkerError):
        return kind(str(problem.get("message")), hint=problem.get("hint"), stderr=tail)
    if issubclass(kind, errors.UnknownName) or issubclass(kind, errors.GoalsNotMet):
        kind = errors.UsageError
    return kind(str(problem.get("message")), hint=problem.get("hint"), where=problem.get("where"))


def patience(usual: float) -> float:
    """Seconds to wait for one answer: PORTOLAN_WORKER_TIMEOUT, or what is usual for the operation."""
    try:
        asked = float(os.environ.get("PORTOLAN_WORKER_TIMEOUT", ""))
    except ValueError:
        return usual
    return asked if asked > 0 else usual
