"""The baseline that runs beside each candidate, and what happens when it dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from portolan.errors import WorkerError


class BaselineLost(Exception):
    """A process of the baseline died: no fault of the candidate's that is being measured."""


@contextmanager
def baseline_may_die() -> Iterator[None]:
    """Says of a worker's failure that it was the baseline's."""
    try:
        yield
    except WorkerError as error:
        raise BaselineLost(error.message) from error


class Timed(Protocol):
    """What can be timed in blocks: a `probe.Session`, or another loaded worker."""

    def block(self, seconds: float) -> np.ndarray:
        """Milliseconds of each inference of a block of about `seconds`."""

    def close(self) -> None:
        """Ends the process."""


#: A baseline slower than its best by this factor shared the processors with something else. That is not scaled away:
#: where one processor of two is taken, a model on two threads loses far more than one on a single thread.
_DISTURBED = 1.6
#: Takes of such a block; the least disturbed one counts.
_TAKES = 3


class Pace:
    """The baseline, kept loaded: a candidate is timed between two of its blocks, so a drifting machine cancels out.

    Args:
        session: the loaded baseline.
        usual: milliseconds that readings are scaled to; the first that are seen unless given.
    """

    def __init__(self, session: Timed, usual: float | None = None) -> None:
        self._session = session
        self.usual = usual
        self._best = np.inf

    def against(self, session: Timed, seconds: float) -> np.ndarray:
        """The candidate's milliseconds, scaled by how the baseline did around them."""
        takes: list[tuple[float, np.ndarray]] = []
        while not takes or (takes[-1][0] > _DISTURBED * self._best and len(takes) < _TAKES):
            takes.append(self._take(session, seconds))
            self._best = min(self._best, takes[-1][0])
        now, mine = min(takes, key=lambda take: take[0])
        if self.usual is None:
            self.usual = now
        return mine * (self.usual / now)

    def _take(self, session: Timed, seconds: float) -> tuple[float, np.ndarray]:
        with baseline_may_die():
            before = self._session.block(seconds / 4)
        mine = session.block(seconds)
        with baseline_may_die():
            after = self._session.block(seconds / 4)
        return float(np.median(np.concatenate([before, after]))), mine

    def close(self) -> None:
        """Ends the process."""
        self._session.close()
