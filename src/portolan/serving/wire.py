"""How the front and a replica talk over their socket: a small header in JSON, then raw bytes; never pickle.

    header bytes, u32 | body bytes, u64 | seconds, f64 | header (JSON, padded with spaces) | body

The body starts at a multiple of 64 bytes in the frame, and so does every tensor in the body, so that a runtime can
mostly read it where it lies. The header is a list whose first item says what the frame is; see
portolan.serving.executor. Headers repeat themselves from batch to batch, so both sides remember what they wrote and
read; what differs each time, the seconds that a batch took, is beside it. All integers are little-endian.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, Final

from portolan.serving.calls import Piece

PREFIX: Final = struct.Struct("<IQd")
#: Offset and size in the memory that front and replicas share.
Place = tuple[int, int]
_PLACE: Final = struct.Struct("<QQ")
ALIGN: Final = 64
MOST_HEADER: Final = 16 * 2**20
MOST_BODY: Final = 16 * 2**30
_REMEMBERED, _LONGEST = 256, 4096
_JOINED: Final = 128 * 1024
_SPACES = b" " * ALIGN
_ZEROS: Final = bytes(ALIGN)


class Frame:
    """What has arrived. The body is a view of the reader's buffer: it is good until the next call of `space`."""

    __slots__ = ("body", "header", "seconds")

    def __init__(self, header: list[Any], body: memoryview, seconds: float) -> None:
        self.header = header
        self.body = body
        self.seconds = seconds


def header(data: Sequence[Any]) -> bytes:
    """A frame's header as bytes."""
    raw = json.dumps(data, separators=(",", ":")).encode()
    return raw + _SPACES[: -(PREFIX.size + len(raw)) % ALIGN]


def frame(head: bytes, body: Sequence[Piece] = (), seconds: float = 0.0) -> list[Piece]:
    """The frame as pieces to write one after another.

    Args:
        head: what `header` gave.
        body: what `laid_out` gave.
        seconds: beside the header.
    """
    size = sum(map(len, body))
    first = PREFIX.pack(len(head), size, seconds)
    if size <= _JOINED:  # pieces cost more to hand over than to copy
        return [b"".join((first, head, *body))]
    return [first + head, *body]


def laid_out(tensors: Sequence[Sequence[Piece]]) -> list[Piece]:
    """The body for tensors that each consist of pieces: every one padded to the alignment."""
    pieces: list[Piece] = []
    for parts in tensors:
        pieces.extend(parts)
        if padding := -sum(map(len, parts)) % ALIGN:
            pieces.append(_ZEROS[:padding])
    return pieces


def places(spots: Sequence[Place]) -> bytes:
    """Places as bytes."""
    return b"".join([_PLACE.pack(offset, size) for offset, size in spots])


def read_places(body: memoryview, count: int) -> list[Place]:
    """The `count` places at the beginning of a body."""
    return [_PLACE.unpack_from(body, at) for at in range(0, count * _PLACE.size, _PLACE.size)]


def drop_sent(left: list[memoryview], sent: int) -> None:
    """Takes the first `sent` bytes off pieces that wait to be written."""
    while left and sent >= len(left[0]):
        sent -= len(left[0])
        del left[0]
    if sent:
        left[0] = left[0][sent:]


def padded(size: int) -> int:
    """`size` rounded up to the alignment."""
    return size + -size % ALIGN


class Reader:
    """Collects frames from what arrives, in one buffer that grows to the largest of them."""

    def __init__(self, size: int = 1 << 18) -> None:
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._need = PREFIX.size
        self._known: dict[bytes, list[Any]] = {}
        self._last: tuple[bytes, list[Any]] = b"", []

    def space(self) -> memoryview:
        """Where to read to."""
        if self._start:
            rest = self._end - self._start
            if rest:
                self._view[:rest] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, rest
        if self._need > len(self._buffer):
            larger = bytearray(max(self._need, 2 * len(self._buffer)))
            larger[: self._end] = self._view[: self._end]
            self._buffer, self._view = larger, memoryview(larger)
        return self._view[self._end :]

    def feed(self, count: int) -> None:
        """`count` bytes were read to where `space` said."""
        self._end += count

    def next(self) -> Frame | None:
        """The next frame, if it is there.

        Raises:
            ValueError: what arrives is no frame.
        """
        start, there = self._start, self._end - self._start
        if there < PREFIX.size:
            self._need = PREFIX.size
            return None
        head, body, seconds = PREFIX.unpack_from(self._buffer, start)
        if head > MOST_HEADER or body > MOST_BODY:
            raise ValueError(f"a frame of {head:,} + {body:,} bytes is over the limit")
        self._need = PREFIX.size + head + body
        if there < self._need:
            return None
        self._start += self._need
        at = start + PREFIX.size
        raw, found = self._last
        if len(raw) != head or not self._buffer.startswith(raw, at):
            raw = bytes(self._view[at : at + head])
            found = self._read(raw)
            self._last = raw, found
        return Frame(found, self._view[at + head : self._start], seconds)

    def _read(self, raw: bytes) -> list[Any]:
        found = self._known.get(raw)
        if found is None:
            found = json.loads(raw)
            if not isinstance(found, list) or not found:
                raise ValueError("a frame's header is no list")
            if len(raw) <= _LONGEST:
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known[raw] = found
        return found
