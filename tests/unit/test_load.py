"""LoadGen before scripted systems: nothing here asks how fast the machine is."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from portolan.errors import NoBackend, UsageError
from portolan.measure import load as module
from portolan.measure.load import STREAMS, Load, Loaded, percentiles, run

pytest.importorskip("mlperf_loadgen")
Done = Callable[[str | None], None]


class System:
    """Answers every call from a thread of its own, as `answer` says."""

    def __init__(self, answer: Callable[[int], str | None] = lambda number: None) -> None:
        self.indices: list[int] = []
        self.most = self.flying = 0
        self._answer, self._calls = answer, queue.SimpleQueue[Done | None]()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def issue(self, index: int, done: Done) -> None:
        self.indices.append(index)
        self.flying += 1
        self.most = max(self.most, self.flying)
        self._calls.put(done)

    def _work(self) -> None:
        number = 0
        while (done := self._calls.get()) is not None:
            self.flying -= 1
            done(self._answer(number))
            number += 1

    def close(self) -> None:
        self._calls.put(None)
        self._thread.join()


@pytest.fixture
def system() -> Iterator[System]:
    found = System()
    yield found
    found.close()


@pytest.mark.parametrize(
    "load",
    [
        Load("SingleStream", 30, 0.0, latency=1e-4),
        Load("MultiStream", 30, 0.0, latency=1e-3),
        Load("Server", 200, 0.0, rate=2000),
        Load("Offline", 200, 0.0, rate=2000),
    ],
    ids=lambda load: load.scenario,
)
def test_every_scenario_answers_every_call(load: Load, system: System) -> None:
    found = run(system, load, samples=4)
    assert found.scenario == load.scenario
    assert len(found.latencies) == found.answered == len(system.indices)
    assert found.answered >= load.queries * (STREAMS if load.scenario == "MultiStream" else 1)
    assert set(system.indices) <= {0, 1, 2, 3}
    assert (found.latencies > 0).all()
    assert found.missing == 0.0
    assert found.failures == {}
    assert found.asked == (2000 if load.scenario == "Server" else None)
    assert Loaded.from_json(found.to_json()).to_json() == found.to_json()


def test_one_stream_has_one_call_in_flight(system: System) -> None:
    run(system, Load("SingleStream", 30, 0.0, latency=1e-4), samples=1)
    assert system.most == 1


def test_a_latency_counts_from_when_the_call_was_due() -> None:
    """A system that answers nothing until the last call is there makes the first call wait longest: none is omitted."""
    calls: list[Done] = []

    class Late:
        def issue(self, index: int, done: Done) -> None:
            calls.append(done)
            if len(calls) == 100:
                for each in calls:
                    each(None)

    found = run(Late(), Load("Server", 100, 0.0, rate=1000), samples=1)
    first = found.latencies[:100]
    assert len(found.latencies) == 100
    assert (np.diff(first[:50]) < 0).mean() > 0.9
    assert first[0] == found.latencies.max()


def test_calls_without_an_answer_are_infinite_and_counted_by_reason() -> None:
    system = System(lambda number: "too late" if number % 10 == 3 else None)
    found = run(system, Load("Server", 200, 0.0, rate=2000), samples=1)
    system.close()
    assert found.failures == {"too late": int(np.isinf(found.latencies).sum())}
    assert 0.05 < found.missing < 0.15
    assert math.isinf(found.quantile(0.99))
    assert math.isfinite(found.quantile(0.5))
    assert set(percentiles([found])) == {"latency_p50"}


def test_a_system_that_raises_does_not_hang_the_generator() -> None:
    class Broken:
        def issue(self, index: int, done: Done) -> None:
            raise ValueError("no such sample")

    found = run(Broken(), Load("Offline", 20, 0.0, rate=1000), samples=1)
    assert found.answered == 0
    assert list(found.failures) == ["no such sample"]


def test_an_abandoned_test_comes_to_its_end() -> None:
    abandoned = threading.Event()
    abandoned.set()
    found = run(System(), Load("Server", 50, 0.0, rate=1000), 1, abandoned)
    assert found.failures == {"the test was abandoned": len(found.latencies)}


def test_the_same_seed_makes_the_same_calls() -> None:
    seen = []
    for seed in (1, 1, 2):
        system = System()
        run(system, Load("Server", 50, 0.0, rate=5000, seed=seed), samples=1000)
        system.close()
        seen.append(system.indices[:50])
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


def test_the_settings_are_those_of_loadgen() -> None:
    import mlperf_loadgen as lg

    for scenario in ("SingleStream", "MultiStream", "Server", "Offline"):
        known = lg.TestSettings()
        assert all(hasattr(known, name) for name in Load(scenario).settings())
    assert Load("Server", rate=200, target=0.05).settings()["server_target_latency_ns"] == 50_000_000


def test_a_misspelt_scenario() -> None:
    with pytest.raises(UsageError, match="no scenario `server`") as caught:
        Load("server")  # type: ignore[arg-type]
    assert caught.value.hint == "use SingleStream, MultiStream, Server, Offline"


def test_without_loadgen_the_command_that_adds_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ready", lambda: False)
    with pytest.raises(NoBackend, match="`mlcommons-loadgen`") as caught:
        run(System(), Load("Offline"), 1)
    assert caught.value.hint == "pip install 'portolan[load]'"


def loaded(latencies: Any, seconds: float = 1.0) -> Loaded:
    return Loaded("Server", np.asarray(latencies, dtype=np.float64), seconds, True, 100.0)


class TestPercentiles:
    rng = np.random.default_rng(0)

    def test_as_many_as_the_calls_allow(self) -> None:
        few, some, many = (loaded(self.rng.exponential(0.01, n)) for n in (10, 100, 1000))
        assert set(percentiles([few])) == {"latency_p50"}
        assert set(percentiles([some])) == {"latency_p50", "latency_p95"}
        assert set(percentiles([many])) == {"latency_p50", "latency_p95", "latency_p99"}

    def test_the_interval_holds_the_true_value(self) -> None:
        truth = -math.log(0.01) * 10
        held = 0
        for _ in range(200):
            m = percentiles([loaded(self.rng.exponential(0.01, 800))])["latency_p99"]
            assert m.lo is not None
            assert m.hi is not None
            assert m.lo <= m.value <= m.hi
            held += m.hi >= truth
        assert held >= 190

    def test_starts_that_differ_widen_the_interval(self) -> None:
        fast, slow = loaded(np.full(600, 0.01)), loaded(np.full(600, 0.02))
        m = percentiles([fast, slow])["latency_p50"]
        assert (m.lo, m.hi, m.n) == (10.0, 20.0, 1200)

    def test_a_few_calls_without_an_answer_reach_into_the_bound(self) -> None:
        times = np.full(1000, 0.01)
        times[:2] = math.inf
        m = percentiles([loaded(times, seconds=4.0)])["latency_p99"]
        assert m.value == pytest.approx(10.0)
        assert m.hi is not None
        assert m.hi < 4000
        times[:9] = math.inf
        assert percentiles([loaded(times, seconds=4.0)])["latency_p99"].hi == 4000
        times[:10] = math.inf
        assert "latency_p99" not in percentiles([loaded(times, seconds=4.0)])
