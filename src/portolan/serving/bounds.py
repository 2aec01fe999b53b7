"""How much one client may ask of the HTTP door: sizes and times. And compressed bodies, which are sizes in disguise."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from portolan.serving.calls import Piece, Refusal

_WBITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
#: Answers outside these bounds are not worth compressing, or would hold up everybody.
_LEAST, _MOST = 1024, 4 * 2**20


@dataclass(frozen=True)
class Bounds:
    """Bounds of one server.

    Attributes:
        body: bytes of a request's body.
        inflated: bytes of a compressed body once it is uncompressed.
        head: bytes of the request line and the headers.
        connections: connections at once.
        pipelined: requests of one connection that wait for their answers.
        head_seconds: time for a request to arrive, besides what its size needs at `rate`.
        rate: bytes a second below which a client is too slow.
        keep_alive: seconds that a connection may be idle.
        write_seconds: time a client may leave an answer unread.
    """

    body: int = 64 * 2**20
    inflated: int = 16 * 2**20
    head: int = 16 * 2**10
    connections: int = 4096
    pipelined: int = 1024
    head_seconds: float = 10.0
    rate: float = 16 * 2**10
    keep_alive: float = 75.0
    write_seconds: float = 30.0


def too_large(size: int, most: int) -> Refusal:
    """What a body beyond `Bounds.body` is told."""
    return Refusal("too_large", f"the body has {size:,} bytes, and this server takes {most:,}")


def inflate(body: Piece, coding: bytes, most: int) -> bytes:
    """The uncompressed body.

    Raises:
        Refusal: `too_large` as soon as it grows beyond `most`, `invalid` for what cannot be read.
    """
    coding = coding.strip().lower()
    if coding == b"identity":
        return bytes(body)
    if coding not in _WBITS:
        raise Refusal("invalid", f"the content encoding `{coding.decode('latin-1')[:40]}` is not supported; use gzip")
    unpacker = zlib.decompressobj(_WBITS[coding])
    try:
        raw = unpacker.decompress(body, most)
        if unpacker.unconsumed_tail:
            raise Refusal("too_large", f"the uncompressed body has more than {most:,} bytes")
    except zlib.error as error:
        raise Refusal("invalid", f"the body is not {coding.decode()}: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise Refusal("invalid", f"the body is not {coding.decode()}: it does not end where it should")
    return raw


def deflated(pieces: list[Piece], accepted: bytes, *, binary: bool) -> tuple[bytes, bytes] | None:
    """The compressed answer and its coding; None where it is better sent as it is.

    JSON is compressed for who accepts it. Numbers in binary hardly shrink: only for who accepts nothing else.
    """
    wanted = accepted.lower().replace(b" ", b"")
    words = [word for word in wanted.split(b",") if word and not word.endswith(b";q=0")]
    coding = next((c for c in (b"gzip", b"deflate") if any(w.partition(b";")[0] == c for w in words)), None)
    size = sum(map(len, pieces))
    if coding is None or not _LEAST <= size <= _MOST or (binary and len(words) > 1):
        return None
    packer = zlib.compressobj(1, zlib.DEFLATED, _WBITS[coding])
    packed = [packer.compress(piece) for piece in pieces]
    return b"".join([*packed, packer.flush()]), coding
