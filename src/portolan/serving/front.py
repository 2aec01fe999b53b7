"""The front: one process with one loop, that holds the doors, the queues and the policy. It imports no runtime.

`python -m portolan.serving.front SETTINGS STATUS LIFELINE COUNTS SOCKET...`: descriptors. Settings come as one JSON
object, status is told in lines of JSON, the lifeline ends when the supervisor does, however that happens, and what was
counted is kept in memory of the supervisor's.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import uvloop

from portolan.errors import PortolanError
from portolan.serving.bounds import Bounds
from portolan.serving.door import Door
from portolan.serving.kept import Kept
from portolan.serving.models import Models
from portolan.serving.opening import Opener
from portolan.serving.rollout import Terms
from portolan.serving.routes import Routes
from portolan.serving.settings import Settings
from portolan.serving.surroundings import Asked, Surroundings

_SWEEP = 1.0
#: Seconds that an idle connection is kept during a drain, in case its next request is on the way.
_LATE_REQUESTS = 0.5
_BACKLOG = 1024
#: Seconds for the handshake of TLS.
_HANDSHAKE = 10.0


def main(argv: Sequence[str]) -> None:
    """Serves until it is told to stop, or its supervisor is gone."""
    settings, status, lifeline, counts, *sockets = map(int, argv)
    with os.fdopen(settings, "rb") as file:
        asked = json.loads(file.read())
    listening = [socket.socket(fileno=fd) for fd in sockets]
    front = Front(
        Settings.from_json(asked["settings"]), status, lifeline, listening, Kept(counts), first=asked["first"]
    )
    code = uvloop.run(front.run(), loop_factory=Loop)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Loop(uvloop.Loop):
    """uvloop's own clock stands still during a turn and counts milliseconds, which is longer than many batches take."""

    time = staticmethod(time.monotonic)


class Front:
    """The process's parts, from start to drain.

    Args:
        settings: of the server.
        status: descriptor that the supervisor reads.
        lifeline: descriptor that ends with the supervisor.
        sockets: where HTTP is listened for.
        kept: what was counted.
        first: whether a model that cannot be loaded ends the server; a front that takes over serves what it can.
    """

    def __init__(
        self,
        settings: Settings,
        status: int,
        lifeline: int,
        sockets: list[socket.socket],
        kept: Kept,
        *,
        first: bool,
    ) -> None:
        self._settings = settings
        self._status = status
        self._lifeline = lifeline
        self._sockets = sockets
        self._kept = kept
        self._first = first
        self._around: Surroundings | None = None

    async def run(self) -> int:
        """Serves; gives the exit code."""
        loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        models = Models(
            Opener(self._settings),
            arena_bytes=self._settings.arena,
            terms=Terms.read(self._settings.terms),
            told=self._say,
            kept=self._kept.last,
        )
        for name in self._settings.bundles:
            models.name(name)
        routes = Routes(models, control=self._settings.control)
        door = Door(routes, models.arena, Bounds(**self._settings.bounds))
        try:
            around = Surroundings(Asked(**self._settings.doors), self._settings.host, models, routes, door)
            self._around = around
            await around.start()
        except PortolanError as error:
            self._say({"failed": None, **error.to_json()})
            return 1
        self._watch(loop, models)
        listen = partial(loop.create_server, door.connection, backlog=_BACKLOG, **_secure(around.tls))
        servers = [await listen(sock=sock.dup()) for sock in self._sockets]
        sweeper = loop.create_task(_sweep(door, models, self._kept))
        try:
            if not await self._load(models):
                return 1
            if not self._stop.is_set():
                self._say({"ready": models.index(True), "pid": os.getpid()})
            _calm_collector()
            await self._stop.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.grace):
                    await self._drain(models, door, servers, around)
            return 0
        finally:
            sweeper.cancel()
            models.close()
            around.close()

    def _watch(self, loop: asyncio.AbstractEventLoop, models: Models) -> None:
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # Ctrl-C reaches all; the supervisor says what it means
        loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(self._reload(models)))

        def supervisor_ended() -> None:
            loop.remove_reader(self._lifeline)
            self._stop.set()

        loop.add_reader(self._lifeline, supervisor_ended)

    async def _load(self, models: Models) -> bool:
        tasks = {name: asyncio.ensure_future(models.load(name, {})) for name in self._settings.bundles}
        stopped = asyncio.ensure_future(self._stop.wait())
        while pending := [task for task in tasks.values() if not task.done()]:
            await asyncio.wait([*pending, stopped], return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                for task in pending:
                    task.cancel()
        stopped.cancel()
        for name, task in tasks.items():
            error = None if task.cancelled() else task.exception()
            if error is None:
                continue
            cause = error.__cause__
            told = cause if isinstance(cause, PortolanError) else PortolanError(f"the model `{name}`: {error}")
            self._say({"failed": name, **told.to_json()})
            if self._first:
                return False
        return True

    async def _reload(self, models: Models) -> None:
        for name in self._settings.bundles:
            try:
                await models.load(name, {})
            except Exception as error:  # whatever it is, what served before serves on
                self._say({"kept": name, "reason": str(error)})

    async def _drain(self, models: Models, door: Door, servers: list[Any], around: Surroundings) -> None:
        """Readiness first, then no new connections, then every answer is its connection's last, then the end."""
        loop = asyncio.get_running_loop()
        models.unready()
        await asyncio.sleep(self._settings.drain)
        for server in servers:
            server.close()
        others = loop.create_task(around.close_doors(self._settings.grace))
        self._say({"closing": True})  # the supervisor's copies of the sockets must close too
        for sock in self._sockets:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError, OSError):
                while True:  # what the kernel has accepted already is answered
                    await loop.connect_accepted_socket(door.connection, sock.accept()[0], **_secure(around.tls))
            sock.close()
        door.draining = True
        await asyncio.sleep(_LATE_REQUESTS)
        while door.connections:
            door.shut()
            await asyncio.sleep(0.02)
        await others
        await models.drain()

    def _say(self, data: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            os.write(self._status, json.dumps(data).encode() + b"\n")
        if self._around is not None:
            self._around.event("server", **data)


def _secure(tls: ssl.SSLContext | None) -> dict[str, Any]:
    """What a server and a connection of its own want to know of TLS."""
    return {} if tls is None else {"ssl": tls, "ssl_handshake_timeout": _HANDSHAKE}


def _calm_collector() -> None:
    """What was loaded stays, and requests make no cycles: the collector need not look often, nor at everything."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def _sweep(door: Door, models: Models, kept: Kept) -> None:
    written: dict[str, Any] = {}
    while True:
        await asyncio.sleep(_SWEEP)
        door.sweep()
        counted = models.counted()
        if counted != written:
            kept.write(counted)
            written = counted


if __name__ == "__main__":
    main(sys.argv[1:])
