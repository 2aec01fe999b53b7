"""HTTP answers as bytes."""

from __future__ import annotations

import functools
import math
from typing import Final

from portolan.serving import protocol
from portolan.serving.arena import LARGE
from portolan.serving.calls import HTTP, Piece, Refusal

_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 413: "Content Too Large", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip
_LINES: Final = {status: f"HTTP/1.1 {status} {words}\r\n".encode() for status, words in _REASONS.items()}
JSON: Final = b"Content-Type: application/json\r\n"
BINARY: Final = b"Content-Type: application/octet-stream\r\n"
_LAST: Final = b"Connection: close\r\n"


class Response:
    """An answer.

    Attributes:
        status: of HTTP.
        pieces: the body.
        headers: lines that end in CR LF; the content's length and the connection's fate are added.
        close: whether it is the connection's last.
        json: length of the JSON part of a body with binary tensors.
        whole: all of it as it goes over the wire when its connection goes on; None until somebody keeps it.
    """

    __slots__ = ("close", "headers", "json", "pieces", "status", "whole")

    def __init__(
        self,
        status: int,
        pieces: list[Piece] | None = None,
        headers: bytes = JSON,
        close: bool = False,
        json: int | None = None,
    ) -> None:
        self.status = status
        self.pieces: list[Piece] = [] if pieces is None else pieces
        self.headers = headers
        self.close = close
        self.json = json
        self.whole: bytes | None = None


def raw(response: Response, *, close: bool, body: bool = True) -> list[Piece]:
    """The answer as it goes over the wire, in one piece unless it is large; without its body for HEAD."""
    if response.whole is not None and body and not close:
        return [response.whole]
    pieces = response.pieces
    size = sum([len(piece) for piece in pieces])
    head = _head(response.status, response.headers, close, size, response.json)
    if not body:
        return [head]
    return [b"".join([head, *pieces])] if size < LARGE else [head, *pieces]


@functools.lru_cache(256)
def _head(status: int, headers: bytes, close: bool, size: int, json: int | None) -> bytes:
    mark = b"" if json is None else b"Inference-Header-Content-Length: %d\r\n" % json
    last = _LAST if close else b""
    return b"%b%b%b%bContent-Length: %d\r\n\r\n" % (_LINES[status], headers, mark, last, size)


def error(refusal: Refusal, status: int | None = None, *, close: bool = False) -> Response:
    """The protocol's error: a status and `{"error": text}`."""
    headers = JSON
    if refusal.retry_after is not None:
        headers += b"Retry-After: %d\r\n" % max(1, math.ceil(refusal.retry_after))
    if refusal.kind == "unauthenticated":
        headers += b"WWW-Authenticate: Bearer\r\n"
    return Response(status or HTTP[refusal.kind], [protocol.plain({"error": refusal.message})], headers, close)


def json(data: object, status: int = 200) -> Response:
    """Plain data."""
    return Response(status, [protocol.plain(data)])
