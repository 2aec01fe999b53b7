"""Bytes of a connection become requests. Parsing is httptools', past which known heads go; bodies from 64 KiB on are
received where the replicas will read them, so that a large tensor is never copied here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import httptools

from portolan.serving.arena import LARGE
from portolan.serving.bounds import too_large
from portolan.serving.calls import Piece, Refusal
from portolan.serving.direct import Direct
from portolan.serving.expected import Expected
from portolan.serving.heads import KNOWN, ONCE, Head
from portolan.serving.request import Link, Request

if TYPE_CHECKING:
    from portolan.serving.door import Door

#: What is read first on a connection whose last body was large: the head. The body then goes to its place at once.
_FIRST: Final = 4096


class Taker(Link, Protocol):
    """The connection, as far as what is read on it concerns it."""

    def admit(self, request: Request) -> None:
        """A head is there: raises Refusal if the body had better not be read."""

    def go_on(self) -> None:
        """The client waits to be told that its body is wanted."""

    def take(self, request: Request) -> None:
        """A request is complete."""


class HeadTooLarge(Refusal):
    """A head beyond the bounds has a status of its own."""


class Reading:
    """What is read on one connection.

    Args:
        door: whose buffer, memory, bounds and known heads are used.
        taker: told of the requests.

    Attributes:
        inside: whether it is between the first byte of a request and its last.
        since: when that began, or the last one ended, on the loop's clock.
        closed: what still comes is not read.
        url: of the request that came last, or what has come of it.
        direct: the connection's socket; None until there is one.
    """

    def __init__(self, door: Door, taker: Taker) -> None:
        self._door, self._taker = door, taker
        self._parser = httptools.HttpRequestParser(self)
        self.direct: Direct | None = None
        self.inside = self.closed = False
        self.since = door.loop.time()
        self.url = b""
        self._large = self._parsed = False  # whether the last body was large, and whether the parser read its head
        self._headers: dict[bytes, bytes] = {}
        self._raw: bytes | None = None  # the head that the parser reads, if it is to be remembered
        self._head = 0
        self._parts: list[bytes] = []
        self._got = 0
        self._request: Request | None = None
        self._target: memoryview | None = None  # where a large body goes
        self._bulk = False  # and it goes there straight, past the parser
        self._whole = False  # and all of it is there
        self._again: tuple[bytes, Head] | None = None  # the head of the last large body
        self._expected: Expected | None = None

    def space(self) -> memoryview:
        """Where the next bytes go."""
        if self._bulk and self._target is not None:
            return self._target[self._got :]
        if not self._large or self.closed:
            return self._door.view
        if self._expected is None and self._again is not None and not self.inside:
            self._expected = Expected.after(self._taker, *self._again, self._door.arena)
        return self._door.view[:_FIRST] if self._expected is None else self._expected.room

    def came(self, count: int) -> None:
        """So many bytes have come to where `space` said.

        Raises:
            Refusal: what comes cannot be read any further.
        """
        if self.closed:
            return
        try:
            if self._expected is not None:
                self._take_expected(self._expected, count)
            elif self._bulk:
                self._fill(count)
            else:
                self._read(count)
        except httptools.HttpParserCallbackError as wrong:
            if isinstance(wrong.__context__, Refusal):
                raise wrong.__context__ from None
            raise
        except httptools.HttpParserError as wrong:
            raise Refusal("invalid", f"this is no HTTP request: {wrong}") from wrong

    def late(self, now: float) -> bool:
        """Whether a request comes too slowly; bytes that the kernel holds have come."""
        if not self.inside or self.direct is None:
            return False
        bounds = self._door.bounds
        late = now - self.since - bounds.head_seconds
        return late > self._got / bounds.rate and late > (self._got + self.direct.there()) / bounds.rate

    def forget_expected(self) -> None:
        """Frees what is held for a request that has not begun to come; it is taken anew when something comes."""
        if self._expected is not None:
            self._expected.request.give_back(self._door.arena)
            self._expected = None

    def forget(self, *, gone: bool) -> None:
        """Reads no further, and frees what has come of a request; with `gone`, because the client is."""
        self.closed, self.inside = True, False
        self.forget_expected()
        self._target, self._bulk, self._whole, self._parts = None, False, False, []
        request, self._request = self._request, None
        if request is not None:
            request.give_back(self._door.arena)
            request.end(gone=gone)

    # What httptools calls.

    def on_message_begin(self) -> None:
        """A request begins."""
        self.inside = True
        self.since = self._door.loop.time()
        self._headers, self.url, self._head = {}, b"", 0

    def on_url(self, url: bytes) -> None:
        """The path, or a piece of it."""
        self.url = self.url + url if self.url else url
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
        head = Head.of(parser.get_method(), self.url, self._headers, close=not parser.should_keep_alive())
        raw, self._raw = self._raw, None
        if raw is not None:
            self._door.heads.remember(raw, head)
        self._begin(head)
        if b"expect" in head.headers:
            self._taker.go_on()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        start = self._got
        self._got += len(body)
        if self._target is not None:
            self._target[start : self._got] = body
            return
        if self._got > self._door.bounds.body:
            raise too_large(self._got, self._door.bounds.body)
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """A request is complete."""
        self.since = self._door.loop.time()
        if self._request is None:
            self.inside = False
            return
        body: Piece
        if self._target is not None:
            body, self._target = self._target, None
        else:
            body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._complete(self._request, body)

    # What comes, and what is made of it.

    def _read(self, count: int) -> None:
        """Takes what is in the door's buffer."""
        self._look()
        start = 0 if self.inside else self._take_known(count)
        while start < count and not self.closed:
            start = self._feed(start, count)
        self._bulk = self._target is not None

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
            self.since = door.loop.time()
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
                    self.inside = True
                    break
                self.on_message_complete()
            if self.closed:
                return count
        return start

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
        self.since = self._door.loop.time()
        self._request = expected.request  # whoever refuses it gives its memory back
        self._admit(expected.request)
        self._target, self._bulk, self.inside = expected.body, True, True
        self._fill(there)
        if count > expected.end:
            self._read_again(bytes(expected.room[expected.end : count]))

    def _read_again(self, came: bytes) -> None:
        """Takes what was received elsewhere."""
        view, start = self._door.view, 0
        while start < len(came) and not self.closed:
            if self._bulk and self._target is not None:
                end = min(start + len(self._target) - self._got, len(came))
                self._target[self._got : self._got + end - start] = came[start:end]
                self._fill(end - start)
            else:
                end = min(start + len(view), len(came))
                view[: end - start] = came[start:end]
                self._read(end - start)
            start = end

    def _begin(self, head: Head) -> Request:
        """A request whose head is there."""
        request = Request(self._taker, head)
        self._admit(request)
        self._large = False
        if head.size >= LARGE and not head.coding:
            self._large, self._target = True, request.receive(self._door.arena)
            if self._target is None:
                raise Refusal("overloaded", "no memory is left for large tensors", 1.0)
        return request

    def _admit(self, request: Request) -> None:
        """What can be refused is refused before its body is read."""
        request.since, self.url = self.since, request.head.path
        self._taker.admit(request)
        self._request, self._got = request, 0

    def _fill(self, count: int) -> None:
        self._got += count
        if self._target is None or self.direct is None:
            return
        self.direct.wake_at(len(self._target) - self._got)
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

    def _complete(self, request: Request, body: Piece) -> None:
        self._request, self.inside, self._parts = None, False, []
        if self.closed:
            request.give_back(self._door.arena)
            return
        request.body = body
        self._taker.take(request)

    def _grow(self, count: int) -> None:
        self._head += count
        if self._head > self._door.bounds.head:
            raise HeadTooLarge("too_large", f"the request's head has more than {self._door.bounds.head:,} bytes")
