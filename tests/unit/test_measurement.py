"""A number with its unit, interval, n and kind; how it is written, and that it says no more than was measured."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portolan.core.measurement import MARKS, METRICS, Measurement, mark


@pytest.mark.parametrize(
    ("measurement", "text"),
    [
        (Measurement(7.8123, "ms", 7.75, 7.87, 312), "7.81 ms ±0.06 (n=312)"),
        (Measurement(7.8123, "ms"), "7.81 ms"),
        (Measurement(0.05, "ms", 0.04, 0.06, 2_000), "50 µs ±10 (n=2,000)"),
        (Measurement(20_000, "ms", 19_000, 21_000), "20 s ±1"),
        (Measurement(6.9, "ms", 6.9, 6.9), "6.90 ms"),
        (Measurement(6.9, "ms", 6.9, None), "6.90 ms"),
        (Measurement(12_345, "1/s", 12_000, 12_690), "12,300 1/s ±300"),
        (Measurement(97.8 * 2**20, "B"), "97.8 MiB"),
        (Measurement(812, "B"), "812 B"),
        (Measurement(0.801, "share", 0.797, 0.805, 1_000), "80.1% ±0.4 (n=1,000)"),
        (Measurement(0.0, "share", 0.0, 0.0), "0.00%"),
        (Measurement(-0.002, "share", -0.005, 0.001), "-0.2% ±0.3"),
        (Measurement(0.14, "J", 0.12, 0.16, kind="estimated"), "~0.14 J ±0.02"),
        (Measurement(0.14, "J", kind="predicted"), "≈0.140 J"),
        (Measurement(2.4e-7, "", 2.1e-7, 2.7e-7), "2.4e-07 ±3e-08"),
        (Measurement(math.nan, "ms", 1.0, 2.0), "not a number"),
        (Measurement(math.inf, ""), "infinite"),
        (Measurement(5.0, "ms", 1.0, math.inf), "5.00 ms"),
    ],
)
def test_how_it_is_written(measurement: Measurement, text: str) -> None:
    assert str(measurement) == text


@pytest.mark.parametrize(
    ("measurement", "text", "interval"),
    [
        (Measurement(0.0, "share", 0.0, 0.0064, 600), "0.0% (0.0 to 0.6) (n=600)", "0.0 to 0.6%"),
        (Measurement(1.0, "share", 0.943, 1.0, 64), "100% (94 to 100) (n=64)", "94 to 100%"),
        (Measurement(19.4, "ms", 19.3, 19.9), "19.4 ms (19.3 to 19.9)", "19.3 to 19.9 ms"),
        (Measurement(19.4, "ms", 19.5, 19.9), "19.4 ms (19.5 to 19.9)", "19.5 to 19.9 ms"),
        (Measurement(19.4, "ms", 19.2, 19.8), "19.4 ms ±0.3", "19.2 to 19.8 ms"),
    ],
)
def test_a_lopsided_interval_has_two_ends(measurement: Measurement, text: str, interval: str) -> None:
    """± would tell of values that were ruled out, or hide some that were not."""
    assert str(measurement) == text
    assert measurement.interval == interval


@pytest.mark.parametrize(
    ("measurement", "text"),
    [
        (Measurement(0.9996, "", None, None, 64), "0.9996 (n=64)"),
        (Measurement(0.99996, ""), "0.99996"),
        (Measurement(0.9996, "", 0.9994, 0.9998), "0.9996 ±0.0002"),
        (Measurement(0.9996, "", 0.998, 1.0), "0.9996 (0.998 to 1.000)"),
        (Measurement(0.9996, "share"), "99.96%"),
        (Measurement(0.9996, "share", 0.998, 1.0), "99.96% (99.8 to 100.0)"),
        (Measurement(1.0, ""), "1.00"),
        (Measurement(1.0, "share"), "100%"),
    ],
)
def test_what_is_not_perfect_is_not_called_perfect(measurement: Measurement, text: str) -> None:
    assert str(measurement) == text


def test_short_leaves_n_out() -> None:
    assert Measurement(7.8123, "ms", 7.75, 7.87, 312).short == "7.81 ms ±0.06"


@pytest.mark.parametrize(
    "measurement", [Measurement(1.0, "ms"), Measurement(math.nan, "ms", 1.0, 2.0), Measurement(1.0, "ms", 1.0, None)]
)
def test_no_interval(measurement: Measurement) -> None:
    assert measurement.interval == ""


def test_worst_is_the_bad_end() -> None:
    measured = Measurement(5.0, "ms", 4.0, 7.0)
    assert (measured.worst("lower"), measured.worst("higher")) == (7.0, 4.0)
    assert Measurement(5.0, "ms").worst("lower") == 5.0
    assert Measurement(5.0, "ms", hi=6.0).worst("higher") == 5.0


def test_of_knows_the_unit() -> None:
    assert Measurement.of("size", 3, n=2) == Measurement(3.0, "B", None, None, 2)


def test_json_is_the_metric_object_of_the_contract() -> None:
    assert Measurement(6.9, "ms", 6.8, 7.0, 312).to_json() == {
        "value": 6.9, "unit": "ms", "lo": 6.8, "hi": 7.0, "n": 312, "kind": "measured",
    }  # fmt: skip


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.sampled_from(sorted(MARKS)))
def test_the_interval_that_is_read_is_the_one_that_was_meant(
    value: float, below: float, above: float, kind: Any
) -> None:
    """With both ends, up to rounding; with ±, off by a third of its half and rounding."""
    measured = Measurement(value, "J", value - below, value + above, kind=kind)
    assert measured.lo is not None
    assert measured.hi is not None
    half = (measured.hi - measured.lo) / 2
    text = measured.short.replace(",", "").removeprefix(MARKS[kind])
    numbers = [float(word) for word in re.findall(r"-?\d[\d.e+-]*", text)]
    assert numbers[0] == pytest.approx(value, rel=5.1e-3, abs=0.6 * half)
    if " to " in text:
        assert numbers[1:] == pytest.approx([measured.lo, measured.hi], rel=1e-6, abs=0.6 * half)
    elif "±" in text:
        assert numbers[0] - numbers[1] == pytest.approx(measured.lo, rel=1e-6, abs=1.4 * half)
        assert numbers[0] + numbers[1] == pytest.approx(measured.hi, rel=1e-6, abs=1.4 * half)
        assert numbers[1] == pytest.approx(half, rel=0.34, abs=1e-9)
    else:
        assert half == 0


@given(st.floats(0, 1))
def test_json_comes_back(value: float) -> None:
    measured = Measurement.of("cosine", value, value / 2, value, 7)
    assert Measurement(**measured.to_json()) == measured


def test_metrics_are_those_of_the_contract() -> None:
    assert set(METRICS) >= {
        *("latency_p50", "latency_p95", "latency_p99", "throughput", "size", "memory", "cold_start", "compile_time"),
        *("accuracy", "accuracy_drop", "agreement", "cosine", "max_abs_error", "cost", "energy", "carbon"),
    }
    assert all(name == metric.name and metric.about for name, metric in METRICS.items())


@pytest.mark.parametrize(
    ("a", "b", "overlap"),
    [
        (Measurement(5, "ms", 4, 6), Measurement(7, "ms", 6, 8), True),
        (Measurement(5, "ms", 4, 6), Measurement(7, "ms", 6.1, 8), False),
        (Measurement(5, "ms", 4, 6), Measurement(5.5, "ms"), True),
        (Measurement(5, "ms", 4, 6), Measurement(6.5, "ms"), False),
        (Measurement(5, "ms"), Measurement(5, "ms"), True),
        (Measurement(5, "ms"), Measurement(5.1, "ms"), False),
    ],
)
def test_overlap(a: Measurement, b: Measurement, overlap: bool) -> None:
    assert a.overlaps(b) is b.overlaps(a) is overlap


def test_what_follows_from_several_is_as_sure_as_the_least_sure() -> None:
    measured, estimated, predicted = (
        Measurement(1, "ms", kind=kind) for kind in ("measured", "estimated", "predicted")
    )
    assert [mark(measured), mark(measured, estimated), mark(estimated, predicted, measured)] == ["", "~", "≈"]
