"""How long a candidate is loaded: by what one of its inferences takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from portolan.study.probe import Session


@pytest.mark.parametrize(("latency", "seconds"), [(5e-5, 0.1), (0.01, 0.3), (2.0, 0.4)])
def test_a_block_is_as_long_as_some_inferences_take(latency: float, seconds: float) -> None:
    asked: list[tuple[int, float]] = []

    def answer(op: str, *, timeout: float, callers: int, seconds: float) -> Any:
        asked.append((callers, seconds))
        return SimpleNamespace(fields={"count": 10 * callers, "seconds": seconds})

    session = object.__new__(Session)
    session._ask = answer  # type: ignore[assignment]
    found = session.throughput(2, latency)
    assert asked == [(1, pytest.approx(seconds))] * 3 + [(2, pytest.approx(seconds))] * 3
    assert found.value == pytest.approx(20 / seconds)
