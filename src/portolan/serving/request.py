"""One HTTP request on its way through the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from portolan.serving.arena import Arena
from portolan.serving.calls import Piece
from portolan.serving.heads import Head
from portolan.serving.responses import Response
from portolan.serving.wire import ALIGN

#: What is received from its first byte on is put so far from the beginning of a page. The kernel copies it from near a
#: beginning, and where both lie only a few bytes apart in their pages, processors copy much more slowly.
_APART: Final = 2048


class Link(Protocol):
    """The connection that a request came on."""

    def answer(self, request: Request, response: Response) -> None:
        """Sends the answer, after those to the requests before."""

    def extra(self, key: str) -> object:
        """What the transport knows."""

    @property
    def peer(self) -> str:
        """The client's address."""


class Request:
    """One request, as routes see it.

    Attributes:
        head: method, path and headers.
        since: when it began to arrive, on the loop's clock; only where somebody keeps a log of requests.
        body: all of it, uncompressed.
        place: where the body lies in memory shared with the replicas; -1 where it does not.
        close: whether the connection ends with the answer.
        cancel: set by a route that answers later: called when the client has gone.
        ready: the answer as bytes, from when there is one until it is sent.
        ended: set by whoever counts requests: called when the request has its answer, or its client has gone.
    """

    __slots__ = ("_connection", "_slab", "body", "cancel", "close", "ended", "head", "place", "ready", "since")

    def __init__(self, connection: Link, head: Head) -> None:
        self.head = head
        self.since = 0.0
        self.body: Piece = b""
        self.place = -1
        self.close = head.close
        self.cancel: Callable[[], None] | None = None
        self.ended: Callable[[], None] | None = None
        self._connection = connection
        self.ready: list[Piece] | None = None
        self._slab = -1

    def answer(self, response: Response) -> None:
        """Sends the answer, after those to the requests before."""
        self._connection.answer(self, response)

    @property
    def peer(self) -> str:
        """The client's address."""
        return self._connection.peer

    @property
    def peer_certificate(self) -> object:
        """The client's certificate, of a connection with mutual TLS."""
        return self._connection.extra("peercert")

    def receive(self, arena: Arena, *, before: int = 0, after: int = 0) -> memoryview | None:
        """Shared memory for a body, so that what follows its JSON part is aligned.

        Args:
            arena: where it is taken; None is the result where nothing is left.
            before, after: bytes that are to be received around the body; the result begins and ends with them.
        """
        size = self.head.size
        skip = before + -(before + self.head.json) % ALIGN + (_APART if before else 0)
        slab = arena.take(skip + size + after)
        if slab is None:
            return None
        self._slab, self.place = slab, slab + skip
        return arena.view[self.place - before : self.place + size + after]

    def lend(self, arena: Arena) -> Callable[[], None] | None:
        """Hands the body's shared memory over to whoever calls the result, once."""
        slab, self._slab = self._slab, -1
        return None if slab < 0 else lambda: arena.give(slab)

    def give_back(self, arena: Arena) -> None:
        """Frees the body's shared memory, unless it was handed over."""
        if self._slab >= 0:
            arena.give(self._slab)
            self._slab = -1

    def own(self) -> None:
        """Has an answer that others come before keep its bytes: they may lie in memory that is lent."""
        if self.ready is not None and len(self.ready) > 1:
            self.ready = [b"".join(self.ready)]

    def end(self, *, gone: bool = False) -> None:
        """The request is over; with `gone`, because its client is."""
        cancel, self.cancel = self.cancel, None
        if gone and cancel is not None:
            cancel()
        ended, self.ended = self.ended, None
        if ended is not None:
            ended()
