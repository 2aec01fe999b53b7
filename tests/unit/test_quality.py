from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from portolan.core.goal import parse_goal
from portolan.core.signature import TensorSpec
from portolan.errors import UsageError, VerificationFailed
from portolan.measure.quality import accuracy, accuracy_drop, compare

FLOATS = st.floats(-1e6, 1e6, width=32)
TABLES = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=5), elements=FLOATS)


def scores(classes, n=10):
    """Class scores whose largest entry is at `classes`."""
    return {"logits": np.eye(n, dtype=np.float32)[np.asarray(classes)]}


# Closeness


@settings(deadline=None)
@given(TABLES)
def test_outputs_equal_themselves(table):
    found = compare({"y": table}, {"y": table})
    assert found["cosine"].value == pytest.approx(1.0)
    assert found["max_abs_error"].value == 0
    assert found["max_rel_error"].value == 0
    assert found["agreement"].value == 1
    assert {m.n for m in found.values()} == {len(table)}


@settings(deadline=None)
@given(TABLES, st.integers(0, 2**32 - 1))
def test_values_stay_in_their_ranges(table, seed):
    other = table + np.random.default_rng(seed).normal(size=table.shape).astype(np.float32)
    found = compare({"y": other}, {"y": table})
    for name in ("cosine", "agreement"):
        m = found[name]
        assert -1 <= m.lo <= m.value <= m.hi <= 1
    assert found["max_abs_error"].value == pytest.approx(np.abs(other.astype(float) - table).max())


@settings(deadline=None)
@given(TABLES, st.sampled_from([1e-30, 1e-3, 7.0, 1e30]))
def test_the_relative_error_and_the_cosine_do_not_depend_on_the_scale(table, scale):
    a = table.astype(np.float64)
    if not a.any():
        return
    b = a + np.abs(a).max() * 0.01
    plain, scaled = compare({"y": b}, {"y": a}), compare({"y": b * scale}, {"y": a * scale})
    for name in ("max_rel_error", "cosine"):
        assert scaled[name].value == pytest.approx(plain[name].value, rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(TABLES, st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_what_is_not_a_number_never_passes(table, bad, data):
    spoiled = table.copy()
    spoiled[tuple(data.draw(st.integers(0, size - 1)) for size in table.shape)] = bad
    for outputs, reference in ((spoiled, table), (table, spoiled)):
        found = compare({"y": outputs}, {"y": reference})
        assert not parse_goal("max_rel_error <= 1e30").holds(found["max_rel_error"])
        assert not parse_goal("max_abs_error <= 1e30").holds(found["max_abs_error"])
        assert not parse_goal("cosine >= -100%").holds(found["cosine"])


def test_a_nan_that_both_have_is_no_agreement_but_an_infinite_mask_is():
    nan = {"y": np.array([[1.0, np.nan], [1.0, 2.0]])}
    assert math.isnan(compare(nan, nan)["max_rel_error"].value)
    assert compare(nan, nan)["agreement"].value == 0.5
    mask = {"y": np.array([[1.0, -np.inf], [1.0, 2.0]])}
    assert compare(mask, mask)["max_rel_error"].value == 0
    assert compare(mask, mask)["cosine"].value == pytest.approx(1.0)
    other = {"y": np.array([[1.0, np.inf], [1.0, 2.0]])}
    assert compare(other, mask)["max_rel_error"].value == math.inf


def test_errors_are_relative_to_the_rms_of_the_original():
    reference = {"y": np.array([[3.0, 4.0], [0.0, 0.0]])}
    outputs = {"y": np.array([[3.0, 4.5], [0.0, 0.0]])}
    found = compare(outputs, reference)
    assert found["max_abs_error"].value == 0.5
    assert found["max_rel_error"].value == pytest.approx(0.5 / 2.5)
    assert found["max_abs_error"].lo is None
    assert compare({"y": np.ones((2, 2))}, {"y": np.zeros((2, 2))})["max_rel_error"].value == math.inf


def test_the_worst_output_counts():
    reference = {"good": np.ones((4, 3)), "bad": np.ones((4, 3)), "ids": np.arange(4)}
    outputs = {"good": np.ones((4, 3)), "bad": -np.ones((4, 3)), "ids": np.arange(4)}
    found = compare(outputs, reference)
    assert found["cosine"].value == pytest.approx(-1.0)
    assert found["max_abs_error"].value == 2
    outputs["good"] = np.full((4, 3), np.nan)
    assert math.isnan(compare(outputs, reference)["cosine"].value)
    assert math.isnan(compare(outputs, reference)["max_abs_error"].value)


def test_only_outputs_of_the_signature_are_compared():
    reference = {"y": np.ones((2, 3)), "extra": np.zeros((2, 3))}
    specs = [TensorSpec("y", "float32", ("n", 3))]
    found = compare({"y": np.ones((2, 3))}, reference, specs)
    assert found["max_abs_error"].value == 0


def test_zero_vectors():
    zero, one = np.zeros((2, 3)), np.ones((2, 3))
    assert compare({"y": zero}, {"y": zero})["cosine"].value == 1.0
    assert compare({"y": zero}, {"y": one})["cosine"].value == 0.0


def test_whole_numbers_and_text_have_errors_but_no_cosine():
    found = compare({"ids": np.array([1, 2])}, {"ids": np.array([1, 5])})
    assert set(found) == {"max_abs_error", "max_rel_error"}
    assert found["max_abs_error"].value == 3
    same, other = np.array(["cat", "dog"]), np.array(["cat", "cow"])
    assert compare({"label": same}, {"label": same})["max_rel_error"].value == 0
    assert compare({"label": other}, {"label": same})["max_rel_error"].value == 1


def test_the_cosine_has_an_interval_over_samples():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(200, 64))
    found = compare({"y": reference + rng.normal(size=(200, 64)) * 0.3}, {"y": reference})["cosine"]
    assert found.n == 200
    assert 0.9 < found.lo < found.value < found.hi < 1
    assert found.hi - found.lo < 0.02
    assert compare({"y": reference[:1]}, {"y": reference[:1]})["cosine"].lo is None


def test_agreement_is_the_share_of_equal_answers():
    found = compare(scores([1, 2, 3, 4]), scores([1, 2, 3, 5]))["agreement"]
    assert (found.value, found.n) == (0.75, 4)
    assert found.lo < 0.4
    perfect = compare(scores([1] * 50), scores([1] * 50))["agreement"]
    assert perfect.hi == 1.0
    assert 0.9 < perfect.lo < 1.0


def test_agreement_of_sequences_is_per_position():
    a = np.eye(3, dtype=np.float32)[np.array([[0, 1], [2, 2]])]
    b = np.eye(3, dtype=np.float32)[np.array([[0, 2], [2, 2]])]
    assert compare({"y": b}, {"y": a})["agreement"].value == 0.75


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3, 8, 8)])
def test_agreement_only_where_there_are_class_scores(shape):
    table = np.ones(shape, dtype=np.float32)
    assert "agreement" not in compare({"y": table}, {"y": table})


@pytest.mark.parametrize(
    ("outputs", "reference", "message"),
    [
        ({}, {}, "no output to compare"),
        ({}, {"y": np.ones((2, 3))}, "output `y` is missing"),
        ({"y": np.ones((2, 4))}, {"y": np.ones((2, 3))}, "output `y` has shape 2x4, the original's has 2x3"),
        ({"y": np.ones((0, 3))}, {"y": np.ones((0, 3))}, "holds no sample"),
        ({"y": np.float32(1)}, {"y": np.float32(1)}, "holds no sample"),
    ],
)
def test_outputs_that_cannot_be_compared(outputs, reference, message):
    with pytest.raises(VerificationFailed, match=message):
        compare(outputs, reference)


def test_an_output_the_original_lacks():
    with pytest.raises(VerificationFailed, match="the original has no output `z`"):
        compare({"z": np.ones((2, 3))}, {"y": np.ones((2, 3))}, [TensorSpec("z", "float32", (2, 3))])


# Accuracy


def test_accuracy_is_the_share_right_with_wilsons_interval():
    found = accuracy(scores([0] * 81 + [1] * 182), np.zeros(263, dtype=np.int64))
    assert found.value == pytest.approx(81 / 263)
    assert (round(found.lo, 4), round(found.hi, 4), found.n) == (0.2553, 0.3662, 263)
    assert found.unit == "share"


@pytest.mark.parametrize(
    "labels", [np.array([1, 2, 3]), np.array([[1], [2], [3]], np.uint8), np.array([1.0, 2.0, 3.0])]
)
def test_labels_may_come_as_a_column_or_as_whole_floats(labels):
    assert accuracy(scores([1, 2, 0]), labels).value == pytest.approx(2 / 3)


def test_a_model_that_answers_with_class_numbers():
    assert accuracy({"label": np.array([[1], [2]])}, np.array([1, 0])).value == 0.5


def test_the_first_output_that_fits_is_judged():
    outputs = {"embedding": np.ones((2, 4, 8)), **scores([1, 2])}
    assert accuracy(outputs, np.array([1, 2])).value == 1.0


def test_sequences_are_judged_per_position():
    outputs = {"y": np.eye(3)[np.array([[0, 1], [2, 2]])]}
    found = accuracy(outputs, np.array([[0, 2], [2, 2]]))
    assert (found.value, found.n) == (0.75, 2)
    assert accuracy({"y": outputs["y"][:1]}, np.array([[0, 2]])).lo is None


def test_nan_is_never_right():
    outputs = {"y": np.array([[np.nan, 1.0], [0.0, 1.0]])}
    assert accuracy(outputs, np.array([0, 1])).value == 0.5


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (scores([1, 2]), np.array([1, 2, 3]), "3 labels for 2 samples of `logits`"),
        ({"y": np.float32(1)}, np.array([1]), "1 labels for 0 samples"),
        (scores([1, 2]), np.array(5), "there are no labels"),
        (scores([1, 2]), np.array([]), "there are no labels"),
        (scores([1, 2]), np.array(["a", "b"]), "are not class numbers"),
        (scores([1, 2]), np.array([0.5, 1.0]), "labels of type float64 are not class numbers"),
        (scores([1, 2]), np.array([1, 10]), "labels run from 1 to 10, the model has 10 classes"),
        (scores([1, 2]), np.array([-1, 1]), "labels run from -1 to 1"),
        ({"y": np.ones((2, 1))}, np.array([0, 1]), "no output holds class scores for labels of shape 2: `y` 2x1"),
    ],
)
def test_labels_that_do_not_fit(outputs, labels, message):
    with pytest.raises(UsageError) as caught:
        accuracy(outputs, labels)
    assert message in caught.value.message
    assert caught.value.hint


def test_accuracy_by_a_metric_of_the_user():
    labels = np.random.default_rng(0).normal(size=(50, 1))
    found = accuracy({"y": labels + 0.1}, labels, lambda outputs, wanted: -float(np.abs(outputs["y"] - wanted).mean()))
    assert found.value == pytest.approx(-0.1)
    assert found.lo <= found.value <= found.hi
    assert found.n == 50


# The drop


def test_the_drop_is_paired():
    labels = np.zeros(1000, dtype=np.int64)
    old, new = np.zeros(1000, dtype=int), np.zeros(1000, dtype=int)
    new[:20] = 1
    old[20:30] = 1
    found = accuracy_drop(scores(new), scores(old), labels)
    assert found.value == pytest.approx(0.01)
    assert found.hi == pytest.approx(0.01 + 1.645 * math.sqrt(30 - 0.1) / 1000, rel=1e-3)
    assert found.lo < found.value


def test_no_flips_certify_one_percent_from_299_samples():
    goal = parse_goal("accuracy_drop <= 1%")
    for n, holds in ((298, False), (299, True)):
        same = scores(np.zeros(n, dtype=int))
        found = accuracy_drop(same, same, np.zeros(n, dtype=np.int64))
        assert found.value == 0
        assert goal.holds(found) is holds
    assert goal.reason(accuracy_drop(scores([0]), scores([0]), np.array([0]))) == "accuracy_drop not shown"


def test_a_drop_over_positions():
    rng = np.random.default_rng(0)
    wanted = rng.integers(0, 3, (60, 8))
    worse = np.where(rng.random((60, 8)) < 0.1, (wanted + 1) % 3, wanted)
    found = accuracy_drop({"y": np.eye(3)[worse]}, {"y": np.eye(3)[wanted]}, wanted)
    assert 0.05 < found.lo < found.value < found.hi < 0.15
    half = np.where(np.arange(8) < 4, wanted, (wanted + 1) % 3)
    still = accuracy_drop({"y": np.eye(3)[half]}, {"y": np.eye(3)[half]}, wanted)
    assert still.value == 0
    assert still.hi == pytest.approx(1 - 0.05 ** (1 / 60))


def test_a_drop_of_a_metric_of_the_user():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=400)

    def metric(outputs, wanted):
        return 10 - float(np.abs(outputs["y"] - wanted).mean())

    old, new = {"y": labels + 0.1}, {"y": labels + 0.1 + np.abs(rng.normal(size=400))}
    found = accuracy_drop(new, old, labels, metric)
    assert found.value == pytest.approx(0.8, abs=0.1)
    assert found.lo < found.value < found.hi
    same = accuracy_drop(old, old, labels, metric)
    assert same.value == 0
    assert same.hi == pytest.approx((1 - 0.05 ** (1 / 400)) * 9.9, rel=1e-3)


def test_the_reference_needs_the_same_samples():
    with pytest.raises(UsageError, match="2 labels for 3 samples"):
        accuracy_drop(scores([1, 2]), scores([1, 2, 3]), np.array([1, 2]))
