from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portolan.core.goal import parse_goals
from portolan.core.measurement import Measurement
from portolan.search.pareto import Box, box, dominates, front, front_within, gains, hypervolume, surely_dominates

COORDINATE = st.floats(0, 1, allow_nan=False).map(lambda x: round(x, 2))


def clouds(depth: int, most: int = 12) -> st.SearchStrategy[list[tuple[float, ...]]]:
    return st.lists(st.tuples(*[COORDINATE] * depth), max_size=most)


any_cloud = st.integers(1, 4).flatmap(clouds)


def monte_carlo(points: list[tuple[float, ...]], depth: int, draws: int = 60_000) -> float:
    sample = np.random.default_rng(0).random((draws, depth))
    below = np.zeros(draws, dtype=bool)
    for point in points:
        below |= (sample >= np.array(point)).all(1)
    return float(below.mean())


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hypervolume_agrees_with_monte_carlo(depth: int, seed: int) -> None:
    points = [tuple(p) for p in np.random.default_rng(seed).random((10, depth)).tolist()]
    assert hypervolume(points, (1.0,) * depth) == pytest.approx(monte_carlo(points, depth), abs=0.01)


def test_hypervolume_of_known_shapes() -> None:
    assert hypervolume([], (1.0, 1.0)) == 0.0
    assert hypervolume([(0.5, 0.5)], (1.0, 1.0)) == 0.25
    assert hypervolume([(0.0, 0.5), (0.5, 0.0)], (1.0, 1.0)) == 0.75
    assert hypervolume([(0.2,), (0.6,)], (1.0,)) == pytest.approx(0.8)
    assert hypervolume([(2.0, 0.0), (1.0, 0.5)], (1.0, 1.0)) == 0.0


@given(any_cloud)
@settings(max_examples=150, deadline=None)
def test_only_the_front_has_volume(points: list[tuple[float, ...]]) -> None:
    if points:
        ref = (1.1,) * len(points[0])
        kept = [points[i] for i in front(points)]
        assert hypervolume(kept, ref) == pytest.approx(hypervolume(points, ref))


@given(any_cloud)
@settings(max_examples=150, deadline=None)
def test_a_front_dominates_all_and_nothing_in_it_is_dominated(points: list[tuple[float, ...]]) -> None:
    kept = front(points)
    assert bool(kept) == bool(points)
    for i, p in enumerate(points):
        beaten = [j for j in kept if dominates(points[j], p)]
        assert (i in kept) == (not beaten)


@given(st.integers(1, 3).flatmap(lambda d: st.tuples(clouds(d, 8), clouds(d, 5))))
@settings(max_examples=150, deadline=None)
def test_gains_are_what_the_volume_grows_by(pair: tuple[list[tuple[float, ...]], list[tuple[float, ...]]]) -> None:
    new, known = pair
    if not new:
        return
    ref = (1.1,) * len(new[0])
    expected = [hypervolume([*known, p], ref) - hypervolume(known, ref) for p in new]
    assert gains(np.array(new), known, ref).tolist() == pytest.approx(expected, abs=1e-9)


def test_dominance() -> None:
    assert dominates((1, 2), (1, 3))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((1, 3), (2, 2))


@given(clouds(2), st.floats(0, 0.3))
@settings(max_examples=100, deadline=None)
def test_wider_intervals_keep_more(points: list[tuple[float, ...]], width: float) -> None:
    boxes = [Box(tuple(x - width for x in p), p, tuple(x + width for x in p)) for p in points]
    assert set(front(points)) <= set(front_within(boxes))
    exact = [Box(p, p, p) for p in points]
    assert front_within(exact) == front(points)


def test_intervals_that_touch_decide_nothing() -> None:
    a, b = Box((0.8,), (1.0,), (1.2,)), Box((1.1,), (1.3,), (1.5,))
    assert not surely_dominates(a, b)
    assert front_within([a, b]) == [0, 1]
    assert front_within([a, Box((1.3,), (1.4,), (1.5,))]) == [0]


def test_costs_of_a_trial() -> None:
    goals = parse_goals(["min latency_p50", "max throughput", "min size"])
    metrics = {
        "latency_p50": Measurement.of("latency_p50", 10.0, 9.0, 12.0),
        "throughput": Measurement.of("throughput", 100.0, 90.0, 105.0),
        "size": Measurement.of("size", 1000.0),
    }
    costs = box(goals, metrics, slack=0.1)
    assert costs.value == (10.0, -100.0, 1000.0)
    assert costs.lo == (9.0, -105.0, 900.0)
    assert costs.hi == (12.0, -90.0, 1100.0)


@pytest.mark.parametrize("value", [None, math.nan])
def test_what_was_not_measured_costs_infinity(value: float | None) -> None:
    goals = parse_goals(["min latency_p50"])
    metrics = {} if value is None else {"latency_p50": Measurement.of("latency_p50", value)}
    assert box(goals, metrics).lo == (math.inf,)
