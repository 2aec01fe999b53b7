"""The HTTP door: a connection as an asyncio protocol. Parsing is httptools'; bodies from 64 KiB on are received where
the replicas will read them, so that a large tensor is never copied here.

Requests of one connection are answered in order; a client that goes away takes its waiting calls along.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, cast

import httptools

from portolan.serving.arena import LARGE
from portolan.serving.bounds import inflate
from portolan.serving.calls import Piece, Refusal
from portolan.serving.direct import Direct
from portolan.serving.expected import Expected
from portolan.serving.heads import KNOWN, ONCE, Head
from portolan.serving.request import Request
from portolan.serving.responses import Response, error, raw

if TYPE_CHECKING:
    from portolan.serving.door import Door

_PAUSE_AT: Final = 64
_LINGER: Final = 2.0
#: What is read first on a connection whose last body was large: the head. The body then goes to its place at once.
_FIRST: Final = 4096


class Connection:
    """One client's connection: an asyncio.BufferedProtocol in all but name, which a compiled class cannot inherit."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._direct: Direct | None = None
        self._large = self._parsed = False  # whether the last body was large, and whether the parser read its head
        self._waiting: deque[Request] = deque()
        self._since = door.loop.time()
        self._reading = False  # between the first byte of a request and its last
        self._closed = False  # the last answer was given: what still comes is not read
        self._blocked: float | None = None
        self._paused = False
        self._headers: dict[bytes, bytes] = {}
        self._raw: bytes | None = None  # the head that the parser reads, if it is to be remembered
        self._url = b""
        self._head = 0
        self._parts: list[bytes] = []
        self._got = 0
        self._request: Request | None = None
        self._target: memoryview | None = None  # where a large body goes
        self._bulk = False  # and it goes there straight, past the parser
        self._whole = False  # and all of it is there
        self._again: tuple[bytes, Head] | None = None  # the head of the last large body
        self._expected: Expected | None = None

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
        self._direct = Direct(self._transport)
        crowded = len(self._door.connections) >= self._door.bounds.connections
        self._door.connections.add(self)
        if crowded:
            self._refuse(Refusal("overloaded", "too many connections", 1.0))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: what it asked for and nobody runs yet is taken back."""
        self._door.connections.discard(self)
        self._closed, self._transport = True, None
        if self._direct is not None:
            self._direct.let_go()
            self._direct = None
        self._forget_body()
        while self._waiting:
            self._waiting.popleft().end(gone=True)

    def eof_received(self) -> bool:
        """The client sends no more. Who closes a connection cannot be told from who closes half of it: it has gone."""
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        if self._bulk and self._target is not None:
            return self._target[self._got :]
        if not self._large or self._closed:
            return self._door.view
        if self._expected is None and self._again is not None and not self._reading:
            self._expected = Expected.after(self, *self._again, self._door.arena)
        return self._door.view[:_FIRST] if self._expected is None else self._expected.room

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        if self._closed:
            return
        try:
            if self._expected is not None:
                self._take_expected(self._expected, nbytes)
            elif self._bulk:
                self._fill(nbytes)
            else:
                self._read(nbytes)
        except Refusal as refusal:
            self._refuse(refusal)
        except httptools.HttpParserCallbackError as wrong:
            if not isinstance(wrong.__context__, Refusal):
                raise
            self._refuse(wrong.__context__)
        except httptools.HttpParserError as wrong:
            self._refuse(Refusal("invalid", f"this is no HTTP request: {wrong}"))

    def pause_writing(self) -> None:
        """The client does not read its answers: no more of its requests are read."""
        self._blocked = self._door.loop.time()
        self._hold()

    def resume_writing(self) -> None:
        """It reads again."""
        self._blocked = None
        self._resume()

    # What httptools calls.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._reading = True
        self._since = self._door.loop.time()
        self._headers, self._url, self._head = {}, b"", 0

    def on_url(self, url: bytes) -> None:
        """The path, or a piece of it."""
        self._url = self._url + url if self._url else url
        self._grow(len(url))

    def on_header(self, name: bytes, value: bytes | None) -> None:
        """One header."""
        value = value or b""
        self._grow(len(name) + len(value) + 4)
        name = name.lower()
        if name in KNOWN:
            if name in ONCE and name in self._headers:
                raise Refusal("invalid", f"the header `{name.decode()}` is given twice")
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._parsed = True
        parser = self._parser
        head = Head.of(parser.get_method(), self._url, self._headers, close=not parser.should_keep_alive())
        raw, self._raw = self._raw, None
        if raw is not None:
            self._door.heads.remember(raw, head)
        self._begin(head)
        if b"expect" in head.headers and self._transport is not None and not self._waiting:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        start = self._got
        self._got += len(body)
        if self._target is not None:
            self._target[start : self._got] = body
            return
        if self._got > self._door.bounds.body:
            raise _too_large(self._got, self._door.bounds.body)
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """A request is complete."""
        self._since = self._door.loop.time()
        if self._request is None:
            self._reading = False
            return
        body: Piece
        if self._target is not None:
            body, self._target = self._target, None
        else:
            body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._complete(self._request, body)

    def _complete(self, request: Request, body: Piece) -> None:
        self._request, self._reading, self._parts = None, False, []
        if self._closed:
            request.give_back(self._door.arena)
            return
        request.body = body
        self._waiting.append(request)
        if len(self._waiting) >= _PAUSE_AT:
            self._hold()
        self._route(request)

    # What the door does.

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
        bounds, transport = self._door.bounds, self._transport
        self._forget_expected()  # nothing came of it; it is made anew when something comes
        if transport is None or self._direct is None:
            return
        if self._closed:
            if now - self._since > _LINGER:
                transport.abort()
        elif self._blocked is not None and now - self._blocked > bounds.write_seconds:
            transport.abort()
        elif self._reading and self._slow(now, self._direct):
            self._refuse(Refusal("invalid", "the request came too slowly"), 408)
        elif not self._reading and not self._waiting and now - self._since > bounds.keep_alive:
            transport.close()

    def _slow(self, now: float, direct: Direct) -> bool:
        """Whether a request comes too slowly; bytes that the kernel holds have come."""
        bounds = self._door.bounds
        late = now - self._since - bounds.head_seconds
        return late > self._got / bounds.rate and late > (self._got + direct.there()) / bounds.rate

    def shut(self) -> None:
        """Ends the connection now if nothing is under way on it."""
        if not self._waiting and not self._reading and self._transport is not None:
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

    def _read(self, count: int) -> None:
        """Takes what is in the door's buffer."""
        self._look()
        start = 0 if self._reading else self._take_known(count)
        while start < count and not self._closed:
            start = self._feed(start, count)
        self._bulk = self._target is not None

    def _take_expected(self, expected: Expected, count: int) -> None:
        """Takes a request that was received where it belongs; or whatever came instead."""
        self._expected = None
        there = expected.came(count)
        if there < 0:
            self._again = None
            came = bytes(expected.room[:count])
            expected.request.give_back(self._door.arena)
            self._read_again(came)
            return
        self._look()
        self._since = self._door.loop.time()
        self._request = expected.request  # whoever refuses it gives its memory back
        self._admit(expected.request)
        self._target, self._bulk, self._reading = expected.body, True, True
        self._fill(there)
        if count > expected.end:
            self._read_again(bytes(expected.room[expected.end : count]))

    def _read_again(self, came: bytes) -> None:
        """Takes what was received elsewhere."""
        view, start = self._door.view, 0
        while start < len(came) and not self._closed:
            if self._bulk and self._target is not None:
                end = min(start + len(self._target) - self._got, len(came))
                self._target[self._got : self._got + end - start] = came[start:end]
                self._fill(end - start)
            else:
                end = min(start + len(view), len(came))
                view[: end - start] = came[start:end]
                self._read(end - start)
            start = end

    def _feed(self, start: int, end: int) -> int:
        """Has the parser read what is in the buffer; says how far it came. A wish to upgrade is ignored, as any server
        may: some clients send one with every request.
        """
        try:
            self._parser.feed_data(self._door.view[start:end])
        except httptools.HttpParserUpgrade as wish:
            self._parser = httptools.HttpRequestParser(self)
            return start + max(int(wish.args[0]), 1)
        return end

    def _take_known(self, count: int) -> int:
        """Takes requests whose heads are known off the buffer, past the parser; says where it stopped."""
        door, view, start = self._door, self._door.view, 0
        buffer, find = door.buffer, door.heads.find
        while start < count:
            raw, head = find(buffer, start, count)
            if head is None:
                self._raw = raw or None
                break
            end = start + len(raw)
            there = count - end
            if there < head.size < LARGE:  # the parser collects it
                break
            self._since = door.loop.time()
            request = self._begin(head)
            if self._target is None:
                start = end + head.size
                self._complete(request, buffer[end:start])
            else:
                self._again = raw, head
                got = min(there, head.size)
                start = end + got
                self._target[:got] = view[end:start]
                self._got = got
                if got < head.size:
                    self._reading = True
                    break
                self.on_message_complete()
            if self._closed:
                return count
        return start

    def _begin(self, head: Head) -> Request:
        """A request whose head is there."""
        request = Request(self, head)
        self._admit(request)
        self._large = False
        if head.size >= LARGE and not head.coding:
            self._large, self._target = True, request.receive(self._door.arena)
            if self._target is None:
                raise Refusal("overloaded", "no memory is left for large tensors", 1.0)
        return request

    def _admit(self, request: Request) -> None:
        """What can be refused is refused before its body is read."""
        door = self._door
        if request.head.size > door.bounds.body:
            raise _too_large(request.head.size, door.bounds.body)
        if len(self._waiting) >= door.bounds.pipelined:
            raise Refusal("too_many", "too many requests wait for their answers on this connection", 1.0)
        request.since = self._since
        if door.admit is not None:
            door.admit(request)
        self._request, self._got = request, 0

    def _fill(self, count: int) -> None:
        self._got += count
        if self._target is None or self._direct is None:
            return
        self._direct.wake_at(len(self._target) - self._got)
        if self._got == len(self._target):
            self._bulk = False
            if self._parsed:  # the parser still waits for this body
                self._parser, self._parsed = httptools.HttpRequestParser(self), False
            self._whole = True
            self._door.loop.call_soon(self._look)

    def _look(self) -> None:
        """Takes a large body that is there. Those of one turn of the loop are all received before any is looked at, for
        each sweeps the program out of the processor's cache; only what comes behind it on its own connection is sooner.
        """
        if self._whole:
            self._whole = False
            self.on_message_complete()

    def _grow(self, count: int) -> None:
        self._head += count
        if self._head > self._door.bounds.head:
            raise _HeadTooLarge("too_large", f"the request's head has more than {self._door.bounds.head:,} bytes")

    def _refuse(self, refusal: Refusal, status: int | None = None) -> None:
        """Answers what cannot be read any further, and ends the connection."""
        if self._closed:
            return
        request, self._request = self._request, None
        if request is not None:
            request.give_back(self._door.arena)
            request.end()
        self._forget_body()
        last = Request(self, Head(b"", self._url, {}, True, 0, 0))
        last.since = self._since
        self._closed, self._reading = True, False
        self._waiting.append(last)
        status = 431 if isinstance(refusal, _HeadTooLarge) else status
        self.answer(last, error(refusal, status, close=True))

    def _forget_expected(self) -> None:
        if self._expected is not None:
            self._expected.request.give_back(self._door.arena)
            self._expected = None

    def _forget_body(self) -> None:
        self._forget_expected()
        self._target, self._bulk, self._whole, self._parts = None, False, False, []
        if self._request is not None:
            self._request.give_back(self._door.arena)
            self._request.end(gone=True)
            self._request = None

    def _finish(self) -> None:
        """The last answer is on its way. What the client still sends is thrown away for a moment: closing at once would
        reset the connection, and the client might never see the answer.
        """
        transport, unread = self._transport, self._closed or self._reading
        self._closed, self._since = True, self._door.loop.time()
        while self._waiting:
            self._waiting.popleft().end(gone=True)
        if transport is None:
            return
        if unread and transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def _hold(self) -> None:
        if not self._paused and self._transport is not None and not self._closed:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and self._blocked is None and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()


class _HeadTooLarge(Refusal):
    """A head beyond the bounds has a status of its own."""


def _too_large(size: int, most: int) -> Refusal:
    return Refusal("too_large", f"the body has {size:,} bytes, and this server takes {most:,}")
