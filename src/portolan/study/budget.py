"""The budget of a search: seconds, trials, or both. Upper bounds, never overrun by one more trial."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from portolan import units
from portolan.errors import UsageError, WorkerTimeout
from portolan.worker import Reply, Worker

DEFAULT = "5min"
_TRIALS = re.compile(r"\s*(\d+)\s*trials?\s*$")


#: Seconds that are left to something, asked anew each time.
Left = Callable[[], float]


class BudgetOver(Exception):
    """What was begun was ended, since it would have taken what the race needs: no fault of its own."""


def unlimited() -> float:
    """No budget bounds it."""
    return float("inf")


def ask(worker: Worker, op: str, *, timeout: float, left: Left, **fields: Any) -> Reply:
    """`Worker.ask`, within `timeout` and within what is left.

    Raises:
        BudgetOver: what is left was less than `timeout`, and is over; the worker is ended.
        PortolanError: as `Worker.ask`.
    """
    allowed = max(left(), 0.0)
    try:
        return worker.ask(op, timeout=min(timeout, allowed), **fields)
    except WorkerTimeout as error:
        if allowed < timeout:
            raise BudgetOver from error
        raise


@dataclass(frozen=True)
class Budget:
    """At most `seconds` and at most `trials` new trials; None is no bound."""

    seconds: float | None
    trials: int | None
    text: str

    @classmethod
    def parse(cls, text: str | None) -> Budget:
        """Reads `300s`, `5min`, `40 trials`, or two of them with a comma.

        Raises:
            UsageError: neither a time nor a number of trials, or not positive.
        """
        seconds: float | None = None
        trials: int | None = None
        for part in (text or DEFAULT).split(","):
            if match := _TRIALS.match(part):
                trials = int(match[1])
            else:
                try:
                    seconds = units.parse(part, "time")
                except UsageError:
                    raise UsageError(
                        f"the budget `{part.strip()}` cannot be read", hint="write `300s`, `5min` or `40 trials`"
                    ) from None
        if (seconds is not None and seconds <= 0) or trials == 0:
            raise UsageError(f"the budget `{text}` leaves nothing to do", hint="write `300s`, `5min` or `40 trials`")
        return cls(seconds, trials, text or DEFAULT)


class Spending:
    """What is left of a budget.

    Args:
        budget: the bounds.
        reserve: share of the seconds that the search leaves to the final race in any case.
        clock: seconds that only grow.
    """

    def __init__(self, budget: Budget, reserve: float = 0.25, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget, self._reserve, self._clock = budget, reserve, clock
        self._begin = clock()
        self._trials = 0

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._begin

    @property
    def left(self) -> float:
        """Seconds until everything must be done; infinite without a bound."""
        return float("inf") if self._budget.seconds is None else self._budget.seconds - self.seconds

    def count(self) -> None:
        """One more trial was begun."""
        self._trials += 1

    @property
    def closing(self) -> bool:
        """Whether only contenders should be measured from here on: the last fifth of the search."""
        seconds = self._budget.seconds
        return seconds is not None and self.seconds >= 0.8 * seconds * (1 - self._reserve)

    @property
    def search_over(self) -> bool:
        """Whether the search must stop proposing."""
        if self._budget.trials is not None and self._trials >= self._budget.trials:
            return True
        return self._budget.seconds is not None and self.seconds >= self._budget.seconds * (1 - self._reserve)
