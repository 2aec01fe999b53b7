"""How long a call may have lain in the kernel before the loop read it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

#: Share of the time between two turns that the loop has to have worked, so that nothing was read for want of a turn.
_BUSY: Final = 0.3
#: Seconds after which answers are looked for again.
_LOOK: Final = 1e-3
#: What is left, at each look, of the longest time without one.
_FORGETS: Final = 0.9


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


class Looks:
    """When answers of replicas were looked for: in the middle of turns too, for one that reads many calls is long.

    Attributes:
        unseen: seconds that an answer may lie before it is seen.
    """

    def __init__(self) -> None:
        self._last = 0.0
        self.unseen = 0.0

    def due(self, now: float, waited: float) -> bool:
        """Whether to look now, where a call that is read now has waited so long; then it counts as done."""
        if now <= self._last + _LOOK:
            return False
        # A loop that had nothing to do would have seen an answer at once, however long ago it looked.
        self.unseen = max(min(now - self._last, waited), _FORGETS * self.unseen) if waited else 0.0
        self._last = now
        return True
