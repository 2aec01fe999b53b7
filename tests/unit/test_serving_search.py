"""How models are served: the recipe's choice, profiles, predictions, and what loads say."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import MODEL, TARGET

from portolan.core.goal import parse_goals
from portolan.core.measurement import Measurement
from portolan.core.recipe import Recipe
from portolan.core.serving import DEFAULT_BATCH, Overhead, Profile, Serving, largest_batch, sizes_up_to
from portolan.errors import UsageError, WorkerError
from portolan.measure.load import Loaded
from portolan.measure.profile import profile
from portolan.search.candidate import Candidate
from portolan.search.serving import (
    Choice,
    check_pinned,
    choices,
    predict,
    ranked,
    scaled,
    simulate,
    tightest,
    with_overhead,
)
from portolan.serving.source import Limits
from portolan.serving.trial import LoadResult
from portolan.study.builder import Compiled
from portolan.study.loads import alone, asked_of, family, measured, priced, source_of, unsustained
from portolan.study.served import Level, Served
from portolan.study.task import Task

#: Seconds of a batch, GPU-like and CPU-like, as in the table of policies that the scheduler was chosen by.
GPU = {b: (2 + 0.15 * b) / 1e3 for b in (1, 2, 4, 8, 16, 32, 64)}
CPU = {b: (5 + 4 * b) / 1e3 for b in (1, 2, 4, 8, 16, 32, 64)}


def known(seconds: dict[int, float]) -> Profile:
    return Profile({size: Measurement(value, "s", n=21) for size, value in seconds.items()})


class TestServing:
    def test_text(self) -> None:
        assert str(Serving()) == "defaults"
        assert str(Serving(8, (1, 2), 0.05)) == "batch 8, 1 to 2 replicas, deadline 50 ms"
        assert str(Serving(1, (1, 1))) == "batch 1, 1 replica"

    def test_a_number_of_replicas_is_both_ends(self) -> None:
        assert Serving.of({"replicas": 2}).to_json() == {"replicas": [2, 2]}

    @pytest.mark.parametrize("data", [{"max_batch": True}, {"deadline": math.nan}, {"replicas": [1]}, {"batch": 1}])
    def test_what_does_not_fit(self, data: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            Serving.of(data)

    def test_ranges_are_for_recipe_files_only(self) -> None:
        check_pinned({"max_batch": [1, 8], "replicas": [1, 2], "deadline": [0.1, 0.2]})
        for wrong in ({"max_batch": [1, 0]}, {"max_batch": "x"}, {"deadline": [0.1, "x"]}, {"max_bach": 1}):
            with pytest.raises(UsageError):
                check_pinned(wrong)
        with pytest.raises(UsageError):
            Serving.of({"max_batch": [1, 8]})


class TestProfile:
    def test_it_comes_back(self) -> None:
        found = known(GPU)
        assert Profile.from_json(found.to_json()) == found
        assert found.largest == 64
        assert found.rate(64) == pytest.approx(64 / GPU[64])
        assert found.rate(3) == pytest.approx(2 / GPU[2])

    def test_sizes(self) -> None:
        assert list(sizes_up_to(1)) == [1]
        assert list(sizes_up_to(64)) == [1, 2, 4, 8, 16, 32, 64]
        assert list(sizes_up_to(7)) == [1, 2, 4]

    def measure(self, seconds: Any, **more: Any) -> tuple[Profile, str | None]:
        rng = np.random.default_rng(0)

        def block(size: int, duration: float, least: int) -> np.ndarray:
            del duration
            return seconds(size) * 1e3 * rng.lognormal(0, 0.01, least)

        return profile(block, **more)

    def test_it_is_the_95th_percentile_of_each_size(self) -> None:
        found, note = self.measure(lambda b: (2 + 0.15 * b) / 1e3)
        assert note is None
        assert found.sizes == [1, 2, 4, 8, 16, 32, 64]
        for size in found.sizes:
            m = found.batches[size]
            assert GPU[size] < m.value < GPU[size] * 1.05
            assert m.n == 21
            assert m.unit == "s"

    def test_it_ends_where_batches_bring_nothing(self) -> None:
        assert self.measure(lambda b: 0.01 * b)[0].sizes == [1, 2, 4]

    def test_it_ends_where_nobody_would_wait(self) -> None:
        assert self.measure(lambda b: 0.3 + 0.02 * b, longest=0.4)[0].sizes == [1, 2, 4, 8]

    def test_it_ends_at_the_limit(self) -> None:
        assert self.measure(lambda b: (2 + 0.15 * b) / 1e3, limit=1)[0].sizes == [1]

    def test_a_batch_that_does_not_run_ends_it_with_the_reason(self) -> None:
        def seconds(size: int) -> float:
            if size == 8:
                raise WorkerError("out of memory")
            return 0.001

        found, note = self.measure(lambda b: seconds(b) * (1 + 0.1 * b))
        assert found.sizes == [1, 2, 4]
        assert note == "a batch of 8 does not run: out of memory"

    def test_a_model_that_does_not_run_is_an_error(self) -> None:
        def nothing(size: int) -> float:
            raise WorkerError("crashed")

        with pytest.raises(WorkerError, match="crashed"):
            self.measure(nothing)


class TestSimulation:
    @pytest.mark.parametrize(
        ("seconds", "peak", "deadline", "load", "share"),
        [(GPU, 5517, 0.040, 1.2, 0.781), (GPU, 5517, 0.015, 0.9, 0.925), (CPU, 245, 0.150, 1.2, 0.79),
         (CPU, 245, 0.150, 0.9, 0.988)],
    )  # fmt: skip
    def test_it_agrees_with_the_table_of_policies(
        self, seconds: dict[int, float], peak: float, deadline: float, load: float, share: float
    ) -> None:
        found = simulate(seconds, rate=load * peak, cap=64, deadline=deadline, calls=20_000)
        assert (found <= deadline).mean() == pytest.approx(share, abs=0.05)

    def test_every_call_is_counted_once(self) -> None:
        for deadline in (math.inf, 0.01):
            found = simulate(GPU, rate=9000, cap=8, replicas=2, deadline=deadline, calls=3000)
            assert len(found) == 3000
            assert (found[np.isfinite(found)] >= GPU[1]).all()

    def test_without_batches_it_is_a_queue_of_one_server(self) -> None:
        """M/D/1: the mean wait is rho / (2 (1 - rho)) services."""
        found = simulate({1: 0.01}, rate=50, cap=1, calls=100_000)
        assert found.mean() == pytest.approx(0.01 * (1 + 0.5 / (2 * 0.5)), rel=0.03)

    def test_more_replicas_and_larger_batches_help(self) -> None:
        def p99(cap: int, replicas: int) -> float:
            return float(np.quantile(simulate(GPU, rate=800, cap=cap, replicas=replicas), 0.99))

        assert p99(1, 2) > p99(1, 3)
        assert p99(1, 3) > p99(16, 3)


GOALS = parse_goals(["latency_p99 < 50ms at 200 qps", "max throughput"])
CANDIDATE = Candidate(Recipe((), "onnxruntime", {"threads": 1}))
METRICS = {"memory": Measurement(100.0, "B"), "size": Measurement(5.0, "B")}


class TestPredictions:
    def options(self, seconds: dict[int, float] = GPU, **pinned: Any) -> list[Choice]:
        return list(choices(CANDIDATE, known(seconds), GOALS, METRICS, cores=2, threads=1, pinned=pinned))

    def test_they_are_marked_as_such(self) -> None:
        found = predict(known(GPU), Serving(8, (2, 2), 0.05), GOALS, METRICS)
        assert {n for n, m in found.items() if m.kind == "predicted"} == {
            "latency_p50@200qps", "latency_p95@200qps", "latency_p99@200qps", "throughput", "memory",
        }  # fmt: skip
        assert found["memory"].value == 200
        assert found["throughput"].value == pytest.approx(2 * 8 / GPU[8])
        assert found["size"] == METRICS["size"]

    def test_a_load_beyond_the_peak_has_no_end(self) -> None:
        found = predict(known({1: 0.01, 2: 0.02}), Serving(2, (1, 1)), GOALS, METRICS)
        assert found["latency_p99@200qps"].value == math.inf

    def test_the_space(self) -> None:
        found = self.options()
        assert {c.serving.max_batch for c in found} == {1, 2, 4, 8, 16, 32, 64}
        assert {c.serving.replicas for c in found} == {(1, 1), (2, 2)}
        assert {c.serving.deadline for c in found} == {0.05}
        assert len(found) == 14

    def test_replicas_have_cores_of_their_own(self) -> None:
        found = choices(CANDIDATE, known(GPU), GOALS, METRICS, cores=8, threads=3, pinned={})
        assert {c.serving.replicas for c in found} == {(1, 1), (2, 2)}

    def test_what_is_pinned_stays_and_lists_are_ranges(self) -> None:
        found = self.options(max_batch=[2, 6], replicas=[0, 3], deadline=1)
        assert [c.serving for c in found] == [Serving(2, (0, 3), 1.0), Serving(6, (0, 3), 1.0)]

    def test_the_best_predicted_comes_first(self) -> None:
        first = ranked(self.options(CPU), GOALS)[0]
        held = predict(known(CPU), first.serving, GOALS, METRICS)["latency_p99@200qps"].value
        assert held < 50
        assert first.serving.replicas == (2, 2)

    def test_among_equals_the_smallest_batch_that_is_nearly_the_fastest_comes_first(self) -> None:
        goals = parse_goals(["latency_p99 < 50ms at 1 qps", "min size"])
        found = list(choices(CANDIDATE, known(GPU), goals, METRICS, cores=2, threads=1, pinned={}))
        assert ranked(found[::-1], goals)[0].serving == Serving(64, (1, 1), 0.05)
        flat = list(choices(CANDIDATE, known(CPU), goals, METRICS, cores=2, threads=1, pinned={}))
        assert ranked(flat, goals)[0].serving == Serving(16, (1, 1), 0.05)

    def test_memory_is_corrected_by_what_was_seen(self) -> None:
        first = self.options()[0]
        assert scaled(first, "memory", 0.5).predicted["memory"].value == 50
        assert scaled(first, "energy", 0.5) is first

    def test_the_tightest_limit_is_the_deadline(self) -> None:
        texts = ["latency_p50 < 9ms at 9 qps", "latency_p99 < 0.1s at 9 qps", "latency_p95 < 1ms", "min size"]
        assert tightest(parse_goals(texts)) == 0.009
        assert tightest(parse_goals(["latency_p95 < 1ms", "min latency_p99 at 9 qps"])) is None

    def test_what_the_server_adds_to_a_batch_is_predicted_too(self) -> None:
        profile, serving = known({1: 0.001, 4: 0.001}), Serving(4, (1, 1), 1.0)
        bare = predict(profile, serving, GOALS, METRICS)
        more = predict(profile, serving, GOALS, METRICS, Overhead(batch=0.002, call=0.001))
        assert bare["throughput"].value == 4000
        assert more["throughput"].value == pytest.approx(4 / 0.006)
        assert more["latency_p99@200qps"].value > bare["latency_p99@200qps"].value
        choice = Choice(CANDIDATE, profile, bare)
        assert with_overhead(choice, GOALS, METRICS, Overhead()).predicted["throughput"].value == 4000

    def test_a_load_test_tells_it_and_older_ones_did_not(self) -> None:
        told = replace(result(), overhead=Overhead(0.1, 0.2)).to_json()
        assert LoadResult.from_json(told).overhead == Overhead(0.1, 0.2)
        del told["overhead"]
        assert LoadResult.from_json(told).overhead == Overhead()


def run(latencies: Any, scenario: Any = "Server", failures: dict[str, int] | None = None) -> Loaded:
    times = np.asarray(latencies, dtype=np.float64)
    return Loaded(scenario, times, 1.0, True, 200.0 if scenario == "Server" else None, failures=failures or {})


def result(*runs: Loaded, memory: int = 1000, lost: int = 0) -> LoadResult:
    return LoadResult(runs, memory, lost, 0.5)


class TestLargestBatch:
    @pytest.mark.parametrize(
        ("chosen", "profiled", "axis", "rows"),
        [
            (None, False, "n", DEFAULT_BATCH),
            (None, True, "n", 64),
            (4, True, "n", 4),
            (128, True, "n", 128),
            (4, True, 8, 8),  # a fixed axis is the batch, whatever was chosen
            (None, False, 8, 8),
            (4, True, 1, 1),
            (4, True, None, 1),  # the inputs' first axes differ: there is no batch
        ],
    )
    def test_the_rule(self, chosen: int | None, profiled: bool, axis: int | str | None, rows: int) -> None:
        assert largest_batch(chosen, known(GPU) if profiled else None, axis) == rows


class TestTask:
    def task(self, *texts: str, served: bool = True) -> Task:
        samples: Any = None
        return Task(MODEL, TARGET, parse_goals(texts), samples, {}, [], {}, None, None, 0, "", served)

    def test_recipes_are_not_held_to_what_serving_decides(self) -> None:
        goals = self.task("latency_p99 < 5ms at 9 qps", "memory < 1GiB", "size < 9MiB", "min cost").unserved
        assert [x.metric for x in goals.limits] == ["size", "max_rel_error"]
        assert [o.metric for o in goals.objectives] == ["latency_p50"]
        assert self.task("max throughput").unserved.objectives == parse_goals(["max throughput"]).objectives
        plain = self.task("memory < 1GiB", served=False)
        assert plain.unserved is plain.goals

    def test_only_what_one_process_decides_is_raced(self) -> None:
        assert not self.task("latency_p99 < 5ms at 9 qps", "min memory").raced
        assert self.task("latency_p99 < 5ms at 9 qps", "latency_p50 < 5ms").raced
        assert self.task("max throughput", served=False).raced


class TestLoads:
    def test_a_price_makes_a_cost_of_a_throughput(self) -> None:
        metrics = {"throughput": Measurement(1000.0, "1/s", 500.0, 2000.0, 9)}
        assert priced(metrics, 3.6)["cost"] == Measurement(1.0, "USD", 0.5, 2.0, 9)
        assert priced({"throughput": Measurement(10.0, "1/s", kind="predicted")}, 1.0)["cost"].kind == "predicted"
        assert priced(metrics, None) is metrics
        assert priced({}, 3.6) == {}

    def test_metrics(self) -> None:
        found = measured([result(run(np.full(500, 0.01)), run(np.full(90, 0.5), "Offline"), memory=m) for m in (9, 7)])
        assert set(found) == {"latency_p50@200qps", "latency_p95@200qps", "latency_p99@200qps", "throughput", "memory"}
        assert found["latency_p99@200qps"].n == 1000
        assert found["throughput"] == Measurement(90.0, "1/s", 90.0, 90.0, 2)
        assert found["memory"] == Measurement(8.0, "B", 7.0, 9.0, 2)

    def test_a_load_that_was_held(self) -> None:
        times = np.full(500, 0.01)
        times[:4] = math.inf
        assert unsustained([result(run(times, failures={"late": 4}))], GOALS) is None

    def test_a_load_that_was_not(self) -> None:
        times = np.full(500, 0.01)
        times[:100] = math.inf
        assert unsustained([result(run(times, failures={"late": 90, "full": 10}))], GOALS) == (
            "cannot hold 200 qps: 20.0% of the calls got no answer (late); 400 per second were answered"
        )

    def test_a_crash(self) -> None:
        assert unsustained([result(run([0.1]), lost=2)], GOALS) == (
            "crashed under load: 2 replicas ended (every call was answered)"
        )

    def test_what_loadgen_is_asked_to_judge(self) -> None:
        texts = ["latency_p50 < 9ms at 9 qps", "latency_p99 < 0.1s at 9 qps", "min latency_p95 at 7 qps"]
        assert asked_of(parse_goals(texts), 9.0) == (0.1, 0.99)
        assert asked_of(parse_goals(texts), 7.0) == (0.0, 0.99)

    def test_what_was_not_chosen_is_the_servers_default(self, tmp_path: Path) -> None:
        model = replace(MODEL, signature=MODEL.signature.freed)
        compiled = Compiled("k", tmp_path, model, "onnxruntime", 0.1, 1, 1, {})
        usual = source_of(Serving(), known(GPU), compiled, "net")
        assert usual.limits == replace(Limits(), max_batch=64)
        assert usual.profile == pytest.approx(GPU)
        chosen = source_of(Serving(4, (1, 3), 0.2), known(GPU), compiled, "net")
        assert chosen.limits == replace(Limits(), max_batch=4, replicas=(3, 3), deadline=0.2)

    def test_threads_make_no_other_family(self) -> None:
        other = replace(CANDIDATE, recipe=replace(CANDIDATE.recipe, options={"threads": 2}))
        assert family(other) == family(CANDIDATE)
        assert family(Candidate(Recipe((), "openvino"))) != family(CANDIDATE)
        served = replace(CANDIDATE, recipe=replace(CANDIDATE.recipe, serving={"max_batch": 2}))
        assert alone(served) == CANDIDATE


@given(st.lists(st.floats(0, 10) | st.just(math.inf), min_size=1, max_size=40))
def test_a_run_comes_back(latencies: list[float]) -> None:
    first = result(run(latencies))
    again = LoadResult.from_json(first.to_json())
    assert again.runs[0].answered == first.runs[0].answered
    np.testing.assert_allclose(again.runs[0].latencies, first.runs[0].latencies, atol=1e-6)


class TestClaims:
    """What is measured to the end fits into the time that is left."""

    def claimed(self, left: float, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int | None, int, int]]:
        found = list(choices(CANDIDATE, known(GPU), GOALS, METRICS, cores=2, threads=1, pinned={"replicas": 1}))[:3]
        usual, seen = found[0], []
        search = Served.__new__(Served)
        search._task = TestTask().task("latency_p99 < 50ms at 200 qps")
        monkeypatch.setattr(search, "_left", lambda: left, raising=False)
        monkeypatch.setattr(search, "_estimate", lambda choice, plan: 10.0 * plan.starts, raising=False)
        monkeypatch.setattr(search, "_rank", lambda choice: choice.serving.max_batch, raising=False)
        monkeypatch.setattr(search, "_settle", lambda *args: True, raising=False)
        monkeypatch.setattr(search, "_say", lambda line: None, raising=False)

        def test(choice: Choice, plan: Level, start: int) -> dict[str, Any]:
            seen.append((choice.serving.max_batch, plan.queries, start))
            return {}

        monkeypatch.setattr(search, "_test", test, raising=False)
        search._claim(found, usual)
        return sorted(seen, key=lambda x: (x[2], x[0] or 0))

    def test_with_time_all_starts_of_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.claimed(1000.0, monkeypatch)
        assert found == [(batch, 300, start) for start in range(3) for batch in (1, 2, 4)]

    def test_with_less_time_fewer_choices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.claimed(45.0, monkeypatch) == [(batch, 300, start) for start in range(3) for batch in (1, 2)]

    def test_with_hardly_any_one_longer_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.claimed(25.0, monkeypatch) == [(1, 500, 0), (2, 500, 0)]
