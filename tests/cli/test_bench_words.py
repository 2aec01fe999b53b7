"""What `bench` says of a ratio, beyond what the golden answers show."""

from __future__ import annotations

import pytest

from portolan.cli.show_bench import STARTS, ratio_text
from portolan.measure.result import MIN_STARTS

RATIO = {"a": "b", "b": "a", "metric": "latency_p50", "ratio": 0.5, "verdict": "no significant difference"}


@pytest.mark.parametrize(
    ("lo", "hi", "starts", "told"),
    [
        (0.4, 0.6, 2, True),
        (1.4, 1.6, 1, True),
        (0.4, 0.6, STARTS, False),
        (0.4, 1.2, 2, True),
        (0.4, 0.6, None, False),
    ],
)
def test_a_budget_too_short_for_a_claim_is_named(lo: float, hi: float, starts: int | None, told: bool) -> None:
    text = ratio_text(RATIO | {"lo": lo, "hi": hi, "starts": starts})
    assert ("give a larger `--budget`" in text) is told


def test_the_number_of_starts_is_the_races() -> None:
    assert STARTS == MIN_STARTS
