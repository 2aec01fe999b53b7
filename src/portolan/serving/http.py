"""The HTTP door: a connection as an asyncio protocol. What is read is in reading.py; here requests are admitted, routed
and answered.

Requests of one connection are answered in order; a client that goes away takes its waiting calls along.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from portolan.serving.bounds import inflate, too_large
from portolan.serving.calls import Refusal
from portolan.serving.direct import Direct
from portolan.serving.heads import Head
from portolan.serving.reading import HeadTooLarge, Reading
from portolan.serving.request import Request
from portolan.serving.responses import Response, error, raw

if TYPE_CHECKING:
    from portolan.serving.door import Door

_PAUSE_AT: Final = 64
_LINGER: Final = 2.0


class Connection:
    """One client's connection: an asyncio.BufferedProtocol in all but name, which a compiled class cannot inherit."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._reading = Reading(door, self)
        self._transport: asyncio.Transport | None = None
        self._direct: Direct | None = None
        self._waiting: deque[Request] = deque()
        self._blocked: float | None = None
        self._paused = False

    @property
    def peer(self) -> str:
        """The client's address."""
        name = self.extra("peername")
        return str(name[0]) if isinstance(name, tuple) and name else "local"

    def extra(self, key: str) -> object:
        """What the transport knows."""
        return None if self._transport is None else self._transport.get_extra_info(key)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self._transport = cast(asyncio.Transport, transport)
        self._direct = self._reading.direct = Direct(self._transport)
        crowded = len(self._door.connections) >= self._door.bounds.connections
        self._door.connections.add(self)
        if crowded:
            self._refuse(Refusal("overloaded", "too many connections", 1.0))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: what it asked for and nobody runs yet is taken back."""
        self._door.connections.discard(self)
        self._transport = None
        if self._direct is not None:
            self._direct.let_go()
            self._direct = None
        self._reading.forget(gone=True)
        while self._waiting:
            self._waiting.popleft().end(gone=True)

    def eof_received(self) -> bool:
        """The client sends no more. Who closes a connection cannot be told from who closes half of it: it has gone."""
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._reading.space()

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        try:
            self._reading.came(nbytes)
        except Refusal as refusal:
            self._refuse(refusal)

    def pause_writing(self) -> None:
        """The client does not read its answers: no more of its requests are read."""
        self._blocked = self._door.loop.time()
        self._hold()

    def resume_writing(self) -> None:
        """It reads again."""
        self._blocked = None
        self._resume()

    # What the reading calls.

    def admit(self, request: Request) -> None:
        """What can be refused is refused before its body is read."""
        door = self._door
        if request.head.size > door.bounds.body:
            raise too_large(request.head.size, door.bounds.body)
        if len(self._waiting) >= door.bounds.pipelined:
            raise Refusal("too_many", "too many requests wait for their answers on this connection", 1.0)
        if door.admit is not None:
            door.admit(request)

    def go_on(self) -> None:
        """Tells the client that its body is wanted, unless answers come before."""
        if self._transport is not None and not self._waiting:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def take(self, request: Request) -> None:
        """A request is complete."""
        self._waiting.append(request)
        if len(self._waiting) >= _PAUSE_AT:
            self._hold()
        self._route(request)

    # What the door and the routes do.

    def answer(self, request: Request, response: Response) -> None:
        """Sends what can be sent in order."""
        if self._transport is None or self._direct is None:
            return
        request.close = request.close or response.close or self._door.draining
        if self._door.noted is not None:
            self._door.noted(request, response)
        request.ready = raw(response, close=request.close, body=request.head.method != b"HEAD")
        waiting = self._waiting
        while waiting and waiting[0].ready is not None:
            first = waiting.popleft()
            self._direct.send(first.ready or ())
            first.ready = None
            first.end()
            if first.close:
                self._finish()
                return
        request.own()
        if self._paused and len(waiting) < _PAUSE_AT:
            self._resume()

    def check(self, now: float) -> None:
        """Ends the connection if it is too slow, or idle for too long."""
        bounds, transport, reading = self._door.bounds, self._transport, self._reading
        reading.forget_expected()  # nothing came of it
        if transport is None:
            return
        if reading.closed:
            if now - reading.since > _LINGER:
                transport.abort()
        elif self._blocked is not None and now - self._blocked > bounds.write_seconds:
            transport.abort()
        elif reading.late(now):
            self._refuse(Refusal("invalid", "the request came too slowly"), 408)
        elif not reading.inside and not self._waiting and now - reading.since > bounds.keep_alive:
            transport.close()

    def shut(self) -> None:
        """Ends the connection now if nothing is under way on it."""
        if not self._waiting and not self._reading.inside and self._transport is not None:
            self._transport.close()

    def _route(self, request: Request) -> None:
        door = self._door
        try:
            if request.head.coding:
                request.body = inflate(request.body, request.head.coding, door.bounds.inflated)
            door.route(request)
        except Refusal as refusal:
            self.answer(request, error(refusal))
        except Exception as bug:
            self.answer(request, error(Refusal("failed", f"a bug in the server: {type(bug).__name__}")))
            context = {"message": "a bug in the server", "exception": bug}
            door.loop.call_exception_handler(context)
        finally:
            if request.place >= 0:
                request.give_back(door.arena)

    def _refuse(self, refusal: Refusal, status: int | None = None) -> None:
        """Answers what cannot be read any further, and ends the connection."""
        reading = self._reading
        if reading.closed:
            return
        reading.forget(gone=False)
        last = Request(self, Head(b"", reading.url, {}, True, 0, 0))
        last.since = reading.since
        self._waiting.append(last)
        status = 431 if isinstance(refusal, HeadTooLarge) else status
        self.answer(last, error(refusal, status, close=True))

    def _finish(self) -> None:
        """The last answer is on its way. What the client still sends is thrown away for a moment: closing at once would
        reset the connection, and the client might never see the answer.
        """
        transport, reading = self._transport, self._reading
        unread = reading.closed or reading.inside
        reading.closed, reading.since = True, self._door.loop.time()
        while self._waiting:
            self._waiting.popleft().end(gone=True)
        if transport is None:
            return
        if unread and transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def _hold(self) -> None:
        if not self._paused and self._transport is not None and not self._reading.closed:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and self._blocked is None and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
