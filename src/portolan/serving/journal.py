"""What the server says while it runs: one JSON object per line, events always and every request if asked for.

A thread writes, so neither a slow disk nor a pipe that nobody reads holds up the loop. What cannot be written is
dropped and counted; the next line that can be written says how many were lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_PENDING = 4 * 2**20
_EVERY = 0.2
_encode = json.JSONEncoder(separators=(",", ":"), default=str, ensure_ascii=False).encode


class Journal:
    """A log of JSON lines.

    Args:
        path: the file, appended to, and opened again when it was moved away; None for stderr.
        access: whether to keep a line per request.
        now: seconds since the epoch.

    Attributes:
        lost: lines that could not be written so far.
    """

    def __init__(self, path: Path | None = None, *, access: bool = False, now: Callable[[], float] = time.time) -> None:
        self.wants_access = access
        self.lost = 0
        self._path, self._now = path, now
        self._told = 0
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        self._broken_line = False
        self._fd = -1 if path is None else _open(path)
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    def event(self, event: str, **fields: Any) -> None:
        """Something happened that whoever runs the server wants to know."""
        self._put({"time": _stamp(self._now()), "event": event, **fields})
        self._wake.set()

    def access(self, **fields: Any) -> None:
        """A request was answered."""
        if self.wants_access:
            self._put({"time": _stamp(self._now()), "event": "request", **fields})

    def close(self) -> None:
        """Writes what waits."""
        self._ended.set()
        self._wake.set()
        self._thread.join(2)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _put(self, fields: dict[str, Any]) -> None:
        line = _encode(fields).encode(errors="replace") + b"\n"
        if self._waiting + len(line) > _PENDING:
            self.lost += 1
            return
        self._waiting += len(line)
        self._lines.append(line)

    def _work(self) -> None:
        while not self._ended.is_set():
            self._wake.wait(_EVERY)
            self._wake.clear()
            self._flush()
        self._flush()

    def _flush(self) -> None:
        while self._lines:
            chunk: list[bytes] = []
            with contextlib.suppress(IndexError):
                while len(chunk) < 1000:
                    chunk.append(self._lines.popleft())
            self._waiting -= sum(map(len, chunk))
            if not self._write(chunk):
                self.lost += len(chunk)
                return
        if self.lost > self._told:
            lost, self._told = self.lost - self._told, self.lost
            fields = {"time": _stamp(self._now()), "event": "log_lines_lost", "lines": lost}
            if not self._write([_encode(fields).encode() + b"\n"]):
                self._told -= lost

    def _write(self, chunk: list[bytes]) -> bool:
        """Whether it was written. A line of which only the start was is ended before the next."""
        data = memoryview((b"\n" if self._broken_line else b"") + b"".join(chunk))
        try:
            fd = self._target()
            while data:
                data = data[os.write(fd, data) :]
                self._broken_line = bool(data)
        except OSError:
            return False
        return True

    def _target(self) -> int:
        if self._path is None:
            return sys.__stderr__.fileno() if sys.__stderr__ else 2
        moved = True
        with contextlib.suppress(OSError):
            moved = self._fd < 0 or os.fstat(self._fd).st_ino != self._path.stat().st_ino
        if moved:
            fresh = _open(self._path)
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = fresh
        return self._fd


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
