"""The heads of HTTP requests: what a parser found in them, remembered, since clients send the same ones again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from portolan.serving.calls import Refusal

_END: Final = b"\r\n\r\n"
_REMEMBERED, _LONGEST = 512, 4096
#: Headers that the server reads.
KNOWN: Final = frozenset(
    (
        *(b"content-length", b"inference-header-content-length", b"content-encoding", b"accept-encoding"),
        *(b"authorization", b"expect", b"traceparent", b"transfer-encoding", b"accept", b"host", b"origin"),
    )
)
#: Headers of which there must be one at most.
ONCE: Final = frozenset(
    (b"content-length", b"inference-header-content-length", b"content-encoding", b"authorization", b"host", b"origin")
)


@dataclass(eq=False, slots=True)
class Head:
    """One head; the same object for every request that has it.

    Attributes:
        method, path: as they came.
        headers: those the server reads, names in lower case.
        close: whether the client wants the connection to end with the answer.
        size: bytes of the body, as far as they are announced.
        json: length of the JSON part of the body; 0 where that is not said.
        coding: how the body is compressed; empty where it is not.
        handler: what the routes found for it; None until they have.
    """

    method: bytes
    path: bytes
    headers: Mapping[bytes, bytes]
    close: bool
    size: int
    json: int
    coding: bytes = b""
    handler: Callable[[Any], None] | None = None

    @classmethod
    def of(cls, method: bytes, path: bytes, headers: Mapping[bytes, bytes], *, close: bool) -> Head:
        """Reads the numbers among the headers.

        Raises:
            Refusal: one is no number.
        """
        size = whole(headers.get(b"content-length"), "content-length") or 0
        json = whole(headers.get(b"inference-header-content-length"), "inference-header-content-length") or 0
        return cls(method, path, headers, close, size, json, headers.get(b"content-encoding", b""))


class Heads:
    """Heads by their bytes."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        #: The one found last, which nearly always is the next one too.
        self._last: tuple[bytes, Head] | None = None

    def find(self, buffer: bytearray, start: int, end: int) -> tuple[bytes, Head | None]:
        """The head that begins at `start` and ends before `end`: its bytes, and what a parser found in them once.

        No bytes mean that it is not all there yet.
        """
        last = self._last
        if last is not None and start + len(last[0]) <= end and buffer.startswith(last[0], start):
            return last
        at = buffer.find(_END, start, end)
        if at < 0:
            return b"", None
        raw = bytes(buffer[start : at + len(_END)])
        head = self._known.get(raw)
        if head is not None:
            self._last = raw, head
        return raw, head

    def remember(self, raw: bytes, head: Head) -> None:
        """Keeps what a parser found, if it is short and says all there is to say about the body."""
        if len(raw) > _LONGEST or b"transfer-encoding" in head.headers or b"expect" in head.headers:
            return
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[raw] = head


def whole(value: bytes | None, name: str) -> int | None:
    """A header that is a whole number.

    Raises:
        Refusal: it is something else.
    """
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise Refusal("invalid", f"the header `{name}` is no number")
    return int(value)
