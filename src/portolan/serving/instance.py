"""A replica, seen from the front: its process, its socket, the batch it runs. All on the front's loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import threading
from collections import deque
from typing import Any, Literal, Protocol

from portolan.core.scratch import Scratch
from portolan.serving import wire
from portolan.serving.arena import Arena
from portolan.serving.calls import Piece
from portolan.serving.source import Source
from portolan.worker.memory import default_memory_limit
from portolan.worker.transport import environment, started

_TAIL = 4000
_MODULE = "portolan.serving.replica"


class Owner(Protocol):
    """Whom a replica reports to."""

    def on_ready(self, instance: Instance, told: dict[str, Any]) -> None:
        """The model is loaded and warm."""

    def on_done(self, instance: Instance, batch: Any, frame: wire.Frame) -> None:
        """A batch has run; the frame's body is good during this call only."""

    def on_failed(self, instance: Instance, batch: Any, kind: str, message: str) -> None:
        """A batch raised, or loading did (`batch` is None); the process lives on."""

    def on_gone(self, instance: Instance, batches: list[Any], reason: str) -> None:
        """The process is gone, with the batches it had: the first was running."""


class Instance:
    """One replica.

    Args:
        source: what it loads.
        arena: the memory it shares with the front.
        owner: told of everything that happens.
        cap: rows of the largest batch.
        measure: whether it has to time batches of all sizes.

    Attributes:
        state: what it is doing; `stopping` is on purpose.
        since: when the state began, on the loop's clock.
        born: when it was started.
        loaded: whether it got as far as a warm model.
        busy: seconds spent running batches.
    """

    def __init__(self, source: Source, arena: Arena, owner: Owner, *, cap: int, measure: bool) -> None:
        self.state: Literal["starting", "free", "busy", "stopping", "gone"] = "starting"
        self.busy = 0.0
        self.batches: deque[Any] = deque()
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self.born = self.since = self._loop.time()
        self.loaded = False
        self._tail = bytearray()
        self._reader = wire.Reader()
        self._left: list[memoryview] = []
        self._why: str | None = None
        self._sock, theirs = socket.socketpair()
        try:
            limit = source.limits.memory or default_memory_limit()
            arguments = [str(theirs.fileno()), str(arena.fd), str(limit)]
            self._scratch = _scratch()
            self._process = subprocess.Popen(
                started(source.python, _MODULE, arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment(source.python, None if self._scratch is None else self._scratch.environment),
                pass_fds=(theirs.fileno(), arena.fd),
                start_new_session=True,  # Ctrl-C is for the supervisor: replicas finish what they run
                bufsize=0,
            )
        except BaseException:
            self._sock.close()
            raise
        finally:
            theirs.close()
        self._stderr = self._process.stderr
        self._sock.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._loop.add_reader(self._sock.fileno(), self._readable)
        if self._stderr is not None:
            os.set_blocking(self._stderr.fileno(), False)
            self._loop.add_reader(self._stderr.fileno(), self._printed)
        asked = {
            "folder": source.folder,
            "cap": cap,
            "inputs": [spec.to_json() for spec in source.signature.inputs],
            "outputs": [spec.to_json() for spec in source.signature.outputs],
            "samples": source.samples,
            "measure": measure,
        }
        self._write(wire.frame(wire.header(["load", asked])))

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def run(self, batch: Any, head: bytes, body: list[Piece]) -> None:
        """Runs a batch, after those it has; the answer comes to the owner."""
        self.batches.append(batch)
        if self.state == "free":
            self.state, self.since = "busy", self._loop.time()
        self._write(wire.frame(head, body))

    def hear(self) -> None:
        """Takes an answer that is there now, without waiting for the loop's next turn."""
        if self.state == "busy" and self._poll.poll(0):
            self._readable()

    def stop(self) -> None:
        """Ends the process on purpose, at once."""
        if self.state != "gone":
            self.state = "stopping"
            self._end("stopped")

    def kill(self, reason: str) -> None:
        """Ends the process because something is wrong with it."""
        if self.state not in ("gone", "stopping"):
            self._end(reason)

    def cost(self) -> tuple[int, float]:
        """Resident bytes, and seconds of processor time since it started; zeros once it is gone."""
        try:
            with open(f"/proc/{self.pid}/statm") as file:  # noqa: PTH123 - read often, from memory
                resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            with open(f"/proc/{self.pid}/stat") as file:  # noqa: PTH123
                fields = file.read().rpartition(")")[2].split()
            return resident, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return 0, 0.0

    def _write(self, pieces: list[Piece]) -> None:
        waiting = bool(self._left)
        if not waiting and len(pieces) == 1:  # nearly always, and cheaper than a list of one
            pieces = self._rest(pieces[0])
        self._left.extend([memoryview(piece) for piece in pieces if len(piece)])
        if self._left and not waiting:
            self._flush()
            if self._left:
                self._loop.add_writer(self._sock.fileno(), self._flush_more)

    def _rest(self, piece: Piece) -> list[Piece]:
        """Sends what the kernel takes of it now; gives what is left."""
        try:
            sent = self._sock.send(piece)
        except OSError:  # no room, or it is gone: whoever sends the rest finds out
            sent = 0
        return [] if sent == len(piece) else [memoryview(piece)[sent:]]

    def _flush(self) -> None:
        left = self._left
        try:
            while left:
                wire.drop_sent(left, self._sock.sendmsg(left[:256]))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # it is gone: the reading side will notice
            left.clear()

    def _flush_more(self) -> None:
        self._flush()
        if not self._left:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        reader = self._reader
        try:
            count = self._sock.recv_into(reader.space())
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            count = 0
        if not count:
            return self._end(None)
        reader.feed(count)
        try:
            while self.state != "gone" and (frame := reader.next()) is not None:
                self._handle(frame)
        except ValueError as error:
            self._end(f"it answered nonsense: {error}")
        return None

    def _handle(self, frame: wire.Frame) -> None:
        batch = self.batches.popleft() if self.batches else None
        now = self._loop.time()
        if self.state == "busy":
            self.busy += now - self.since
        if self.state != "stopping":
            self.state = "busy" if self.batches else "free"
        self.since = now
        kind = frame.header[0]
        if kind == "done":
            self._owner.on_done(self, batch, frame)
        elif kind == "ready":
            self._owner.on_ready(self, frame.header[1])
        else:
            self._owner.on_failed(self, batch, str(frame.header[1]), str(frame.header[2]))

    def _printed(self) -> None:
        if self._stderr is None:
            return
        try:
            raw = os.read(self._stderr.fileno(), 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            raw = b""
        if not raw:
            self._loop.remove_reader(self._stderr.fileno())
            return
        self._tail += raw
        del self._tail[:-_TAIL]

    def _end(self, reason: str | None) -> None:
        """Kills the process and tells the owner once it is known how it ended."""
        if self.state == "gone":
            return
        wanted = self.state == "stopping"
        self.state, self._why = "gone", "stopped" if wanted else reason
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._left.clear()
        # It may be on its way out already: only what is still there after a moment is killed, so that the signal that
        # ended it can be told.
        if reason is not None or wanted:
            self._kill()
        self._reap(0)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _reap(self, tries: int) -> None:
        code = self._process.poll()
        if code is None:
            if tries == 20:
                self._kill()
            self._loop.call_later(0.002 if tries < 50 else 0.1, self._reap, tries + 1)
            return
        self._printed()
        if self._stderr is not None:
            with contextlib.suppress(ValueError, OSError):
                self._loop.remove_reader(self._stderr.fileno())
            self._stderr.close()
            self._stderr = None
        if self._scratch is not None:  # weights may lie there: the loop does not wait for the disk
            threading.Thread(target=self._scratch.close).start()
        batches = list(self.batches)
        self.batches.clear()
        self._owner.on_gone(self, batches, self._why or self._obituary(code))

    def _obituary(self, code: int) -> str:
        lines = bytes(self._tail).decode(errors="replace").strip().splitlines()
        if code < 0:
            return f"it was ended by {signal.Signals(-code).name}"
        return f"it ended with code {code}: {lines[-1][:300] if lines else 'it printed nothing'}"


def _scratch() -> Scratch | None:
    """For what a runtime unpacks; a full disk leaves a replica without it, and no model without a replica."""
    try:
        return Scratch("portolan-replica-")
    except OSError:
        return None
