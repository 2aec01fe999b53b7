"""From trials to an answer: met, the front, the best, the closest; ties and gaps included."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portolan.core.goal import parse_goals
from portolan.core.measurement import METRICS, Measurement
from portolan.core.recipe import Recipe
from portolan.measure.result import Race, Samples
from portolan.study.conclude import best_of, closest_of, ratios, settle
from portolan.study.trial import Trial


def trial(number: int, *, stages: tuple[str, ...] = ("screened",), status: Any = "ok", **metrics: float) -> Trial:
    """A trial of its own recipe; trial 0 is the baseline."""
    recipe = Recipe(backend="onnxruntime", options={"threads": number})
    found = {name: Measurement.of(name, value) for name, value in metrics.items()}
    return Trial(number, recipe, status, metrics=found, stages=stages, reason="it crashed" if status != "ok" else None)


def race(speeds: dict[int, float], noise: float = 0.002) -> Race:
    """Arms named by the trials' recipes, each at its number of milliseconds; the baseline is trial 0."""
    rng = np.random.default_rng(0)

    def samples(ms: float) -> Samples:
        return Samples([[ms * np.exp(rng.normal(0, noise, 20)) for _ in range(4)] for _ in range(8)])

    arms = {trial(number).recipe.key: samples(ms) for number, ms in speeds.items()}
    return Race(trial(0).recipe.key, arms, samples(speeds[0]))


GOALS = parse_goals(["latency_p50 < 10ms", "cosine >= 0.99", "min latency_p50"])


class TestSettle:
    def test_met_and_the_reasons(self) -> None:
        good = trial(1, latency_p50=5, cosine=0.995)
        slow = trial(2, latency_p50=15, cosine=0.98)
        unknown = trial(3, latency_p50=5)
        failed = trial(4, status="failed")
        settled = settle([good, slow, unknown, failed], GOALS)
        assert [t.met for t in settled] == [True, False, False, False]
        assert [t.reason for t in settled] == [None, "too slow, cosine missed", "cosine not measured", "it crashed"]
        assert [t.pareto for t in settled] == [True, False, False, False]
        assert [t.id for t in settled] == [1, 2, 3, 4]

    def test_earlier_judgements_do_not_stay(self) -> None:
        once = settle([trial(1, latency_p50=15, cosine=0.995)], GOALS)
        again = settle(once, parse_goals(["latency_p50 < 20ms", "cosine >= 0.99"]))
        assert once[0].reason == "too slow"
        assert (again[0].met, again[0].reason) == (True, None)

    def test_the_front_of_two_metrics(self) -> None:
        goals = parse_goals(["min latency_p50", "max throughput", "cosine > 0"])
        trials = [
            trial(1, latency_p50=1, throughput=100, cosine=0.9),
            trial(2, latency_p50=2, throughput=200, cosine=0.9),
            trial(3, latency_p50=2, throughput=150, cosine=0.9),
            trial(4, latency_p50=3, throughput=150, cosine=0.99),
        ]
        assert [t.pareto for t in settle(trials, goals)] == [True, True, False, True]

    def test_equals_are_both_on_the_front(self) -> None:
        trials = [trial(n, latency_p50=1, cosine=1) for n in (1, 2)]
        assert [t.pareto for t in settle(trials, GOALS)] == [True, True]

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_is_no_number_is_not_on_the_front_and_beats_nobody(self, bad: float) -> None:
        trials = [trial(1, latency_p50=bad, cosine=1), trial(2, latency_p50=5, cosine=0.5)]
        assert [t.pareto for t in settle(trials, GOALS)] == [False, True]

    @given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=8))
    def test_the_front_is_what_nothing_dominates(self, points: list[tuple[int, int]]) -> None:
        goals = parse_goals(["min latency_p50", "min size", "cosine >= 0"])
        trials = [trial(n, latency_p50=a, size=b, cosine=1) for n, (a, b) in enumerate(points)]
        for point, settled in zip(points, settle(trials, goals), strict=True):
            beaten = any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in points)
            assert settled.pareto == (not beaten)


class TestBest:
    def best(self, trials: list[Trial], goals: list[str], race: Race | None = None) -> int | None:
        parsed = parse_goals([*goals, "cosine >= 0"])
        found = best_of(settle(trials, parsed), parsed, trials[0], race)
        return None if found is None else found.id

    def test_none_when_no_limit_is_met(self) -> None:
        assert self.best([trial(0, latency_p50=5, cosine=1)], ["latency_p50 < 1ms"]) is None
        assert self.best([trial(0, status="failed")], []) is None

    def test_the_fastest_of_those_that_meet_the_limits(self) -> None:
        trials = [
            trial(0, latency_p50=10, size=5, cosine=1),
            trial(1, latency_p50=2, size=50, cosine=1),
            trial(2, latency_p50=4, size=5, cosine=1),
        ]
        assert self.best(trials, ["size < 10B", "min latency_p50"]) == 2

    def test_a_raced_trial_comes_before_one_that_only_seemed_faster(self) -> None:
        trials = [
            trial(0, latency_p50=10, cosine=1, stages=("screened", "raced")),
            trial(1, latency_p50=2, cosine=1),
            trial(2, latency_p50=4, cosine=1, stages=("screened", "raced")),
        ]
        assert self.best(trials, ["min latency_p50"], race({0: 10, 2: 4})) == 2

    def test_several_objectives_count_equally(self) -> None:
        trials = [
            trial(0, latency_p50=10, size=1000, cosine=1),
            trial(1, latency_p50=4, size=1000, cosine=1),
            trial(2, latency_p50=9, size=300, cosine=1),
            trial(3, latency_p50=5, size=500, cosine=1),
        ]
        assert self.best(trials, ["min latency_p50", "min size"]) == 3

    def test_more_is_better_where_it_is_to_be_maximised(self) -> None:
        trials = [
            trial(0, latency_p50=10, throughput=100, cosine=1),
            trial(1, latency_p50=9, throughput=80, cosine=1),
            trial(2, latency_p50=12, throughput=150, cosine=1),
        ]
        assert self.best(trials, ["max throughput"]) == 2

    def test_a_missing_metric_ranks_last(self) -> None:
        trials = [trial(0, latency_p50=10, size=5, cosine=1), trial(1, latency_p50=1, cosine=1)]
        assert self.best(trials, ["min size"]) == 0
        assert self.best(trials[::-1], ["min size"]) == 0

    def test_among_equals_the_faster_wins(self) -> None:
        trials = [
            trial(0, latency_p50=10, size=1000, cosine=1),
            trial(1, latency_p50=5, size=500.1, cosine=1),
            trial(2, latency_p50=4, size=500.2, cosine=1),
        ]
        assert self.best(trials, ["min size"]) == 2

    def test_a_zero_counts(self) -> None:
        trials = [
            trial(0, latency_p50=10, accuracy_drop=0.0, cosine=1),
            trial(1, latency_p50=5, accuracy_drop=0.02, cosine=1),
        ]
        assert self.best(trials, ["min accuracy_drop"]) == 0

    def test_inside_the_noise_the_untouched_model_wins(self) -> None:
        raced = ("screened", "raced")
        trials = [
            trial(0, latency_p50=10.0, cosine=1, stages=raced),
            trial(1, latency_p50=9.98, cosine=1, stages=raced),
        ]
        assert self.best(trials, ["min latency_p50"], race({0: 10.0, 1: 9.98})) == 0

    def test_outside_it_the_faster_one_does(self) -> None:
        raced = ("screened", "raced")
        trials = [trial(0, latency_p50=10.0, cosine=1, stages=raced), trial(1, latency_p50=8.0, cosine=1, stages=raced)]
        assert self.best(trials, ["min latency_p50"], race({0: 10.0, 1: 8.0})) == 1

    def test_choosing_takes_less_than_claiming(self) -> None:
        """A noisy A/A arm forbids the word faster; it is no reason to ship the slower of the two."""
        raced = ("screened", "raced")
        trials = [trial(0, latency_p50=10.0, cosine=1, stages=raced), trial(1, latency_p50=8.5, cosine=1, stages=raced)]
        outcome = race({0: 10.0, 1: 8.5})
        noisy = replace(outcome, again=race({0: 8.0}).again)
        assert noisy.ratio(trials[1].recipe.key, trials[0].recipe.key).verdict == "no significant difference"
        assert self.best(trials, ["min latency_p50"], noisy) == 1

    def test_what_no_equal_arms_differ_by_speaks_for_the_faster(self) -> None:
        """Few starts of an unsteady arm: the interval holds 1, yet the A/A arms agree far better than that."""
        raced = ("screened", "raced")
        trials = [trial(0, latency_p50=10.0, cosine=1, stages=raced), trial(1, latency_p50=8.0, cosine=1, stages=raced)]
        steady, unsteady = (
            race({0: 10.0}),
            Samples([[np.full(20, ms)] * 4 for ms in (5.5, 8.0, 8.0, 8.0, 11.5, 8.0, 6.0, 11.0)]),
        )
        key = trials[1].recipe.key
        outcome = replace(steady, arms={**steady.arms, key: unsteady})
        found = outcome.ratio(key, trials[0].recipe.key)
        assert found.hi >= 1
        assert found.ratio < outcome.noise.lo
        assert self.best(trials, ["min latency_p50"], outcome) == 1

    def test_the_untouched_model_wins_only_if_it_meets_the_limits(self) -> None:
        raced = ("screened", "raced")
        trials = [
            trial(0, latency_p50=10.0, size=100, cosine=1, stages=raced),
            trial(1, latency_p50=9.98, size=5, cosine=1, stages=raced),
        ]
        assert self.best(trials, ["size < 10B", "min latency_p50"], race({0: 10.0, 1: 9.98})) == 1

    def test_size_counts_also_inside_the_noise_of_speed(self) -> None:
        raced = ("screened", "raced")
        trials = [
            trial(0, latency_p50=10.0, size=100, cosine=1, stages=raced),
            trial(1, latency_p50=10.0, size=50, cosine=1, stages=raced),
        ]
        assert self.best(trials, ["min size"], race({0: 10.0, 1: 10.0})) == 1

    def test_without_a_race_the_numbers_decide(self) -> None:
        trials = [trial(0, latency_p50=10.0, cosine=1), trial(1, latency_p50=9.0, cosine=1)]
        assert self.best(trials, ["min latency_p50"]) == 1


class TestClosest:
    def test_the_one_that_misses_by_least(self) -> None:
        trials = [
            trial(0, latency_p50=20, cosine=1),
            trial(1, latency_p50=12, cosine=1),
            trial(2, latency_p50=5, cosine=0.2),
            trial(3, status="failed"),
        ]
        found = closest_of(trials, GOALS)
        assert found is not None
        assert found.id == 1

    def test_a_missing_metric_is_the_farthest(self) -> None:
        found = closest_of([trial(1, latency_p50=1), trial(2, latency_p50=500, cosine=0.1)], GOALS)
        assert found is not None
        assert found.id == 2

    def test_among_equals_the_faster(self) -> None:
        goals = parse_goals(["size < 10B"])
        trials = [trial(1, size=20, latency_p50=5, max_rel_error=0), trial(2, size=20, latency_p50=4, max_rel_error=0)]
        found = closest_of(trials, goals)
        assert found is not None
        assert found.id == 2

    def test_nothing_valid(self) -> None:
        assert closest_of([], GOALS) is None
        assert closest_of([trial(1, status="failed"), trial(2, status="refused")], GOALS) is None


def test_ratios_are_named_by_trial() -> None:
    found = ratios(race({0: 10.0, 3: 5.0}), trial(0), {trial(0).recipe.key: 0, trial(3).recipe.key: 3})
    assert [(r["a"], r["b"], r["verdict"]) for r in found] == [(3, 0, "faster")]
    assert found[0]["ratio"] == pytest.approx(0.5, rel=0.01)
    assert ratios(None, trial(0), {}) == []


def test_every_metric_can_be_an_objective() -> None:
    """No unit, sign or direction makes the ranking fall over."""
    for name in METRICS:
        goals = parse_goals([f"min {name}", "cosine >= 0"])
        trials = [trial(n, **{"cosine": 0.5, name: float(n)}) for n in (0, 1, 2)]
        best = best_of(settle(trials, goals), goals, trials[0], None)
        assert best is not None
        assert best.id == 0, name


class TestUnderLoad:
    """What serves best, among trials that were served; the untouched model wins where nothing tells them apart."""

    GOALS = parse_goals(["latency_p99 < 50ms at 200 qps", "cosine > 0"])

    def served(self, number: int, value: float, half: float, stage: str = "loaded") -> Trial:
        found = trial(number, stages=("screened", stage), cosine=1.0, latency_p50=5.0)
        p99 = Measurement(value, "ms", value - half, value + half, 1800)
        return replace(found, metrics={**found.metrics, "latency_p99@200qps": p99})

    def best(self, *trials: Trial) -> int | None:
        settled = settle(trials, self.GOALS)
        found = best_of(settled, self.GOALS, settled[0], None)
        return None if found is None else found.id

    def test_the_fastest_that_was_measured_to_the_end(self) -> None:
        assert self.best(self.served(0, 30, 2), self.served(1, 20, 2), self.served(2, 10, 1, "tried")) == 1

    def test_within_the_noise_the_untouched_model_wins(self) -> None:
        assert self.best(self.served(0, 22, 3), self.served(1, 20, 2)) == 0

    def test_an_untouched_model_that_misses_the_limit_does_not_win(self) -> None:
        assert self.best(self.served(0, 48, 12), self.served(1, 40, 5)) == 1

    def test_what_was_not_served_meets_no_goal_under_load(self) -> None:
        alone = trial(0, latency_p50=1.0, cosine=1.0)
        assert self.best(alone) is None
        (settled,) = settle([alone], self.GOALS)
        assert settled.reason == "latency_p99 at 200 qps not measured"

    def test_other_objectives_are_not_those_of_speed(self) -> None:
        goals = parse_goals(["latency_p99 < 50ms at 200 qps", "cosine > 0", "min size"])
        first, second = (replace(t, metrics={**t.metrics, "size": Measurement(size, "B")})
                         for t, size in ((self.served(0, 22, 3), 9.0), (self.served(1, 22, 3), 5.0)))  # fmt: skip
        settled = settle([first, second], goals)
        found = best_of(settled, goals, settled[0], None)
        assert found is not None
        assert found.id == 1
