"""When two versions' answers agree."""

from __future__ import annotations

import math
import struct

import pytest

from portolan.serving.agreement import Pair, agree
from portolan.serving.calls import Answer, Refusal, Tensor


def floats(*values: float, shape: tuple[int, ...] | None = None) -> Tensor:
    return Tensor("y", "FP32", shape or (1, len(values)), struct.pack(f"<{len(values)}f", *values))


def ints(*values: int) -> Tensor:
    return Tensor("label", "INT64", (len(values),), struct.pack(f"<{len(values)}q", *values))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (floats(0.1, 0.9), floats(0.4, 0.6), True),  # the same top
        (floats(0.1, 0.9), floats(0.6, 0.4), False),
        (floats(0.1, 0.9, 0.8, 0.2, shape=(2, 2)), floats(0.1, 0.9, 0.7, 0.3, shape=(2, 2)), True),
        (floats(0.1, 0.9, 0.8, 0.2, shape=(2, 2)), floats(0.1, 0.9, 0.3, 0.7, shape=(2, 2)), False),
        (floats(100.0, 2.0, shape=(2, 1)), floats(100.9, 1.1, shape=(2, 1)), True),  # within a hundredth of 100
        (floats(100.0, 2.0, shape=(2, 1)), floats(100.0, 3.1, shape=(2, 1)), False),
        (floats(math.inf, 1.0, shape=(2, 1)), floats(math.inf, 1.0, shape=(2, 1)), True),
        (floats(math.nan, 1.0, shape=(2, 1)), floats(math.nan, 1.0, shape=(2, 1)), True),
        (floats(math.nan, 1.0, shape=(2, 1)), floats(1.0, 1.0, shape=(2, 1)), False),
        (ints(1, 2), ints(1, 2), True),
        (ints(1, 2), ints(1, 3), False),
        (floats(1.0, 2.0), floats(1.0, 2.0, 3.0), False),
        (ints(1), floats(1.0), False),
    ],
)
def test_one_output(one: Tensor, other: Tensor, same: bool) -> None:
    assert agree([one], [other]) is same


def test_every_output_has_to_agree() -> None:
    assert not agree([floats(0.1, 0.9), ints(1)], [floats(0.1, 0.9), ints(2)])
    assert not agree([ints(1)], [ints(1), ints(1)])


def test_a_pair_is_told_of_once_when_both_answers_are_there() -> None:
    told: list[bool] = []
    pair, lent = Pair(told.append), bytearray(ints(1).data)
    pair(Answer("m", "1", [Tensor("label", "INT64", (1,), memoryview(lent))]))
    lent[0] = 9  # the memory is used again
    assert told == []
    pair(Answer("m", "2", [ints(1)]))
    assert told == [True]


def test_a_refusal_is_compared_with_nothing() -> None:
    told: list[bool] = []
    pair = Pair(told.append)
    pair(Refusal("late", "too late"))
    pair(Answer("m", "1", [ints(1)]))
    assert told == []
