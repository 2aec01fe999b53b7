"""What the connections of the HTTP door share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from portolan.serving.arena import LARGE, Arena
from portolan.serving.bounds import Bounds
from portolan.serving.heads import Heads
from portolan.serving.http import Connection
from portolan.serving.request import Request
from portolan.serving.responses import Response


class Door:
    """What all connections share.

    Args:
        route: what to do with a complete request: it answers now or later, or raises Refusal.
        arena: where large bodies go.
        bounds: of sizes and times.

    Attributes:
        admit: asked when a request's head is there, before its body is read; raises Refusal. Tokens, rates and
            numbers of requests are checked here.
        noted: told of every answer, with the request it is for; for the log.
        connections: those that are open.
        draining: whether every answer is to be the last of its connection.
    """

    def __init__(self, route: Callable[[Request], None], arena: Arena, bounds: Bounds | None = None) -> None:
        self.route = route
        self.arena = arena
        self.bounds = bounds or Bounds()
        self.admit: Callable[[Request], None] | None = None
        self.noted: Callable[[Request, Response], None] | None = None
        self.connections: set[Connection] = set()
        self.draining = False
        # One buffer for all connections: it is read into and emptied in one step of the loop.
        self.buffer = bytearray(LARGE)
        self.view = memoryview(self.buffer)
        self.heads = Heads()
        self.loop = asyncio.get_running_loop()

    def connection(self) -> asyncio.BufferedProtocol:
        """The protocol of a new connection."""
        return cast(asyncio.BufferedProtocol, Connection(self))

    def sweep(self) -> None:
        """About once a second: ends connections that are too slow or idle for too long."""
        now = self.loop.time()
        for connection in list(self.connections):
            connection.check(now)

    def shut(self) -> None:
        """Ends the connections on which nothing is under way; the others end with their answers."""
        self.draining = True
        for connection in list(self.connections):
            connection.shut()
