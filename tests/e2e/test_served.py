"""Goals under load: the search picks how a model is served, on the scripted backend and once on a real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlperf_loadgen")

import portolan
from contract import json_shapes
from portolan.bundle import open_bundle
from portolan.cli import show_study
from portolan.core.measurement import load_of
from portolan.errors import Interrupted, WorkerCrashed
from portolan.hosting import open_source
from portolan.study import served
from support.studies import Lab

#: One call takes 5 ms, so 600 a second are three times too many; a batch costs little more than one call.
SLOW = {"latency_ms": 5.0, "row_ms": 5.0}
BATCHES = {"latency_ms": 4.0, "row_ms": 0.1}
GOAL = "latency_p95 < 150ms at 600 qps"
KEY = "latency_p95@600qps"
#: As thorough as the rules need, and no more: starts of a few hundred calls.
LEVELS = served.Level(240, 0.4, 8.0, 1, "tried"), served.Level(240, 0.4, None, 1, "loaded")


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served, "LEVELS", LEVELS)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    found = Lab(tmp_path_factory.mktemp("served"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.env.items():
            patch.setenv(name, value)
        found.script(default=SLOW, batches=BATCHES)
        yield found


@pytest.fixture(scope="module")
def study(place: Lab) -> Any:
    return place.optimize(goals=[GOAL])


def test_it_picks_what_holds_the_load(study: Any) -> None:
    best, baseline = study.best, study.baseline
    assert best.recipe.options == {"variant": "batches"}
    assert set(best.recipe.serving) == {"max_batch", "replicas", "deadline"}
    assert best.recipe.serving["deadline"] == 0.15
    assert "loaded" in best.stages
    assert best.metrics[KEY].kind == "measured"
    assert best.metrics[KEY].n >= 60
    assert best.metrics[KEY].hi < 150
    assert baseline.recipe.serving == {}
    assert not baseline.met
    json_shapes.study(json.loads(json.dumps(study.to_json())))


def test_what_was_found_of_serving_is_in_the_answer(study: Any) -> None:
    serving = study.to_json()["serving"]
    assert serving["loads"] == [600.0]
    profile = next(p for p in serving["profiles"] if p["recipe"]["options"] == {"variant": "batches"})
    times = {int(size): m["value"] for size, m in profile["profile"]["batches"].items()}
    assert times[1] >= 0.004
    assert times[8] / 8 < times[1]
    assert all(load_of(name) or name in ("throughput", "memory") for c in serving["choices"] for name in c["predicted"])
    assert all(m["kind"] == "predicted" for c in serving["choices"] for m in c["predicted"].values())
    scenarios = {run["scenario"] for run in serving["runs"] if run["trial"] == study.best.id}
    assert scenarios == {"Server", "Offline", "SingleStream", "MultiStream"}
    assert {run["trial"] for run in serving["runs"]} >= {study.best.id, study.baseline.id}


def test_repeating_the_command_measures_nothing(place: Lab, study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "put_under_load", None)
    assert place.optimize(goals=[GOAL]).to_json() == study.to_json()


def test_an_interrupted_search_goes_on_where_it_was(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.script(default={"latency_ms": 2.0})
    recipe = {"passes": [], "serving": {"max_batch": [1, 4], "replicas": 1, "deadline": 5.0}}
    calls, original = [], served.put_under_load

    def stop_at_the_third(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(served, "put_under_load", stop_at_the_third)
    with pytest.raises(Interrupted):
        lab.optimize(goals=[GOAL], recipe=recipe)
    study = lab.optimize(goals=[GOAL], recipe=recipe)
    stages = [t.stages for t in study.trials]
    # One start for each that was tried and one for each that was claimed; only the one that was stopped is made again.
    assert len(calls) - 1 == sum("tried" in s for s in stages) + sum("loaded" in s for s in stages) == 5
    # What the recipe pins stays; a list of batches is a range.
    chosen = [t.recipe.serving for t in study.trials if t.recipe.serving]
    assert sorted(s["max_batch"] for s in chosen) == [1, 4]
    assert all(s["replicas"] == [1, 1] and s["deadline"] == 5.0 for s in chosen)


def test_a_crash_under_load_costs_its_trial(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.script(default={"latency_ms": 2.0}, batches=BATCHES)
    original = served.put_under_load

    def crash(source: Any, *rest: Any) -> Any:
        if source.limits.deadline == 0.15:  # whatever the search chose; the baseline has the server's own
            raise WorkerCrashed("the load test ended with SIGSEGV", stderr="a trace")
        return original(source, *rest)

    monkeypatch.setattr(served, "put_under_load", crash)
    study = lab.optimize(goals=[GOAL])
    failed = [t for t in study.trials if t.status == "failed"]
    assert failed
    assert {t.reason for t in failed} == {"the load test ended with SIGSEGV"}
    assert study.best.id == study.baseline.id


@pytest.mark.parametrize("kills", [1, 2])
def test_a_kill_under_load_is_no_fault_of_the_recipe(lab: Lab, monkeypatch: pytest.MonkeyPatch, kills: int) -> None:
    """It is put under load once more; what was killed again is not kept, so that the next run asks anew."""
    lab.script(default={"latency_ms": 2.0})
    recipe = {"passes": [], "serving": {"max_batch": 1, "replicas": 1, "deadline": 5.0}}
    original, left = served.put_under_load, list(range(kills))

    def dying(source: Any, *rest: Any) -> Any:
        if source.limits.deadline == 5.0 and left:
            left.pop()
            raise WorkerCrashed("the load test ended with SIGKILL", killed=True)
        return original(source, *rest)

    monkeypatch.setattr(served, "put_under_load", dying)
    study = lab.optimize(goals=[GOAL], recipe=recipe)
    assert not left
    assert [t.reason for t in study.trials if t.status == "failed"] == ["the load test ended with SIGKILL"] * (
        kills - 1
    )


def test_a_load_that_nothing_holds_is_said_with_its_reason(lab: Lab) -> None:
    lab.script(default=SLOW)
    study = lab.optimize(goals=["latency_p95 < 40ms at 600 qps"])
    assert not study.met
    reasons = [t.reason for t in study.trials if t.status == "failed"]
    assert reasons
    assert all(r.startswith("cannot hold 600 qps: ") and "too late to be answered in time" in r for r in reasons)
    assert study.closest.id == study.baseline.id


def test_throughput_is_that_of_the_server(lab: Lab) -> None:
    lab.script(default=SLOW, batches=BATCHES)
    study = lab.optimize(goals=["max throughput"])
    assert study.best.recipe.options == {"variant": "batches"}
    assert study.best.recipe.serving["max_batch"] > 1
    with_it = [t for t in study.trials if "throughput" in t.metrics]
    assert with_it
    assert all(set(t.stages) & {"tried", "loaded"} for t in with_it)
    assert not any(run["scenario"] == "Server" for run in study.to_json()["serving"]["runs"])


def test_the_bundle_carries_the_choice_and_the_profile(place: Lab, study: Any) -> None:
    found = portolan.pack(study.folder, out=place.folder / "tiny.portolan")
    with open_bundle(Path(found.bundle)) as bundle:
        assert dict(bundle.manifest.recipe.serving) == dict(study.best.recipe.serving)
        assert bundle.manifest.profile is not None
        assert bundle.manifest.profile.largest >= bundle.manifest.recipe.served.max_batch
        assert KEY in bundle.manifest.claims
        seconds = bundle.manifest.profile.seconds
    (place.folder / "opened").mkdir()
    source = open_source(found.bundle, place.folder / "opened")
    assert source.profile == seconds
    chosen = study.best.recipe.served
    limits = source.limits
    assert (limits.max_batch, limits.replicas, limits.deadline) == (chosen.max_batch, chosen.replicas, chosen.deadline)


def test_the_report_shows_it(place: Lab, study: Any) -> None:
    text = Path(portolan.report(study.folder, out=place.folder / "report.html").report).read_text()
    assert "<h3>Serving</h3>" in text
    assert f"The shown result was served with {study.best.recipe.served}." in text
    assert "latency p95 at 600 qps" in text


def test_the_table_names_it(study: Any) -> None:
    lines = [line.text for line in show_study.study(study.to_json()).lines]
    assert "p95 at 600 qps ms" in lines[1]
    assert f"batch {study.best.recipe.serving['max_batch']}, " in lines[2]
    assert any(line.startswith("    served with batch") for line in lines)


def test_the_plan_names_it(place: Lab) -> None:
    plan = place.optimize(goals=[GOAL], dry_run=True, study=place.folder / "other").to_json()
    assert plan["serving"]["max_batch"] == [1, 2, 4, 8]
    assert "serving max_batch=[1, 2, 4, 8]" in show_study.study(plan, dry_run=True).lines[2].text


def test_a_real_runtime_under_a_real_load(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    level = served.Level(500, 0.2, None, 1, "tried"), served.Level(500, 0.2, None, 1, "loaded")
    monkeypatch.setattr(served, "LEVELS", level)
    monkeypatch.setattr(served, "TRIED", 1)
    study = portolan.optimize(
        "demo:digits", goals=["latency_p99 < 5s at 1500 qps"], study=lab.folder / "digits", budget="2 trials",
        backend=["onnxruntime"], recipe={"passes": [], "options": {"threads": 1, "graph_optimization": "all"}},
    )  # fmt: skip
    assert study.met
    assert study.best.metrics["latency_p99@1500qps"].n >= 500
    assert all(run["answered"] == run["calls"] for run in study.to_json()["serving"]["runs"])
