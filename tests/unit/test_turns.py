"""When calls came that a busy loop reads late."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from portolan.serving.turns import Looks, Turns


class Loop:
    """A loop whose turns end when told, with a clock and a meter that are turned by hand."""

    def __init__(self) -> None:
        self.now = self.used = 100.0
        self.ends: list[Callable[[], None]] = []
        self.turns = Turns(self.ends.append, lambda: self.used)
        self.turns.waited(self.now)
        self.end()

    def waited(self) -> float:
        return self.turns.waited(self.now)

    def work(self, seconds: float, share: float = 1.0) -> None:
        self.now += seconds
        self.used += seconds * share

    def end(self) -> None:
        assert len(self.ends) == 1, "once per turn"
        self.ends.pop()()


def test_a_loop_that_slept_reads_calls_as_they_come() -> None:
    loop = Loop()
    loop.work(10.0, share=0.01)
    assert loop.waited() == 0.0


def test_an_answer_is_seen_as_late_as_turns_are_long() -> None:
    loop = Loop()
    for seconds in (0.004, 0.030):
        loop.work(seconds)
        loop.waited()
        loop.end()
        assert loop.turns.lag == pytest.approx(seconds)
    loop.work(10.0, share=0.01)
    loop.waited()
    assert loop.turns.lag == 0.0


def test_calls_of_one_turn_came_before_it() -> None:
    loop = Loop()
    loop.work(10.0, share=0.01)
    loop.waited()
    loop.work(0.004)
    assert loop.waited() == pytest.approx(0.004)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_calls_behind_a_long_turn_came_after_the_loop_looked_last(share: float) -> None:
    """Also where the loop got only half of a processor."""
    loop = Loop()
    loop.work(10.0, share=0.01)
    loop.waited()
    loop.work(0.020, share)
    loop.end()
    assert loop.waited() == pytest.approx(0.020)
    loop.work(0.003)
    assert loop.waited() == pytest.approx(0.023)
    loop.end()
    loop.work(0.001)
    assert loop.waited() == pytest.approx(0.004)


def test_answers_are_looked_for_in_the_middle_of_a_turn() -> None:
    looks = Looks()
    assert looks.due(100.0, 0.0)
    found = [n for n in range(1, 100) if looks.due(100.0 + n * 1e-4, n * 1e-4)]
    assert found == [11, 22, 33, 44, 55, 66, 77, 88, 99]
    assert looks.unseen == pytest.approx(11e-4)


def test_an_answer_may_have_lain_for_the_longest_time_without_a_look_and_that_is_forgotten() -> None:
    looks = Looks()
    looks.due(100.0, 0.0)
    looks.due(100.030, 0.050)
    assert looks.unseen == pytest.approx(0.030)
    looks.due(100.032, 0.050)
    assert looks.unseen == pytest.approx(0.027)
    for n in range(60):
        looks.due(100.034 + n * 2e-3, 0.050)
    assert looks.unseen == pytest.approx(0.002)


def test_a_loop_that_slept_would_have_seen_an_answer_at_once() -> None:
    looks = Looks()
    looks.due(100.0, 0.0)
    looks.due(100.030, 0.050)
    looks.due(160.0, 0.0)
    assert looks.unseen == 0.0
    looks.due(170.0, 0.004)  # it had slept till 4 ms ago
    assert looks.unseen == pytest.approx(0.004)
