"""The baseline that runs beside each candidate, and what happens when it dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from portolan.errors import WorkerError
from portolan.study.probe import Session


class BaselineLost(Exception):
    """A process of the baseline died: no fault of the candidate's that is being measured."""


@contextmanager
def baseline_may_die() -> Iterator[None]:
    """Says of a worker's failure that it was the baseline's."""
    try:
        yield
    except WorkerError as error:
        raise BaselineLost(error.message) from error


class Pace:
    """The baseline, kept loaded: a candidate is timed between two of its blocks, so a drifting machine cancels out."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._usual: float | None = None

    def against(self, session: Session, seconds: float) -> np.ndarray:
        """The candidate's milliseconds, scaled by how the baseline did around them."""
        with baseline_may_die():
            before = self._session.block(seconds / 4)
        mine = session.block(seconds)
        with baseline_may_die():
            after = self._session.block(seconds / 4)
        now = float(np.median(np.concatenate([before, after])))
        if self._usual is None:
            self._usual = now
        return mine * (self._usual / now)

    def close(self) -> None:
        """Ends the process."""
        self._session.close()
