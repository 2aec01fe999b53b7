"""Counts outlive the front that counted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from portolan.serving.counters import Counters
from portolan.serving.kept import Kept, memory


@pytest.fixture
def fd() -> Iterator[int]:
    made = memory()
    yield made
    os.close(made)


def test_the_next_one_finds_what_was_written_last(fd: int) -> None:
    first = Kept(fd)
    assert first.last == {}
    for count in range(5):
        first.write({"count": count})
        assert Kept(fd).last == {"count": count}


def test_half_a_write_leaves_the_one_before(fd: int) -> None:
    kept = Kept(fd)
    kept.write({"count": 1})
    kept.write({"count": 2})
    for place in (0, 1):  # wherever the last one is
        before = os.pread(fd, 64, place * 2**20)
        os.pwrite(fd, b"x", place * 2**20 + 20)
        assert Kept(fd).last in ({"count": 1}, {"count": 2})
        os.pwrite(fd, before, place * 2**20)
    os.pwrite(fd, b"x", 20)
    os.pwrite(fd, b"x", 2**20 + 20)
    assert Kept(fd).last == {}


def test_what_is_too_large_is_not_kept(fd: int) -> None:
    kept = Kept(fd)
    kept.write({"count": 1})
    kept.write({"text": "x" * 2**20})
    assert Kept(fd).last == {"count": 1}


def test_counters_come_back() -> None:
    counters = Counters()
    counters.ran([0.0, 0.1], 5, 0.2, 0.3, 0.05)
    counters.request_failure["REJECTED"] += 3
    counters.compare(True)
    told = counters.to_json()
    again = Counters.from_json(json.loads(json.dumps(told)))
    assert again.to_json() == told
    assert again.request_seconds.quantile(1.0) == counters.request_seconds.quantile(1.0)
    counters.ran([0.0], 1, 0.2, 0.3, 0.05)
    assert told == again.to_json()  # a copy, which does not grow
