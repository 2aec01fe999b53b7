"""A request that is expected: who has sent a large body sends the next one under the same head, most of the time. Head
and body are then received together, in one call of the kernel and where the replicas will read them.
"""

from __future__ import annotations

from portolan.serving.arena import Arena
from portolan.serving.heads import Head
from portolan.serving.request import Link, Request


class Expected:
    """Room for the next request of a connection, if it has the head of the last one.

    Args:
        request: with that head.
        raw: the head's bytes.
        room: for all of the request and one byte more. A loop that finds what it reads to filled asks the kernel for
            more at once, which mostly is in vain.

    Attributes:
        request: as given.
        room: as given.
        body: where in `room` the body goes.
        end: of the request in `room`.
    """

    def __init__(self, request: Request, raw: bytes, room: memoryview) -> None:
        self.request = request
        self.room = room
        self.end = len(raw) + request.head.size
        self.body = room[len(raw) : self.end]
        self._raw = raw

    @classmethod
    def after(cls, connection: Link, raw: bytes, head: Head, arena: Arena) -> Expected | None:
        """What to expect after a request with that head; None where no memory is left for it."""
        request = Request(connection, head)
        room = request.receive(arena, before=len(raw), after=1)
        return None if room is None else cls(request, raw, room)

    def came(self, count: int) -> int:
        """How many bytes of the body are among the first `count` that came; -1 where another request came."""
        start = len(self._raw)
        if count < start or self.room[:start].tobytes() != self._raw:
            return -1
        return min(count, self.end) - start
