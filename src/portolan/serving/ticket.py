"""A call on its way through the server, and the batch it runs in."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

from portolan.serving.calls import Answer, Call, Refusal
from portolan.serving.checks import Layout

#: Priority 0 of the protocol: between 1, before everybody else, and 3, behind.
DEFAULT_LEVEL: Final = 2
Done = Callable[["Answer | Refusal"], None]


class Ticket:
    """One call. It is answered exactly once, or cancelled.

    Attributes:
        call: the call.
        done: told of the answer or the refusal; None once it has been, or when the call was cancelled.
        layout: what the checks found.
        arrived, started: on the loop's clock, when it came, which is before it was read (see `Turns`), and when its
            batch left for a replica.
        patient: whether the deadline is the model's own and not the client's.
        tries: how often a replica ended while it ran.
    """

    __slots__ = (
        "alone", "arrived", "call", "deadline", "done", "gone", "key", "layout", "level", "patient", "rows", "size",
        "started", "tries",
    )  # fmt: skip

    def __init__(self, call: Call, done: Done, layout: Layout, arrived: float, deadline: float) -> None:
        self.call = call
        self.done: Done | None = done
        self.layout = layout
        self.key: Hashable = layout.key
        self.rows = layout.rows
        self.size = layout.size
        self.level = call.priority or DEFAULT_LEVEL
        self.arrived = arrived
        self.started = 0.0
        self.deadline = deadline
        self.patient = call.timeout is None
        self.alone = False
        self.gone = True
        self.tries = 0

    def let_go(self) -> None:
        """Nothing of the inputs will be read again."""
        release, self.call.release = self.call.release, None
        if release is not None:
            release()


class Batch:
    """Calls that run together.

    Attributes:
        tickets: the calls.
        rows: all their rows.
        started: when it left, on the loop's clock.
        begun: when its replica could begin with it, as far as the front can tell.
        places: shared memory taken for it, besides what the calls brought along.
        room: place and size of the piece of it that is for the outputs; None where they come through the socket.
    """

    __slots__ = ("begun", "places", "room", "rows", "started", "tickets")

    def __init__(self, tickets: list[Ticket], started: float) -> None:
        self.tickets = tickets
        self.rows = sum([ticket.rows for ticket in tickets])
        self.started = self.begun = started
        self.places: list[int] = []
        self.room: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return f"Batch({len(self.tickets)} calls, {self.rows} rows)"
