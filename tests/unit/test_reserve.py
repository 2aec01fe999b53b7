"""The race's share of a budget: when it begins, what a trial may take before it, and who missed out."""

from __future__ import annotations

from typing import Any

import pytest

from portolan.core.measurement import Measurement
from portolan.core.recipe import Recipe
from portolan.errors import WorkerTimeout
from portolan.search.candidate import Candidate
from portolan.study import budget, finals
from portolan.study.budget import Budget, BudgetOver, Spending
from portolan.study.reserve import CUT, FEWEST, MARGIN, MOST, NO_TURN, Reserve
from portolan.study.trial import Trial

ALL = [Candidate(Recipe((), name)) for name in ("onnxruntime", "openvino", "litert", "tvm")]


def trial(candidate: Candidate) -> Trial:
    metrics = {
        "latency_p50": Measurement.of("latency_p50", 10.0, n=9),
        "cold_start": Measurement.of("cold_start", 1e3, n=1),
    }
    return Trial(ALL.index(candidate), candidate.recipe, "ok", metrics=metrics)


class Waiting:
    """A searcher that knows which backends were asked."""

    def __init__(self, trials: dict[str, Trial]) -> None:
        self._trials = trials

    @property
    def introduced(self) -> bool:
        return not self.waiting()

    def waiting(self) -> list[Candidate]:
        return [c for c in ALL if c.key not in self._trials]


class Bench:
    """A reserve of a search that has tried so many, with so many seconds left of 1,000."""

    def __init__(self, tried: int, left: float, *, raced: bool = True, text: str = "1000s") -> None:
        self.trials = {c.key: trial(c) for c in ALL[:tried]}
        self.now = 0.0
        self.spending = Spending(Budget.parse(text), clock=lambda: self.now)
        self.now = 1000.0 - left
        self.tried = tried
        self.searcher: Any = Waiting(self.trials)
        self.reserve = Reserve(self.spending, self.searcher, self.trials, self.entrants if raced else None)

    def entrants(self) -> list[Candidate]:
        return [c for c in ALL if c.key in self.trials]

    def race(self, most: int) -> float:
        return finals.seconds(self.entrants()[:most], self.trials)


def test_it_does_not_wait_for_backends_whose_turn_has_not_come() -> None:
    bench = Bench(tried=3, left=900)
    assert not bench.reserve.due
    bench.now = 1000.0 - MARGIN * bench.race(FEWEST) + 0.1
    assert bench.reserve.due
    (row,) = bench.reserve.untried
    assert (row["recipe"], row["reason"]) == (ALL[3].recipe.to_json(), NO_TURN)
    assert row["label"] == {"passes": "-", "backend": "tvm"}


def test_once_all_were_tried_the_whole_race_is_kept() -> None:
    bench = Bench(tried=4, left=900)
    assert not bench.reserve.due
    bench.now = 1000.0 - bench.race(4) - 0.1
    assert not bench.reserve.due
    bench.now += 0.2
    assert bench.reserve.due
    assert bench.reserve.untried == []


def test_the_baseline_alone_is_no_race_to_stop_for() -> None:
    bench = Bench(tried=1, left=0.5)
    assert not bench.reserve.due


@pytest.mark.parametrize("tried", [2, 4])
def test_a_race_that_would_take_most_of_the_budget_gets_a_share_of_it(tried: int) -> None:
    bench = Bench(tried, left=1000.0, text="20s")
    assert bench.race(tried) > 20.0
    bench.now = 20.0 * (1 - MOST) - 0.1
    assert not bench.reserve.due
    assert bench.reserve.spare() == pytest.approx(0.1)
    bench.now += 0.2
    assert bench.reserve.due


def test_where_nothing_is_left_but_what_is_kept_a_trial_may_take_half() -> None:
    bench = Bench(tried=2, left=1.0)
    assert bench.reserve.spare() == 0.5


def test_a_trial_leaves_a_small_race_its_time() -> None:
    bench = Bench(tried=4, left=900)
    assert bench.reserve.spare() == pytest.approx(900 - MARGIN * bench.race(FEWEST))
    with bench.reserve.kept(ALL[0]):
        assert 0 < bench.reserve.left() <= 900 - MARGIN * bench.race(FEWEST)
    assert bench.reserve.left() == float("inf")


@pytest.mark.parametrize(("raced", "text"), [(False, "1000s"), (True, "40 trials")])
def test_without_a_race_or_a_clock_nothing_is_cut(raced: bool, text: str) -> None:
    bench = Bench(tried=2, left=1.0, raced=raced, text=text)
    assert not bench.reserve.due
    assert bench.reserve.spare() == float("inf")


def test_what_was_cut_short_is_named_unless_it_was_measured_before() -> None:
    bench = Bench(tried=3, left=900)
    for candidate in (ALL[1], ALL[3]):
        with pytest.raises(BudgetOver), bench.reserve.kept(candidate):
            raise BudgetOver
    assert [(row["recipe"], row["reason"]) for row in bench.reserve.untried] == [(ALL[3].recipe.to_json(), CUT)]


def test_the_baseline_is_measured_before_the_search_asks_for_it() -> None:
    bench = Bench(tried=1, left=1.0)
    bench.searcher.waiting = lambda: list(ALL)  # type: ignore[method-assign]
    assert [row["recipe"]["backend"] for row in bench.reserve.untried] == ["openvino", "litert", "tvm"]


class Slow:
    """A worker that answers nothing."""

    def ask(self, op: str, *, timeout: float) -> None:
        raise WorkerTimeout(f"no answer to `{op}` within {timeout:.3g} s")


def test_only_a_wait_that_the_budget_cut_is_the_budgets_fault() -> None:
    slow: Any = Slow()
    with pytest.raises(BudgetOver):
        budget.ask(slow, "compile", timeout=10.0, left=lambda: 3.0)
    with pytest.raises(WorkerTimeout, match="within 10 s"):
        budget.ask(slow, "compile", timeout=10.0, left=lambda: 30.0)


@pytest.mark.parametrize(("searches", "starts"), [(0.0, 5), (1.0, 5), (1.5, 7), (2.0, 10), (60.0, 10)])
def test_a_race_that_no_time_bounds_takes_what_the_search_took(searches: float, starts: int) -> None:
    """Ten trials in 20 s were followed by a race of 70 s between equals; five starts are needed for a claim."""
    trials = {c.key: trial(c) for c in ALL}
    assert finals._starts(searches * finals.seconds(ALL, trials), ALL, trials) == starts
