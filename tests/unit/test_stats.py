from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portolan.measure import stats


def normal_starts(rng, starts=5, blocks=4, readings=20, offset=0.02, noise=0.01):
    return [
        [np.exp(o + rng.normal(size=readings) * noise) for _ in range(blocks)] for o in rng.normal(size=starts) * offset
    ]


# Ratios


def test_the_interval_is_the_wider_of_bootstrap_and_students_t():
    # Published table: t(0.975, 3) = 3.1824. The bootstrap cannot be wider than the data's range.
    d = np.log([[1.00], [1.01], [1.01], [1.02]])
    half = 3.182446 * d.std(ddof=1) / math.sqrt(4)
    found = stats.ratio_interval(d)
    assert found.value == pytest.approx(1.01)
    assert found.lo == pytest.approx(math.exp(d.mean() - half), rel=1e-5)
    assert found.hi == pytest.approx(math.exp(d.mean() + half), rel=1e-5)


def test_two_starts_that_agree_do_not_claim_that_the_third_will():
    found = stats.ratio_interval(np.log([[1.0], [1.0001]]))
    assert found.hi / found.lo == pytest.approx(math.exp(2 * 1.96 * stats.START_SD / math.sqrt(2)), rel=1e-3)


def test_the_bootstrap_is_kept_where_it_is_wider():
    # The medians of starts agree, the blocks inside them do not: Student's t would say ±0.
    d = np.array([[-0.3, 0.0, 0.3]] * 5)
    found = stats.ratio_interval(d)
    assert found.value == 1.0
    assert found.lo < 0.99
    assert found.hi > 1.01


def test_equal_readings_give_no_width_and_more_confidence_more_width():
    assert stats.ratio_interval(np.full((5, 4), math.log(0.9))) == pytest.approx(stats.Interval(0.9, 0.9, 0.9))
    d = np.random.default_rng(1).normal(size=(6, 4)) * 0.01
    narrow, wide = stats.ratio_interval(d, 0.9), stats.ratio_interval(d, 0.99)
    assert wide.lo < narrow.lo < narrow.hi < wide.hi


def test_one_start_assumes_a_spread_between_starts():
    found = stats.ratio_interval(np.zeros((1, 4)))
    assert found.lo == pytest.approx(math.exp(-1.96 * stats.START_SD), rel=1e-3)
    assert found.hi == pytest.approx(math.exp(1.96 * stats.START_SD), rel=1e-3)
    assert stats.ratio_interval(np.zeros((1, 1))).hi > 1.05


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((0, 4)), np.array([[np.nan]]), np.array([[0.0, np.inf]])])
def test_readings_that_are_no_table_of_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="finite log ratios"):
        stats.ratio_interval(bad)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 6))
def test_swapping_the_arms_mirrors_the_interval(seed, starts, blocks):
    d = np.random.default_rng(seed).normal(size=(starts, blocks)) * 0.02
    one, other = stats.ratio_interval(d, draws=200), stats.ratio_interval(-d, draws=200)
    assert one.lo <= one.value <= one.hi
    assert one.value == pytest.approx(1 / other.value)
    assert one.lo == pytest.approx(1 / other.hi, rel=0.02)


def test_coverage_with_five_starts():
    rng, missed = np.random.default_rng(7), 0
    for _ in range(300):
        d = rng.normal(size=(5, 1)) * 0.03 + rng.normal(size=(5, 4)) * 0.01
        found = stats.ratio_interval(d)
        missed += not found.lo <= 1 <= found.hi
    assert missed / 300 <= 0.06


def test_p_value():
    assert stats.p_value(np.full((1, 4), 0.1)) == 1.0
    assert stats.p_value(np.full((3, 4), 0.1)) < 1e-12
    assert stats.p_value(np.full((2, 4), 0.5)) == 0.0
    assert stats.p_value(np.zeros((3, 4))) == 1.0
    # t = 2.776 at 4 degrees of freedom is p = 0.05.
    d = np.array([[-2.0], [-1.0], [0.0], [1.0], [2.0]]) + 2.776445 * math.sqrt(2.5 / 5)
    assert stats.p_value(d) == pytest.approx(0.05, abs=1e-5)


# Percentiles of latencies


def test_percentiles_of_equal_blocks_are_those_of_all_readings():
    starts = [[np.random.default_rng(i).exponential(size=30) for i in range(j, j + 3)] for j in (0, 3)]
    everything = np.concatenate([block for start in starts for block in start])
    for found, p in zip(stats.percentile_intervals(starts, [0.5, 0.95]), (0.5, 0.95), strict=True):
        assert found.value == pytest.approx(np.quantile(everything, p))


def test_every_start_counts_the_same_however_many_readings_fit():
    # A fast start makes 1000 readings where a slow one makes 10; the fast one must not outvote two slow ones.
    starts = [[np.full(1000, 1.0)], [np.full(10, 2.0)], [np.full(10, 2.0)]]
    assert stats.percentile_intervals(starts, [0.5])[0].value == 2.0


def test_the_interval_knows_about_starts():
    rng = np.random.default_rng(3)
    alike = stats.percentile_intervals(normal_starts(rng, offset=0.0), [0.5])[0]
    apart = stats.percentile_intervals(normal_starts(rng, offset=0.1), [0.5])[0]
    assert alike.hi / alike.lo < 1.02
    assert apart.hi / apart.lo > 1.05


def test_two_speeds_give_an_interval_that_holds_both():
    starts = [[np.full(20, ms)] * 4 for ms in (1.7, 1.7, 2.7, 2.7, 2.7)]
    found = stats.percentile_intervals(starts, [0.5])[0]
    assert found.value == 2.7
    assert found.lo <= 1.71


def test_a_single_start_is_not_taken_for_the_truth():
    found = stats.percentile_intervals([[np.full(50, 2.0)] * 4], [0.5])[0]
    assert found.hi / found.value - 1 == pytest.approx(math.exp(1.96 * stats.START_SD) - 1, rel=0.01)


def test_percentile_coverage():
    rng, missed = np.random.default_rng(11), 0
    for _ in range(60):
        found = stats.percentile_intervals(normal_starts(rng), [0.5], draws=300)[0]
        missed += not found.lo <= 1 <= found.hi
    assert missed <= 6


def test_many_readings_are_aggregated_without_moving_the_interval():
    rng = np.random.default_rng(5)
    few = normal_starts(rng, readings=60)
    many = [[np.repeat(block, 50) for block in start] for start in few]
    small, large = stats.percentile_intervals(few, [0.5])[0], stats.percentile_intervals(many, [0.5])[0]
    assert large.value == pytest.approx(small.value, rel=2e-3)
    assert large.lo == pytest.approx(small.lo, rel=5e-3)
    assert large.hi == pytest.approx(small.hi, rel=5e-3)


# Tails


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.90, [44, 64, 81, 127, 197]),
        (0.95, [90, 130, 165, 259, 398]),
        (0.97, [152, 219, 277, 433, 667]),
        (0.99, [459, 662, 838, 1307, 2010]),
        (0.999, [4603, 6636, 8403, 13105, 20140]),
    ],
)
def test_queries_needed_reproduces_mlperfs_numbers(p, expected):
    assert [stats.queries_needed(slow, p) for slow in (0, 1, 2, 5, 10)] == expected


def test_queries_without_early_stopping_reproduce_mlperfs_numbers():
    assert [stats.queries_for_margin(p) for p in (0.90, 0.95, 0.97, 0.99)] == [23886, 50425, 85811, 262742]


@pytest.mark.parametrize(("p", "needed"), [(0.9, 44), (0.99, 459), (0.999, 4603)])
def test_no_bound_below_the_needed_readings(p, needed):
    ms = np.random.default_rng(0).permutation(needed).astype(float)
    assert stats.percentile_bound(ms[:-1], p) is None
    assert stats.percentile_bound(ms, p) == needed - 1
    assert stats.percentile_bound(np.empty(0), p) is None


def test_the_bound_skips_as_many_slow_readings_as_the_rule_allows():
    for slow in (1, 2, 5, 10):
        n = stats.queries_needed(slow, 0.99)
        assert stats.percentile_bound(np.arange(n, dtype=float), 0.99) == n - 1 - slow
        assert stats.percentile_bound(np.arange(n - 1, dtype=float), 0.99) == n - 1 - slow


def test_the_bound_holds_as_often_as_it_says():
    rng = np.random.default_rng(1)
    true = -math.log(0.05)
    held = [stats.percentile_bound(rng.exponential(size=300), 0.95, 0.95) >= true for _ in range(400)]
    assert 0.93 <= np.mean(held) <= 0.99


def test_readings_needed():
    assert [stats.readings_needed(p) for p in (0.5, 0.9, 0.95, 0.99, 0.999)] == [1, 10, 20, 459, 4603]


# Shares


def test_wilson_matches_its_published_example():
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611.
    found = stats.wilson(81, 263)
    assert (round(found.lo, 4), round(found.hi, 4)) == (0.2553, 0.3662)
    assert (stats.wilson(0, 20).lo, round(stats.wilson(0, 20).hi, 4)) == (0.0, 0.1611)
    assert stats.wilson(20, 20).hi == 1.0
    with pytest.raises(ValueError, match="at least one"):
        stats.wilson(0, 0)


def test_without_flips_299_items_certify_one_percent():
    assert stats.drop_interval(0, 0, 299).hi < 0.01
    assert stats.drop_interval(0, 0, 298).hi > 0.01
    assert stats.drop_interval(0, 0, 1000).hi == pytest.approx(3 / 1000, rel=0.01)
    assert stats.drop_interval(0, 0, 299).value == 0


def test_the_bound_is_the_papers_formula_with_enough_flips():
    found = stats.drop_interval(40, 25, 2000)
    half = 1.644854 * math.sqrt(65 - 15**2 / 2000) / 2000
    assert found.value == 15 / 2000
    assert found.hi == pytest.approx(15 / 2000 + half, rel=1e-5)
    assert found.lo == pytest.approx(15 / 2000 - half, rel=1e-5)


def test_a_lucky_flip_does_not_certify_more_than_the_rule_of_three_less_that_flip():
    assert stats.drop_interval(0, 1, 299).hi == pytest.approx(stats.drop_interval(0, 0, 299).hi - 1 / 299)
    assert stats.drop_interval(1, 0, 299).hi > stats.drop_interval(0, 0, 299).hi


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(120, 5000))
def test_swapping_the_models_mirrors_the_drop(wrong, right, n):
    one, other = stats.drop_interval(wrong, right, n), stats.drop_interval(right, wrong, n)
    assert one.lo <= one.value <= one.hi
    assert one.lo == pytest.approx(-other.hi)


@pytest.mark.parametrize("bad", [(0, 0, 0), (-1, 0, 5), (0, -1, 5), (3, 3, 5)])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(ValueError, match="paired"):
        stats.drop_interval(*bad)


@pytest.mark.parametrize(("flips", "n"), [(0.01, 1262), (0.03, 3785), (0.05, 6308)])
def test_items_needed_reproduces_the_known_sizes_and_their_power(flips, n):
    assert stats.items_needed(0.01, 0.003, flips) == pytest.approx(n, abs=1)
    rng = np.random.default_rng(2)

    def passing(drop):
        counts = rng.multinomial(n, [(flips + drop) / 2, (flips - drop) / 2, 1 - flips], size=1000)
        return np.mean([stats.drop_interval(w, r, n).hi <= 0.01 for w, r, _ in counts])

    assert 0.74 <= passing(0.003) <= 0.84
    assert passing(0.00999) <= 0.085


def test_items_needed_is_never_below_the_rule_of_three():
    assert stats.items_needed(0.01, 0.0, 0.0) == 299
    with pytest.raises(ValueError, match="below the limit"):
        stats.items_needed(0.01, 0.01, 0.02)


def test_mean_interval_stays_inside_its_range():
    found = stats.mean_interval(np.array([1.0, 0.9999, 0.5]), -1, 1)
    assert found.hi == 1.0
    assert found.lo < 0.5
    assert stats.mean_interval(np.array([0.3]), 0, 1) == stats.Interval(0.3, 0.3, 0.3)
