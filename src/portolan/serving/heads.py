"""The heads of HTTP requests: what a parser found in them, remembered, since clients send the same ones again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from portolan.serving.calls import Refusal

_REMEMBERED, _LONGEST = 512, 4096
#: Headers that the server reads.
KNOWN = frozenset(
    (
        *(b"content-length", b"inference-header-content-length", b"content-encoding", b"accept-encoding"),
        *(b"authorization", b"expect", b"traceparent", b"transfer-encoding", b"accept", b"host", b"origin"),
    )
)
#: Headers of which there must be one at most.
ONCE = frozenset(
    (b"content-length", b"inference-header-content-length", b"content-encoding", b"authorization", b"host", b"origin")
)


@dataclass(frozen=True, slots=True)
class Head:
    """One head.

    Attributes:
        method, path: as they came.
        headers: those the server reads, names in lower case.
        close: whether the client wants the connection to end with the answer.
        size: bytes of the body, as far as they are announced.
        json: length of the JSON part of the body; 0 where that is not said.
    """

    method: bytes
    path: bytes
    headers: Mapping[bytes, bytes]
    close: bool
    size: int
    json: int

    @classmethod
    def of(cls, method: bytes, path: bytes, headers: Mapping[bytes, bytes], *, close: bool) -> Head:
        """Reads the numbers among the headers.

        Raises:
            Refusal: one is no number.
        """
        size = whole(headers.get(b"content-length"), "content-length") or 0
        json = whole(headers.get(b"inference-header-content-length"), "inference-header-content-length") or 0
        return cls(method, path, headers, close, size, json)


class Heads:
    """Heads by their bytes."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self.get = self._known.get

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
