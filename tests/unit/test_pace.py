"""The baseline beside a candidate: what it scales away, and what is taken again."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from portolan.errors import WorkerError
from portolan.study.pace import BaselineLost, Pace


class Scripted:
    """Blocks of one inference each, with the milliseconds given; the last one again and again."""

    def __init__(self, readings: Iterable[float]) -> None:
        self.left = list(readings)
        self.blocks = 0

    def block(self, seconds: float) -> np.ndarray:
        self.blocks += 1
        return np.array([self.left.pop(0) if len(self.left) > 1 else self.left[0]])

    def close(self) -> None:
        pass


class Dead(Scripted):
    def block(self, seconds: float) -> np.ndarray:
        raise WorkerError("the worker died")


def test_a_slower_machine_cancels_out() -> None:
    pace = Pace(Scripted([10, 10, 12, 12]))
    assert pace.against(Scripted([5]), 0.1)[0] == pytest.approx(5)
    assert pace.against(Scripted([6]), 0.1)[0] == pytest.approx(5)


def test_a_processor_taken_by_another_is_waited_out() -> None:
    """The baseline fell to a quarter, the candidate with one thread did not: scaled, it would look twice as fast."""
    candidate = Scripted([5, 10, 5])
    pace = Pace(Scripted([20, 20, 80, 80, 20, 20]))
    pace.against(candidate, 0.1)
    assert pace.against(candidate, 0.1)[0] == pytest.approx(5)
    assert candidate.blocks == 3


def test_a_machine_that_stays_slow_is_scaled_after_three_takes() -> None:
    baseline, candidate = Scripted([10, 10, 40]), Scripted([5, 20])
    pace = Pace(baseline)
    pace.against(candidate, 0.1)
    assert pace.against(candidate, 0.1)[0] == pytest.approx(5)
    assert candidate.blocks == 4
    assert baseline.blocks == 8


def test_readings_are_scaled_to_what_an_earlier_run_saw() -> None:
    assert Pace(Scripted([20]), 10.0).against(Scripted([6]), 0.1)[0] == pytest.approx(3)


def test_a_baseline_that_dies_is_not_the_candidates_fault() -> None:
    with pytest.raises(BaselineLost, match="died"):
        Pace(Dead([1])).against(Scripted([1]), 0.1)
