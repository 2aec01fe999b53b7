from __future__ import annotations

import itertools
import math

import pytest

from portolan.measure.roofline import LOW_PRECISION, MATRIX_UNITS, believable, ceilings, floor_ms

MACHINE = {"flops_fp32": 100e9, "bandwidth": 20e9, "flops_int8": None}


def test_ceilings_report_the_best_and_the_spread():
    found = ceilings(2)
    assert found["cores"] == 2
    assert found["flops_int8"] is None
    for name in ("flops_fp32", "bandwidth"):
        detail = found["detail"][name]
        assert 0 < detail["min"] <= detail["median"] <= detail["best"] == found[name]
        assert detail["n"] >= 1


def test_the_integer_ceiling_is_what_a_runtime_read():
    found = ceilings(1, integers=[3e11, 5e11, 4e11])
    assert found["flops_int8"] == 5e11
    assert found["detail"]["flops_int8"] == {"min": 3e11, "median": 4e11, "best": 5e11, "n": 3}


def test_measuring_stops_when_its_time_is_over():
    ticks = itertools.count()
    found = ceilings(1, clock=lambda: float(next(ticks)))
    # Each look at this clock takes a second: one product of each size, one copy.
    assert found["detail"]["flops_fp32"]["n"] == 3
    assert found["detail"]["bandwidth"]["n"] == 1
    assert found["bandwidth"] == 2.0 * (1 << 26)


def test_the_floor_allows_for_low_precision():
    assert floor_ms(8e9, MACHINE) == pytest.approx(80 / LOW_PRECISION)
    assert floor_ms(8e9, MACHINE, ["avx2", "amx_int8"]) == pytest.approx(80 / MATRIX_UNITS)
    assert floor_ms(8e9, {"flops_fp32": None}) == 0
    assert floor_ms(0, MACHINE) == 0


def test_integers_are_bound_by_the_rate_that_was_measured():
    measured = {**MACHINE, "flops_int8": 400e9}
    assert floor_ms(8e9, measured, integers=True) == pytest.approx(8e9 / 1600e9 * 1e3), "4 times the int8 rate"
    assert floor_ms(8e9, measured) == floor_ms(8e9, MACHINE), "floats are not"
    assert floor_ms(8e9, MACHINE, integers=True) == floor_ms(8e9, MACHINE), "nothing was measured"
    slow = {**MACHINE, "flops_int8": 50e9}
    assert floor_ms(8e9, slow, integers=True) == pytest.approx(8e9 / 800e9 * 1e3), "what stays in floats is as fast"
    units = floor_ms(8e9, measured, ["amx_int8"], integers=True)
    assert units == floor_ms(8e9, MACHINE, ["amx_int8"]), "a runtime may not use the units that another uses"
    assert believable(3.0, 8e9, slow) is not None
    assert believable(6.0, 8e9, slow) is None
    assert believable(6.0, 8e9, slow, integers=True) is not None


def test_a_planted_reading_is_not_believed():
    reason = believable(0.011, 8e9, MACHINE)
    assert reason == "0.011 ms is below the roofline floor of 5 ms: this machine cannot compute that fast"
    assert believable(20.0, 8e9, MACHINE) is None
    assert believable(0.011, 0, MACHINE) is None


@pytest.mark.parametrize("ms", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_time_is_not_believed(ms):
    reason = believable(ms, 8e9, MACHINE)
    assert reason is not None
    assert "is not a time" in reason
