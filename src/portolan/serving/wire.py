"""How the front and a replica talk over their socket: a small header in JSON, then raw bytes; never pickle.

    header bytes, u32 | body bytes, u64 | header (JSON, padded with spaces) | body

The body starts at a multiple of 64 bytes, and so does every tensor in it, so that a runtime can read it where it lies.
The header is a list whose first item says what the frame is; see portolan.serving.replica. All integers are
little-endian. One side reads while the other writes: there is one batch at a time.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from portolan.serving.calls import Piece

PREFIX = struct.Struct("<IQ")
ALIGN = 64
MOST_HEADER = 16 * 2**20
MOST_BODY = 16 * 2**30
_SPACES = b" " * ALIGN
_ZEROS = bytes(ALIGN)


def encode(header: Sequence[Any], body: Sequence[Piece] = ()) -> list[Piece]:
    """The frame as pieces to write one after another. `body` is what `laid_out` gave, or one piece."""
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += _SPACES[: -(PREFIX.size + len(raw)) % ALIGN]
    return [PREFIX.pack(len(raw), sum(map(len, body))) + raw, *body]


def laid_out(tensors: Sequence[Sequence[Piece]]) -> list[Piece]:
    """The body for tensors that each consist of pieces: every one padded to the alignment."""
    pieces: list[Piece] = []
    for parts in tensors:
        pieces.extend(parts)
        if padding := -sum(map(len, parts)) % ALIGN:
            pieces.append(_ZEROS[:padding])
    return pieces


def padded(size: int) -> int:
    """`size` rounded up to the alignment."""
    return size + -size % ALIGN


class Reader:
    """Collects frames from what arrives, in one buffer that grows to the largest of them.

    A frame's body is a view of that buffer: it is good until the next call of `space`.
    """

    def __init__(self, size: int = 1 << 18) -> None:
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._need = PREFIX.size

    def space(self) -> memoryview:
        """Where to read to."""
        if self._need > len(self._buffer):
            larger = bytearray(max(self._need, 2 * len(self._buffer)))
            larger[: self._filled] = self._view[: self._filled]
            self._buffer, self._view = larger, memoryview(larger)
        return self._view[self._filled :]

    def feed(self, count: int) -> tuple[list[Any], memoryview] | None:
        """Header and body, once `count` more bytes complete a frame.

        Raises:
            ValueError: what arrives is no frame.
        """
        self._filled += count
        if self._filled < PREFIX.size:
            return None
        head, body = PREFIX.unpack_from(self._buffer)
        if head > MOST_HEADER or body > MOST_BODY:
            raise ValueError(f"a frame of {head:,} + {body:,} bytes is over the limit")
        self._need = PREFIX.size + head + body
        if self._filled < self._need:
            return None
        if self._filled > self._need:
            raise ValueError("bytes after a frame's end")
        start = PREFIX.size + head
        self._filled, end, self._need = 0, self._need, PREFIX.size
        header = json.loads(bytes(self._view[PREFIX.size : start]))
        if not isinstance(header, list) or not header:
            raise ValueError("a frame's header is no list")
        return header, self._view[start:end]
