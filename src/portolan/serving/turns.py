"""How long a call may have lain in the kernel before the loop read it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

#: Share of the time between two turns that the loop has to have worked, so that nothing was read for want of a turn.
_BUSY: Final = 0.3


class Turns:
    """The turns of a loop in which calls are read.

    A deadline counts from when a call came, and a loop sees that late when its turns are long: what it reads now came
    after it last looked. The longest that this can have been is taken, for an answer that is late is worth nothing.

    Args:
        later: has something done at the end of the turn.
        used: seconds of processor time that the loop's thread has used.

    Attributes:
        lag: seconds between the last two turns, and so how late an answer may be seen; 0 where the loop had nothing
            else to do.
    """

    def __init__(
        self, later: Callable[[Callable[[], None]], Any], used: Callable[[], float] = time.thread_time
    ) -> None:
        self._later, self._used = later, used
        self._open = False
        self._begun, self._spent = 0.0, 0.0
        self.lag = 0.0

    def waited(self, now: float) -> float:
        """Seconds that a call which is read now has waited at most; 0 where the loop had nothing else to do."""
        if not self._open:
            self._open = True
            self._later(self._end)
            spent = self._used()
            span = now - self._begun
            self.lag = span if spent - self._spent > _BUSY * span else 0.0
            self._begun, self._spent = now, spent
        return self.lag + now - self._begun

    def _end(self) -> None:
        self._open = False
