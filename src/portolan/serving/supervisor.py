"""The supervisor: owns the listening sockets, starts the front, again when it falls, and stops it in order."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from portolan.core.scratch import Scratch
from portolan.errors import PortolanError, UsageError, rebuilt
from portolan.serving.kept import memory
from portolan.serving.settings import Settings
from portolan.worker.transport import environment

_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
_BACKLOG = 1024
#: Seconds beyond the grace after which a front that does not end is killed.
_PATIENCE = 5.0
Told = Callable[[dict[str, Any]], None]


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UsageError: the address is taken, or is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        sock.close()
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot listen on `{host}:{port}`: {why.lower()}", hint="choose another with `--host` and `--port`"
        ) from error
    return sock


class Supervisor:
    """Keeps one front running.

    Args:
        settings: of the server.
        sockets: that it listens on.
        told: called with each line of the front's status.
    """

    def __init__(self, settings: Settings, sockets: list[socket.socket], told: Told) -> None:
        self._settings = settings
        self._sockets = sockets
        self._told = told
        self._stopping: float | None = None
        self._front: subprocess.Popen[bytes] | None = None
        self._was_ready = False
        self._counts = memory()
        self._failure: PortolanError | None = None

    def run(self) -> None:
        """Returns when the server has stopped in order.

        Raises:
            PortolanError: it could not start; why.
        """
        pause = _PAUSE
        with self._signals() as woken:
            while self._stopping is None:
                begin = time.monotonic()
                with Scratch("portolan-server-") as scratch:
                    code = self._once(woken, scratch)
                if self._stopping is not None or code == 0:
                    break
                if not self._was_ready:
                    raise self._failure or PortolanError(f"the server ended with code {code} before it was ready")
                pause = _PAUSE if time.monotonic() - begin > 60.0 else min(pause * 2, _LONGEST_PAUSE)
                self._told({"restarting": True, "code": code})
                time.sleep(pause)

    def _once(self, woken: int, scratch: Scratch) -> int:
        """One life of a front, whose temporary files lie in `scratch`; its exit code."""
        settings, status, lifeline = os.pipe(), os.pipe(), os.pipe()
        given = [settings[0], status[1], lifeline[0], self._counts, *(sock.fileno() for sock in self._sockets)]
        argv = [sys.executable, "-P", "-m", "portolan.serving.front", *map(str, given)]
        self._front = subprocess.Popen(
            argv,
            pass_fds=[*given, *scratch.descriptors],  # it answers what it took also when this process is killed
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            env=environment(None, scratch.environment),
        )
        for fd in (settings[0], status[1], lifeline[0]):
            os.close(fd)
        try:
            with contextlib.suppress(BrokenPipeError), os.fdopen(settings[1], "wb") as file:
                asked = {"settings": self._settings.to_json(), "first": not self._was_ready}
                file.write(json.dumps(asked).encode())
            if self._stopping is not None:
                self._front.terminate()
            self._follow(status[0], woken)
        finally:
            os.close(status[0])
            os.close(lifeline[1])
        return self._front.wait()

    def _follow(self, status: int, woken: int) -> None:
        """Reads the front's status until it ends."""
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(status, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(0.5):
                    raw = os.read(key.fd, 1 << 16)
                    if key.fd == status:
                        if not raw:
                            return
                        *lines, rest = (rest + raw).split(b"\n")
                        for line in lines:
                            self._hear(json.loads(line))
                self._hurry()

    def _hear(self, data: dict[str, Any]) -> None:
        if "ready" in data:
            self._was_ready = True
        if "closing" in data:
            for sock in self._sockets:
                sock.close()
            self._sockets.clear()
        if (problem := data.get("error")) is not None and not self._was_ready:
            self._failure = rebuilt(problem)
        self._told(data)

    def _hurry(self) -> None:
        late = self._stopping is not None and time.monotonic() - self._stopping > self._settings.grace + _PATIENCE
        if late and self._front is not None and self._front.poll() is None:
            self._front.kill()

    def stop(self) -> None:
        """Asks the front to drain and end; asked again, ends it at once."""
        again, self._stopping = self._stopping is not None, self._stopping or time.monotonic()
        if self._front is not None and self._front.poll() is None:
            self._front.send_signal(signal.SIGKILL if again else signal.SIGTERM)

    def reload(self) -> None:
        """Asks the front to load every bundle again."""
        if self._front is not None and self._front.poll() is None:
            self._front.send_signal(signal.SIGHUP)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[int]:
        """Takes the signals while it runs; gives a descriptor that wakes up when one comes."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        before: dict[signal.Signals, Any] = {}
        main = threading.current_thread() is threading.main_thread()
        wake = signal.set_wakeup_fd(write, warn_on_full_buffer=False) if main else -1
        if main:
            for number in (signal.SIGTERM, signal.SIGINT):
                before[number] = signal.signal(number, lambda *_: self.stop())
            before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: self.reload())
        try:
            yield read
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if main:
                signal.set_wakeup_fd(wake)
            os.close(read)
            os.close(write)
