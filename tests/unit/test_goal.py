"""Goals: the grammar, what counts as met, and what is said when one cannot be read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portolan.core.goal import DEFAULT_LIMITS, DEFAULT_OBJECTIVES, Goals, Limit, Objective, parse_goal, parse_goals
from portolan.core.measurement import METRICS, Measurement, at_load, load_of, unloaded
from portolan.errors import PortolanError, UnknownName, UsageError

GOLDEN = Path(__file__).parents[1] / "golden" / "goals.txt"
UNITS = {"ms": ["us", "ms", "s"], "B": ["B", "KiB", "MB"], "1/s": ["", "/s", "qps"], "share": ["", "%"], "": ["", "%"]}


def ms(value: float, lo: float | None = None, hi: float | None = None) -> Measurement:
    return Measurement(value, "ms", lo, hi)


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("latency_p95 < 8ms", Limit("latency_p95", "<", 8.0, "latency_p95 < 8ms")),
        ("latency_p95<8ms", Limit("latency_p95", "<", 8.0, "latency_p95<8ms")),
        ("  latency_p50 ≤ 0.5 s ", Limit("latency_p50", "<=", 500.0, "latency_p50 ≤ 0.5 s")),
        ("cold_start <= 2s", Limit("cold_start", "<=", 2000.0, "cold_start <= 2s")),
        ("accuracy_drop <= 1%", Limit("accuracy_drop", "<=", 0.01, "accuracy_drop <= 1%")),
        ("accuracy_drop <= 1 pp", Limit("accuracy_drop", "<=", 0.01, "accuracy_drop <= 1 pp")),
        ("accuracy ≥ 0.8", Limit("accuracy", ">=", 0.8, "accuracy ≥ 0.8")),
        ("cosine >= 0.99", Limit("cosine", ">=", 0.99, "cosine >= 0.99")),
        ("size < 25MiB", Limit("size", "<", 25 * 2**20, "size < 25MiB")),
        ("throughput > 100/s", Limit("throughput", ">", 100.0, "throughput > 100/s")),
        ("energy < 5mJ", Limit("energy", "<", 0.005, "energy < 5mJ")),
        ("cost <= 0.30USD", Limit("cost", "<=", 0.3, "cost <= 0.30USD")),
        ("carbon < 1kg", Limit("carbon", "<", 1000.0, "carbon < 1kg")),
        ("min size", Objective("size", "min", "min size")),
        ("latency_p99 < 50ms at 200 qps", Limit("latency_p99@200qps", "<", 50.0, "latency_p99 < 50ms at 200 qps")),
        ("latency_p50<=1s at 0.5/s", Limit("latency_p50@0.5qps", "<=", 1000.0, "latency_p50<=1s at 0.5/s")),
        (" min latency_p95  at 1_000qps ", Objective("latency_p95@1000qps", "min", "min latency_p95  at 1_000qps")),
        (" max  throughput ", Objective("throughput", "max", "max  throughput")),
    ],
)
def test_grammar(text: str, goal: Limit | Objective) -> None:
    assert parse_goal(text) == goal


def limits() -> st.SearchStrategy[str]:
    def of(name: str) -> st.SearchStrategy[str]:
        units = st.sampled_from(UNITS.get(METRICS[name].unit, [METRICS[name].unit]))
        numbers = st.decimals(0, 10_000, places=3).map(str)
        operators = st.sampled_from(["<", "<=", ">", ">=", "≤", "≥"])
        space = st.sampled_from(["", " ", "  "])
        return st.tuples(st.just(name), space, operators, space, numbers, units).map("".join)

    return st.sampled_from(sorted(METRICS)).flatmap(of)


def loaded() -> st.SearchStrategy[str]:
    latency = st.sampled_from(["latency_p50 < 8ms", "latency_p99<=0.1 s", "min latency_p95"])
    rate = st.decimals("0.001", 1_000_000, places=3).map(str)
    return st.tuples(latency, st.just(" at "), rate, st.sampled_from(["", " qps", "/s"])).map("".join)


def objectives() -> st.SearchStrategy[str]:
    return st.tuples(st.sampled_from(["min", "max"]), st.sampled_from(sorted(METRICS))).map(" ".join)


@given(limits() | objectives() | loaded())
def test_a_goal_survives_being_written_and_read(text: str) -> None:
    goal = parse_goal(text)
    assert parse_goal(goal.text) == goal


@given(st.lists(limits() | objectives() | loaded(), max_size=5))
def test_goals_survive_being_written_and_read(texts: list[str]) -> None:
    try:
        goals = parse_goals(texts)
    except UsageError as error:
        reason = error.message
    else:
        reason = "both"
        assert parse_goals(goals.texts) == goals
    assert "both" in reason


@given(st.text(max_size=30))
def test_any_text_is_a_goal_or_an_error_with_a_hint(text: str) -> None:
    hint: str | None = "none is needed"
    try:
        parse_goal(text)
    except UsageError as error:
        hint = error.hint
    assert hint


@given(limits(), st.floats(allow_nan=True), st.floats(allow_nan=True), st.floats(allow_nan=True))
def test_met_not_met_and_the_reason_agree(text: str, value: float, lo: float, hi: float) -> None:
    limit = parse_goal(text)
    assert isinstance(limit, Limit)
    measured = Measurement(value, METRICS[limit.metric].unit, lo, hi)
    met = limit.holds(measured)
    assert (limit.reason(measured) is None) == met
    assert (limit.shortfall(measured) == 0) == met
    assert not math.isnan(limit.shortfall(measured))
    if met:
        assert limit.holds(Measurement(measured.worst("lower" if limit.op[0] == "<" else "higher"), measured.unit))


@pytest.mark.parametrize(
    ("text", "measured", "met", "reason"),
    [
        ("latency_p95 < 8ms", ms(7.9), True, None),
        ("latency_p95 < 8ms", ms(8.0), False, "too slow"),
        ("latency_p95 <= 8ms", ms(8.0), True, None),
        ("latency_p95 <= 8ms", ms(8.0 + 1e-14), True, None),
        ("latency_p95 < 8ms", ms(8.0 - 1e-14), False, "too slow"),
        ("latency_p95 <= 8ms", ms(8.001), False, "too slow"),
        ("latency_p95 < 8ms", ms(7.9, 7.7, 8.1), False, "latency_p95 not shown"),
        ("latency_p95 < 8ms", ms(8.1, 7.9, 8.2), False, "too slow"),
        ("latency_p95 < 8ms", ms(7.9, 7.7, None), True, None),
        ("latency_p95 < 8ms", None, False, "latency_p95 not measured"),
        ("latency_p95 < 8ms", ms(math.nan), False, "latency_p95 is not a number"),
        ("latency_p95 < 8ms", ms(math.nan, 1.0, 2.0), False, "latency_p95 is not a number"),
        ("latency_p95 < 8ms", ms(-math.inf), False, "too slow"),
        ("latency_p95 < 8ms", ms(5.0, 1.0, math.nan), False, "latency_p95 not shown"),
        ("throughput > 100", Measurement(math.inf, "1/s"), False, "too slow"),
        ("throughput > 100", Measurement(101, "1/s", 99, 103), False, "throughput not shown"),
        ("throughput >= 100", Measurement(90, "1/s"), False, "too slow"),
        ("size < 1MiB", Measurement(2**20, "B"), False, "too large"),
        ("memory < 1MiB", Measurement(2**21, "B"), False, "too much memory"),
        ("accuracy_drop <= 1%", Measurement(0.01, "share"), True, None),
        ("accuracy_drop <= 1%", Measurement(0.93 - 0.92, "share"), True, None),
        ("accuracy_drop < 1%", Measurement(0.93 - 0.92, "share"), False, "accuracy_drop missed"),
        ("accuracy_drop <= 0", Measurement(1e-17, "share"), True, None),
        ("cosine >= 0.99", Measurement(0.98, ""), False, "cosine missed"),
    ],
)  # fmt: skip
def test_when_a_limit_holds(text: str, measured: Measurement | None, met: bool, reason: str | None) -> None:
    limit = parse_goal(text)
    assert isinstance(limit, Limit)
    assert limit.holds(measured) is met
    assert limit.reason(measured) == reason


def test_shortfall_is_relative() -> None:
    limit = Limit("latency_p95", "<", 8.0, "")
    assert limit.shortfall(ms(7.0)) == 0
    assert limit.shortfall(ms(10.0)) == pytest.approx(0.25)
    assert limit.shortfall(ms(7.9, 7.7, 8.8)) == pytest.approx(0.1)
    assert limit.shortfall(None) == math.inf
    assert limit.shortfall(ms(math.nan)) == math.inf
    assert Limit("accuracy_drop", "<=", 0.0, "").shortfall(Measurement(0.003, "share")) == pytest.approx(3)


def test_cost_of_an_objective() -> None:
    least, most = Objective("size", "min", ""), Objective("throughput", "max", "")
    assert least.cost(Measurement(3, "B")) == 3
    assert most.cost(Measurement(3, "1/s")) == -3
    for nothing in (None, Measurement(math.nan, "1/s"), Measurement(math.inf, "1/s")):
        assert least.cost(nothing) == most.cost(nothing) == math.inf


def test_without_goals_outputs_stay_and_speed_ranks() -> None:
    goals = parse_goals([])
    assert goals == Goals(DEFAULT_LIMITS, DEFAULT_OBJECTIVES)
    assert goals.texts == ["max_rel_error <= 0.001", "min latency_p50"]
    assert goals.metrics == ["max_rel_error", "latency_p50"]
    assert not goals.lossy


@pytest.mark.parametrize("text", ["cosine >= 0.99", "accuracy_drop <= 1%", "agreement > 95%", "max_abs_error < 0.1"])
def test_a_quality_limit_allows_outputs_to_change(text: str) -> None:
    goals = parse_goals([text, "min size"])
    assert goals.lossy
    assert goals.texts == [text, "min size"]


def test_a_limit_on_speed_does_not_allow_outputs_to_change() -> None:
    goals = parse_goals(["latency_p95 < 8ms"])
    assert not goals.lossy
    assert goals.texts == ["latency_p95 < 8ms", "max_rel_error <= 0.001", "min latency_p50"]


def test_goals_name_each_metric_once() -> None:
    goals = parse_goals(["latency_p50 < 8ms", "min latency_p50", "cosine > 0.9"])
    assert goals.metrics == ["latency_p50", "cosine"]


def test_the_same_goal_twice_counts_once_and_keeps_its_place() -> None:
    texts = ["min  size", "size < 8MiB", "min size", "latency_p95 < 8ms", "size<8MiB", "latency_p95 < 0.008s"]
    assert parse_goals([*texts, "cosine > 0.9"]).texts == [
        "size < 8MiB", "latency_p95 < 8ms", "cosine > 0.9", "min  size",
    ]  # fmt: skip


def test_goals_judge_a_trial() -> None:
    goals = parse_goals(["latency_p95 < 8ms", "cosine >= 0.99", "min size", "max throughput"])
    metrics = {"latency_p95": ms(10.0), "cosine": Measurement(0.995, ""), "size": Measurement(5, "B")}
    assert goals.unmet(metrics) == ["too slow"]
    assert goals.unmet({}) == ["latency_p95 not measured", "cosine not measured"]
    assert goals.costs(metrics) == (5, math.inf)
    assert goals.shortfall(metrics) == pytest.approx(0.25)
    assert goals.shortfall({}) == math.inf


@pytest.mark.parametrize("text", ["latency_p95 < 8ms", "latency_p95 <= 8ms"])
@pytest.mark.parametrize("other", ["latency_p95 > 2ms", "latency_p95 < 5ms", "latency_p50 > 9ms"])
def test_limits_that_can_hold_together(text: str, other: str) -> None:
    assert parse_goals([text, other]).texts[:2] == [text, other]


def test_both_bounds_may_meet() -> None:
    assert len(parse_goals(["accuracy <= 1", "accuracy >= 100%"]).limits) == 2


def test_a_metric_under_load_is_another_metric() -> None:
    texts = ["latency_p99 < 50ms at 200 qps", "latency_p99 < 20ms", "latency_p99 > 60ms at 1000 qps", "min size"]
    goals = parse_goals(texts)
    assert goals.loads == [200.0, 1000.0]
    assert goals.unmet({"latency_p99": ms(5.0)})[0] == "latency_p99 at 200 qps not measured"
    assert [x.metric for x in goals.unloaded.limits] == ["latency_p99", "max_rel_error"]
    assert goals.unloaded.objectives == goals.objectives


def test_a_limit_under_load_ranks_by_its_own_metric() -> None:
    goals = parse_goals(["latency_p99 < 50ms at 200 qps"])
    assert goals.texts[-1] == "min latency_p99 at 200 qps"
    assert parse_goals(goals.texts) == goals
    assert goals.unloaded.objectives == DEFAULT_OBJECTIVES


@given(st.floats(1e-3, 1e6))
def test_the_key_of_a_metric_under_load_comes_back(rate: float) -> None:
    name = at_load("latency_p99", rate)
    assert unloaded(name) == "latency_p99"
    assert load_of(name) == pytest.approx(rate)
    assert load_of(at_load("latency_p99", load_of(name) or 0)) == load_of(name)


@pytest.mark.parametrize("name", ["latency_p99", "size@200qps", "latency_p99@qps", "latency_p99@0200qps", "x@1qps", ""])
def test_what_is_no_key_of_a_metric_under_load(name: str) -> None:
    assert load_of(name) is None


WRONG: dict[str, list[str]] = {
    "no grammar": ["be quick"],
    "empty": [""],
    "equality": ["latency_p95 = 8ms"],
    "reversed": ["8ms > latency_p95"],
    "objective without a metric": ["min"],
    "another word for min": ["minimize size"],
    "two limits in one": ["latency_p95 < 8ms and size < 1MiB"],
    "mistyped metric": ["latency_p59 < 8ms"],
    "metric in capitals": ["Latency_P95 < 8ms"],
    "mistyped objective": ["min sise"],
    "a metric that is nothing like one": ["max beauty"],
    "no unit": ["latency_p95 < 8"],
    "wrong unit": ["size < 8ms"],
    "unit in capitals": ["latency_p95 < 8MS"],
    "decimal comma": ["latency_p95 < 1,5ms"],
    "no number": ["latency_p95 < fast"],
    "not finite": ["latency_p95 < 1e999ms"],
    "both directions": ["min size", "max size"],
    "a load that is none": ["latency_p99 < 8ms at 0 qps"],
    "a load in another unit": ["latency_p99 < 8ms at 200ms"],
    "a load that is no number": ["latency_p99 < 8ms at once"],
    "a metric without load": ["size < 8MiB at 200 qps"],
    "mistyped metric at a load": ["min latency_p98 at 200 qps"],
    "both directions at a load": ["min latency_p99 at 200 qps", "max latency_p99 at 200 qps"],
    "no value between at a load": ["latency_p99 < 5ms at 9 qps", "latency_p99 > 5ms at 9 qps"],
    "no value between": ["latency_p95 > 8ms", "latency_p95 < 5ms"],
    "no value between open ends": ["accuracy > 80%", "accuracy < 0.8"],
    "no value at one open end": ["accuracy >= 80%", "accuracy < 0.8"],
}


def test_errors_are_those_of_the_snapshot() -> None:
    """Text, hint and place of each; delete tests/golden/goals.txt and run this once to write it anew."""
    told = []
    for name, texts in WRONG.items():
        with pytest.raises(PortolanError) as caught:
            parse_goals(texts)
        error: Any = caught.value
        lines = [f"# {name}: {texts}", f"exit {error.exit_code}", f"error: {error.message}"]
        lines += [f"at {error.where}"] if error.where else []
        lines += [f"hint: {error.hint}"] if error.hint else []
        told.append("\n".join(lines) + "\n")
    written = "\n".join(told)
    if not GOLDEN.is_file():
        GOLDEN.write_text(written, encoding="utf-8")
        pytest.fail("the snapshot was missing and has been written: read it")
    assert written == GOLDEN.read_text(encoding="utf-8")


def test_an_unknown_metric_is_an_unknown_name() -> None:
    with pytest.raises(UnknownName, match="`sise`") as caught:
        parse_goal("min sise")
    assert caught.value.hint == "did you mean `size`?"
