"""Budgets: how they are written, and when a search is over."""

from __future__ import annotations

import math

import pytest

from portolan.errors import UsageError
from portolan.study.budget import DEFAULT, Budget, Spending


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("text", "seconds", "trials"),
    [
        ("300s", 300.0, None),
        ("5min", 300.0, None),
        (" 1.5 h ", 5400.0, None),
        ("500ms", 0.5, None),
        ("40 trials", None, 40),
        ("1 trial", None, 1),
        ("40trials", None, 40),
        ("300s, 40 trials", 300.0, 40),
        ("40 trials,5min", 300.0, 40),
    ],
)
def test_parse(text: str, seconds: float | None, trials: int | None) -> None:
    assert Budget.parse(text) == Budget(seconds, trials, text)


@pytest.mark.parametrize("text", [None, ""])
def test_the_default(text: str | None) -> None:
    assert Budget.parse(text) == Budget(300.0, None, DEFAULT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("40", "the budget `40` cannot be read"),
        ("soon", "the budget `soon` cannot be read"),
        ("5 MiB", "the budget `5 MiB` cannot be read"),
        ("300s,", "the budget `` cannot be read"),
        ("300s, some trials", "the budget `some trials` cannot be read"),
        ("-1 trials", "the budget `-1 trials` cannot be read"),
        ("0s", "the budget `0s` leaves nothing to do"),
        ("-5s", "the budget `-5s` leaves nothing to do"),
        ("0 trials", "the budget `0 trials` leaves nothing to do"),
        ("5min, 0 trials", "the budget `5min, 0 trials` leaves nothing to do"),
    ],
)
def test_what_is_no_budget(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Budget.parse(text)
    assert caught.value.message == message
    assert caught.value.hint == "write `300s`, `5min` or `40 trials`"


def test_time_is_spent_and_the_race_keeps_its_share() -> None:
    clock = Clock()
    spending = Spending(Budget.parse("100s"), reserve=0.25, clock=clock)
    assert (spending.seconds, spending.left, spending.search_over, spending.closing) == (0.0, 100.0, False, False)
    clock.now += 60.0
    assert (spending.seconds, spending.left, spending.search_over, spending.closing) == (60.0, 40.0, False, True)
    clock.now += 15.0
    assert (spending.left, spending.search_over) == (25.0, True)
    clock.now += 50.0
    assert spending.left == -25.0


def test_trials_are_counted() -> None:
    clock = Clock()
    spending = Spending(Budget.parse("2 trials"), clock=clock)
    spending.count()
    assert not spending.search_over
    clock.now += 1e6
    assert (spending.search_over, spending.closing, spending.left) == (False, False, math.inf)
    spending.count()
    assert spending.search_over


def test_whichever_ends_first() -> None:
    clock = Clock()
    spending = Spending(Budget.parse("100s, 5 trials"), clock=clock)
    clock.now += 80.0
    assert spending.search_over
