"""Whether another batch beside those that run would find a core, or take one away from the front."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from portolan.targets.local import control_groups, usable_cores

#: Share of a core from which on the front counts as one that is taken.
_TAKEN: Final = 0.35
#: Seconds over which the front's share is averaged.
_SPAN: Final = 0.5


class Cores:
    """The cores of this machine, and what the front itself takes of them.

    A model whose batches take less time than the front needs for their calls leaves it no core when every replica runs:
    many small batches then cost more than few large ones, and nobody gets an answer sooner.

    Args:
        count: of cores; None: those that this process may use.
        used: seconds of processor time that the thread which calls has used: the loop's.
        clock: seconds.

    Attributes:
        share: of one core that the front takes, lately.
    """

    def __init__(
        self,
        count: int | None = None,
        used: Callable[[], float] = time.thread_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.count = _usable() if count is None else count
        self.share = 0.0
        self._used, self._clock = used, clock
        self._before, self._at = used(), clock()

    def look(self) -> None:
        """A few times a second: how busy the front is."""
        used, now = self._used(), self._clock()
        span = max(now - self._at, 1e-3)
        self.share += min(span / _SPAN, 1.0) * ((used - self._before) / span - self.share)
        self._before, self._at = used, now

    def room(self, busy: int) -> bool:
        """Whether a core is left beside the front and `busy` replicas that run."""
        return busy + self.crowded < self.count

    @property
    def crowded(self) -> bool:
        """Whether the front takes a core, or a good part of one."""
        return self.share > _TAKEN


def _usable() -> int:
    return usable_cores(control_groups(Path("/")), sorted(os.sched_getaffinity(0)))
