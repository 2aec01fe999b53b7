"""When a new version takes over, and when it is rolled back."""

from __future__ import annotations

import pytest

from portolan.serving.calls import Refusal
from portolan.serving.counters import Counters
from portolan.serving.rollout import Tally, Terms, judge


def tallied(good: int, failed: int, seconds: float) -> Tally:
    counters = Counters()
    counters.request_success = 7  # before the trial: does not count
    counters.request_failure["BACKEND"] = 3
    tally = Tally(counters)
    counters.request_success += good
    counters.request_failure["BACKEND"] += failed
    for _ in range(good):
        counters.request_seconds.add(seconds)
    return tally


TERMS = Terms("canary", 0.1, calls=100, seconds=60)


@pytest.mark.parametrize(
    ("new", "seconds", "what"),
    [
        (tallied(10, 0, 0.010), 5.0, "wait"),
        (tallied(99, 0, 0.010), 5.0, "wait"),
        (tallied(100, 0, 0.010), 5.0, "promote"),
        (tallied(5, 0, 0.010), 61.0, "promote"),
        (tallied(0, 0, 0.010), 61.0, "promote"),
        (tallied(10, 9, 0.010), 5.0, "wait"),
        (tallied(10, 10, 0.010), 5.0, "roll back"),
        (tallied(3, 2, 0.010), 61.0, "roll back"),
        (tallied(97, 3, 0.010), 5.0, "roll back"),
        (tallied(100, 0, 0.020), 5.0, "roll back"),
        (tallied(100, 0, 0.011), 5.0, "promote"),
    ],
)
def test_verdicts(new: Tally, seconds: float, what: str) -> None:
    verdict = judge(tallied(900, 0, 0.010), new, TERMS, seconds)
    assert verdict.what == what
    assert bool(verdict.why) == (what == "roll back")


def test_a_shadow_that_answers_otherwise_is_rolled_back_where_that_was_asked_for() -> None:
    def shadow(agreed: int, of: int) -> Tally:
        counters = Counters()
        counters.compare(False)  # before the trial: does not count
        tally = Tally(counters)
        counters.request_success += 100
        for i in range(of):
            counters.compare(i < agreed)
        return tally

    def verdict(new: Tally, agreement: float) -> str:
        return judge(tallied(900, 0, 0.010), new, Terms("shadow", 1.0, calls=100, agreement=agreement), 5.0).why

    assert verdict(shadow(98, 100), 0.99) == "98.0% of its answers agree with those of the version before"
    assert verdict(shadow(99, 100), 0.99) == ""
    assert verdict(shadow(0, 100), 0.0) == ""
    assert verdict(shadow(0, 0), 0.99) == ""


def test_errors_that_the_old_version_has_too_do_not_count_against_the_new_one() -> None:
    assert judge(tallied(900, 100, 0.010), tallied(90, 10, 0.010), TERMS, 5.0).what == "promote"


def test_terms_are_read_from_the_parameters_of_a_load() -> None:
    assert Terms.read({}) == Terms()
    assert Terms.read({"canary": 0.25, "calls": 50, "config": "{}"}) == Terms("canary", 0.25, calls=50)
    assert Terms.read({"shadow": "1"}).mode == "shadow"
    assert Terms.read({"shadow": 1, "agreement": 0.9}).agreement == 0.9
    for wrong in ({"shadow": 1, "agreement": 2}, {"canary": 0.1, "agreement": 0.9}):
        with pytest.raises(Refusal, match="agreement"):
            Terms.read(wrong)
    for wrong in ({"canary": 0}, {"canary": 2}, {"canary": 0.1, "shadow": 0.1}, {"canary": "x"}, {"p99": -1}):
        with pytest.raises(Refusal):
            Terms.read(wrong)
