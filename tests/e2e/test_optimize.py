"""`optimize` from end to end on the scripted backend: what wins, what must never win, and what is said of the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portolan
from portolan.errors import GoalsNotMet, NoResult, PortolanError, UnknownName, UsageError
from portolan.measure import roofline
from portolan.search.searcher import Proposal, Searcher
from portolan.study import probe
from portolan.study.reserve import CUT, Reserve
from support.studies import CEILINGS, Lab, events, labelled, matmul, named, sound

#: Two objectives: then the score decides, not the verdict of a race, and one start of each is enough.
BOTH = ["min latency_p50", "min size"]


def tried(study: Any) -> list[Any]:
    return [t for t in study.trials if t.status != "refused"]


def test_the_fastest_scripted_variant_wins(lab: Lab) -> None:
    lab.script(fast={"latency_ms": 1.5}, medium={"latency_ms": 2.5})
    study = lab.optimize()
    assert study.met
    assert study.best.recipe.options == {"variant": "fast"}
    assert 1.4 < study.best.metrics["latency_p50"].value < 2.2
    (ratio,) = [r for r in study.data["ratios"] if r["a"] == study.best.id]
    assert ratio["verdict"] == "faster"
    assert study.best.stages == ("screened", "raced")
    sound(lab.folder / "study")


def test_the_untouched_model_wins_among_equals(lab: Lab) -> None:
    lab.script(same={"latency_ms": 4.0})
    study = lab.optimize()
    assert study.best.id == study.baseline.id
    assert study.best.recipe.options == {"variant": "default"}


@pytest.mark.parametrize(("goals", "wins"), [(BOTH, "default"), ([*BOTH, "cosine >= 0.99"], "noisy")])
def test_error_is_admitted_only_where_a_goal_allows_it(lab: Lab, goals: list[str], wins: str) -> None:
    lab.script(noisy={"latency_ms": 1.0, "error": 0.01})
    study = lab.optimize(goals=goals, starts=1)
    assert study.best.recipe.options["variant"] == wins
    noisy = named(study, "noisy")
    if wins == "default":
        assert noisy.status == "refused"
        assert noisy.reason == "changes outputs, and no goal allows it: add -g 'cosine >= 0.99'"
    else:
        assert 0.99 < noisy.metrics["cosine"].value < 1


Words = Mapping[str, tuple[dict[str, Any], str]]
CRASHES: Words = {
    "segfault": ({}, "crashed with SIGSEGV during `time`"),
    "abort": ({"when": "load"}, "crashed with SIGABRT during `load`"),
    "exit": ({"when": "compile"}, "ended with code 3 during `compile`"),
    "raise": ({}, "RuntimeError: the script says: fail"),
}
LIES: Words = {
    "wrong": ({}, "verification failed: the outputs are off by"),
    "nan": ({}, "verification failed: the outputs hold NaN or infinity where the original's do not"),
    "fallback": ({}, "elsewhere"),
    "late": ({"behaviour": "segfault", "when": "time"}, "crashed with SIGSEGV during `evaluate`"),
}
HOGS: Words = {
    "hang": ({}, "no answer to `time` within 4 s"),
    "leak": ({}, "out of memory during `time`"),
}


@pytest.mark.parametrize("bad", [CRASHES, LIES, HOGS], ids=["crashes", "lies", "hogs"])
def test_misbehaviour_costs_its_trial_only(lab: Lab, monkeypatch: pytest.MonkeyPatch, bad: Words) -> None:
    """Each would be the fastest; each is recorded with its reason, and the fastest honest one wins."""
    monkeypatch.setenv("PORTOLAN_WORKER_TIMEOUT", "4")
    monkeypatch.setenv("PORTOLAN_WORKER_MEMORY", str(2**30))
    variants = {n: {"latency_ms": 0.5, "behaviour": n, **options} for n, (options, _) in bad.items()}
    lab.script(fast={"latency_ms": 2.0}, **variants)
    study = lab.optimize(goals=BOTH, starts=1)
    assert study.best.recipe.options["variant"] == "fast"
    for name, (_, words) in bad.items():
        trial = named(study, name)
        assert trial.status == "failed", name
        assert words in str(trial.reason)
        assert not trial.metrics
        assert not trial.met
        assert not trial.pareto
        assert f'"variant":"{name}"' in str(trial.command)
    sound(lab.folder / "study")


@pytest.mark.parametrize("steady", [True, False])
def test_the_baseline_answers_all_rows_once_and_again_where_it_answers_otherwise(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, steady: bool
) -> None:
    asked: list[int] = []
    answered = probe.Session.outputs

    def outputs(self: probe.Session, samples: Any, rows: Any, signature: Any) -> Any:
        asked.append(len(rows))
        found = answered(self, samples, rows, signature)
        # The first row, then all of them, are for the reference.
        return found if steady or len(asked) < 3 else {name: array * 1.001 for name, array in found.items()}

    monkeypatch.setattr(probe.Session, "outputs", outputs)
    baseline = lab.optimize(goals=["min latency_p50"], starts=1, budget="1 trials").baseline
    every = max(asked)
    assert asked[:2] == [1, every]
    assert asked.count(every) == (1 if steady else 2)
    assert (baseline.metrics["max_rel_error"].value == 0) is steady


def test_printing_and_slow_loading_are_no_faults(lab: Lab) -> None:
    lab.script(
        chatty={"latency_ms": 1.0, "behaviour": "print"},
        slow={"latency_ms": 2.0, "behaviour": "slow_load", "seconds": 0.2},
    )
    study = lab.optimize(goals=BOTH, starts=1)
    assert study.best.recipe.options["variant"] == "chatty"
    slow = named(study, "slow")
    assert slow.status == "ok"
    assert slow.metrics["cold_start"].value > 200


def test_a_failed_trial_keeps_what_its_worker_printed(lab: Lab) -> None:
    lab.script(bad={"behaviour": "raise"})
    study = lab.optimize(goals=BOTH, starts=1)
    bad = named(study, "bad")
    assert "RuntimeError: the script says: fail" in bad.log
    assert "Traceback" in bad.log
    assert bad.to_json()["log"] == bad.log
    from portolan.cli.show_study import study as shown

    def lines(verbose: bool) -> str:
        return "\n".join(line.text for line in shown(study.to_json(), verbose=verbose).lines)

    assert "  - 1 failed: RuntimeError: the script says: fail" in lines(False)
    assert "      RuntimeError: the script says: fail" in lines(True)
    assert "      RuntimeError: the script says: fail" not in lines(False)


def test_wrong_answers_under_some_options_are_not_covered_by_right_ones(lab: Lab) -> None:
    """Recipes of one arithmetic share one judgement; each must still answer a few rows."""
    lab.script(good={"latency_ms": 2.0}, liar={"latency_ms": 0.5, "behaviour": "wrong"})
    study = lab.optimize(goals=[*BOTH, "accuracy_drop <= 5%"], data=labelled(lab.folder / "d.npz", rows=300), starts=1)
    assert study.best.recipe.options["variant"] == "good"
    assert "verification failed" in str(named(study, "liar").reason)
    assert named(study, "good").metrics["accuracy_drop"].value == 0


# --- goals


def test_limits_that_nothing_meets(lab: Lab) -> None:
    lab.script(default={"latency_ms": 20.0}, fast={"latency_ms": 2.0})
    study = lab.optimize(goals=["latency_p50 < 0.1ms"], starts=1)
    assert not study.met
    assert study.data["best"] is None
    with pytest.raises(GoalsNotMet, match=r"no trial met `latency_p50 < 0\.1ms`") as caught:
        _ = study.best
    assert caught.value.exit_code == 3
    assert caught.value.closest.recipe.options["variant"] == "fast"
    assert caught.value.closest.reason == "too slow"
    assert f"closest: trial {caught.value.closest.id} (too slow)" in str(caught.value.hint)


def test_the_closest_result_is_named_with_exit_code_3(lab: Lab) -> None:
    lab.script(default={"latency_ms": 20.0}, fast={"latency_ms": 2.0})
    done = lab.run(*lab.optimize_words("-g", "latency_p50 < 0.1ms", "--json"), starts=1)
    data = json.loads(done.stdout)
    assert done.returncode == 3, done.stderr
    assert data["best"] is None
    assert data["closest"]["recipe"]["options"]["variant"] == "fast"
    told = lab.run(*lab.optimize_words("-g", "latency_p50 < 0.1ms"), starts=1)
    assert told.returncode == 3
    assert "goals not met" in told.stdout.splitlines()[-1]
    assert "answered from the ledger" in told.stderr


@pytest.mark.parametrize("goal", ["max_rel_error <= 0", "accuracy >= 101%"])
def test_a_quality_limit_that_even_the_original_misses(lab: Lab, goal: str) -> None:
    """The baseline is timed all the same: the closest result has numbers."""
    study = lab.optimize(goals=[goal, *BOTH], data=labelled(lab.folder / "d.npz"), starts=1)
    if goal.startswith("acc"):
        assert not study.met
        assert study.closest is not None
        assert study.closest.reason == "accuracy missed"
    assert "latency_p50" in study.baseline.metrics


def test_a_metric_that_was_not_measured_is_not_met(lab: Lab) -> None:
    """p99 needs 459 readings; a short race has fewer."""
    study = lab.optimize(goals=["latency_p99 < 10s"], starts=1, budget="2 trials")
    assert not study.met
    assert study.closest is not None
    assert study.closest.reason == "latency_p99 not measured"


def test_times_below_the_roofline_are_rejected(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted 0.01 ms for 64 FLOP on a machine of 1 kFLOP/s is a lie, however often it is told."""
    slow = {**CEILINGS, "flops_fp32": 1e3}
    monkeypatch.setattr("support.studies.CEILINGS", slow)
    assert 0.5 < roofline.floor_ms(2.0 * 8 * 4, slow) < 5
    lab.script(default={"latency_ms": 20.0}, magic={"latency_ms": 0.01})
    study = lab.optimize(goals=BOTH, starts=1)
    assert study.best.recipe.options["variant"] == "default"
    magic = named(study, "magic")
    assert magic.status == "failed"
    assert "is below the roofline floor of" in str(magic.reason)


@pytest.mark.parametrize(
    ("goal", "says"),
    [
        ("latency_p50 ~ 3ms", "the goal `latency_p50 ~ 3ms` cannot be read"),
        ("latncy_p50 < 3ms", "no metric named `latncy_p50`"),
        ("latency_p50 < 3MB", "MB"),
        ("min cost", "`cost` cannot be measured on this target: it has no price"),
        ("energy < 1 J", "`energy` cannot be measured on this target"),
        ("accuracy >= 90%", "the goal on `accuracy` needs labels, and the data has none"),
        ("accuracy_drop <= 1%", "the goal on `accuracy_drop` needs labels, and the data has none"),
    ],
)
def test_goals_that_are_refused(lab: Lab, goal: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        lab.optimize(goals=[goal])
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_a_user_metric_needs_labels_and_counts(lab: Lab) -> None:
    code = lab.folder / "metric.py"
    code.write_text("def score(outputs, labels):\n    return float((outputs['y'].argmax(1) == labels).mean()) / 2\n")
    with pytest.raises(UsageError, match="`--metric` needs labels"):
        lab.optimize(metric=f"{code}:score")
    data = labelled(lab.folder / "d.npz")
    study = lab.optimize(metric=f"{code}:score", data=data, starts=1, budget="1 trials", goals=["accuracy >= 40%"])
    assert study.best.metrics["accuracy"].value == 0.5
    code.write_text(code.read_text().replace("/ 2", "/ 4"))
    study = lab.optimize(metric=f"{code}:score", data=data, starts=1, budget="1 trials", goals=["accuracy >= 20%"])
    assert study.best.metrics["accuracy"].value == 0.25


# --- budgets


def test_a_budget_of_trials_is_never_overrun(lab: Lab) -> None:
    lab.script(**{f"v{i}": {"latency_ms": 4.0 - 0.3 * i} for i in range(6)})
    for most in (1, 3):
        study = lab.optimize(goals=BOTH, starts=1, budget=f"{most} trials", study=lab.folder / f"study{most}")
        assert len(tried(study)) <= most
        assert len(events(lab.folder / f"study{most}", "screened")) <= most
        assert study.met
    assert len(tried(lab.optimize(goals=BOTH, starts=1, budget="1 trials"))) == 1


def test_a_budget_of_seconds_ends_the_search(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: each trial takes 10 s of it, and 30 s are given."""
    from portolan.study import budget, runner

    now = [0.0]
    original = runner.Runner._screen

    def screen(self: Any, *args: Any) -> Any:
        now[0] += 10
        return original(self, *args)

    monkeypatch.setattr(runner.Runner, "_screen", screen)
    monkeypatch.setattr(budget.Spending.__init__, "__defaults__", (0.25, lambda: now[0]))
    lab.script(**{f"v{i}": {"latency_ms": 4.0 - 0.3 * i} for i in range(6)})
    study = lab.optimize(goals=BOTH, starts=1, budget="30s")
    assert 2 <= len(tried(study)) <= 3
    assert now[0] <= 40
    assert study.met


@pytest.mark.parametrize("text", ["0 trials", "-3s", "soon", "3 kg"])
def test_budgets_that_are_refused(lab: Lab, text: str) -> None:
    with pytest.raises(UsageError, match="budget"):
        lab.optimize(budget=text)


# --- data and models


def test_a_model_that_answers_nan_for_everything(lab: Lab) -> None:
    model = matmul(lab.folder / "nan.onnx", nodes=("MatMul", "Abs", "Neg", "Sqrt"))
    with pytest.raises(NoResult, match="answers NaN for all of 64 samples, so no recipe can be verified") as caught:
        lab.optimize(model=model, starts=1)
    assert "--data" in str(caught.value.hint)


def test_samples_for_which_the_original_answers_nan_are_left_out(lab: Lab) -> None:
    model = matmul(lab.folder / "some.onnx", nodes=("Sqrt", "MatMul"))
    x = np.abs(np.random.default_rng(0).standard_normal((64, 8))).astype(np.float32)
    x[::3] *= -1
    np.savez(lab.folder / "some.npz", x=x)
    lab.script(fast={"latency_ms": 1.0})
    notes: list[str] = []
    study = lab.optimize(model=model, data=lab.folder / "some.npz", goals=BOTH, starts=1, progress=notes.append)
    assert study.best.recipe.options["variant"] == "fast"
    assert study.best.metrics["cosine"].value == pytest.approx(1)
    assert any("the untouched model answers NaN for" in note for note in notes)


def _bad_data(folder: Path, kind: str) -> str:
    arrays = {
        "names": {"image": np.zeros((4, 8), np.float32)},
        "types": {"x": np.zeros((4, 8), np.int64)},
        "shapes": {"x": np.zeros((4, 9), np.float32)},
        "counts": {"x": np.zeros((4, 8), np.float32), "labels": np.zeros(3, np.int64)},
        "objects": {"x": np.array([{}], dtype=object)},
    }
    path = folder / f"{kind}.npz"
    if kind == "missing":
        return str(path)
    np.savez(path, **arrays[kind])
    return str(path)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("names", "the data lacks `x` and has unknown `image`"),
        ("types", "input `x` has type int64, expected float32"),
        ("shapes", "input `x` has shape 4x9, expected samplesx8"),
        ("counts", "different numbers of samples"),
        ("objects", "objects.npz"),
        ("missing", "missing.npz"),
    ],
)
def test_data_that_does_not_fit(lab: Lab, kind: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        lab.optimize(data=_bad_data(lab.folder, kind))
    assert caught.value.exit_code == 2


def test_data_that_does_not_fit_through_the_command_line(lab: Lab) -> None:
    done = lab.run(*lab.optimize_words("--data", _bad_data(lab.folder, "types"), "--json"))
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["code"] == 2
    assert error["message"] == "input `x` has type int64, expected float32"
    assert "astype('float32')" in error["hint"]


def test_models_that_cannot_be_read(lab: Lab) -> None:
    (lab.folder / "text.onnx").write_text("not a model")
    whole = lab.model.read_bytes()
    (lab.folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    for name in ("text", "cut"):
        with pytest.raises(PortolanError) as caught:
            lab.optimize(model=lab.folder / f"{name}.onnx")
        assert caught.value.exit_code == 5
        assert f"{name}.onnx" in f"{caught.value.message} {caught.value.where}"


def test_a_baseline_that_crashes_is_no_result(lab: Lab) -> None:
    lab.script(default={"behaviour": "segfault"})
    with pytest.raises(NoResult, match="the untouched model does not run on `fake`: crashed with SIGSEGV") as caught:
        lab.optimize()
    assert caught.value.exit_code == 7
    lab.script()
    assert lab.optimize(starts=1, budget="1 trials").met, "the failure must not be remembered"


# --- what was asked


def test_names_that_do_not_exist(lab: Lab) -> None:
    with pytest.raises(UnknownName, match="no backend named `fakr`"):
        lab.optimize(backend=["fakr"])
    with pytest.raises(UnknownName, match="no pass named `simplfy`"):
        lab.optimize(passes=["simplfy"], recipe=None)
    with pytest.raises(UsageError, match="no target named `moon`"):
        lab.optimize(target="moon")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("r.toml", "passes = [", "the recipe cannot be parsed: "),
        ("r.json", '{"passes": ', "the recipe cannot be parsed: "),
        ("r.json", "[1, 2]", "a recipe is a table of passes, backend and options"),
        ("r.toml", b"\xff\xfe", "the recipe `.*r.toml` cannot be read"),
        ("r.toml", None, "the recipe `.*r.toml` cannot be read"),
        (None, '{"passes": ', "the recipe cannot be parsed: "),
        ("r.toml", "backed = 'fake'", "backed"),
    ],
)
def test_recipes_that_cannot_be_read(lab: Lab, name: str | None, text: str | bytes | None, says: str) -> None:
    recipe = str(text) if name is None else str(lab.folder / name)
    if name is not None and text is not None:
        (lab.folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=says) as caught:
        lab.optimize(recipe=recipe)
    assert caught.value.exit_code == 2


def test_a_dry_run_writes_and_runs_nothing(lab: Lab) -> None:
    before = sorted(p.name for p in lab.folder.iterdir())
    plan = lab.optimize(dry_run=True).to_json()
    assert plan["candidates"] == 1
    assert plan["budget"] == "40 trials"
    assert sorted(p.name for p in lab.folder.iterdir()) == before


def test_passes_and_backends_meet(lab: Lab) -> None:
    """int8 pays on this backend (its script says so), and a goal allows it."""
    lab.model = matmul(lab.folder / "wide.onnx", inner=64)
    lab.speeds({"int8:dynamic": 0.25})
    study = lab.optimize(
        recipe=None, passes=["quantize"], goals=["latency_p50 < 3ms", "cosine >= 0.99", *BOTH], starts=1
    )
    assert [s.name for s in study.best.recipe.passes] == ["quantize"]
    assert study.best.metrics["size"].value < study.baseline.metrics["size"].value
    assert study.best.metrics["cosine"].value >= 0.99
    assert "limits" not in str(study.best.reason)
    assert portolan.open(lab.folder / "study").best == study.best


def test_what_compiles_too_long_takes_nobodys_race(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that compiles for minutes comes last, cannot be ready in time, is ended and named; the others race."""
    lab.script(fast={"latency_ms": 1.5}, endless={"seconds": 600.0})
    held: list[Proposal] = []
    turn: list[str] = []
    ask, spare = Searcher.ask, Reserve.spare

    def last(self: Searcher, **options: Any) -> Proposal | None:
        found = ask(self, **options)
        if found is not None and found.candidate.recipe.options["variant"] == "endless":
            held.append(found)
            found = ask(self, **options)
        turn[:] = ["endless"] if found is None and held else []
        return held.pop() if turn else found

    monkeypatch.setattr(Searcher, "ask", last)
    monkeypatch.setattr(Reserve, "spare", lambda self: 1.0 if turn else spare(self))
    study = lab.optimize(budget="600s")
    assert study.best.recipe.options == {"variant": "fast"}
    assert study.best.stages == ("screened", "raced")
    assert study.data["noise"] is not None
    assert study.data["seconds"] < 600
    (row,) = study.data["untried"]
    assert (row["recipe"]["options"], row["reason"]) == ({"variant": "endless"}, CUT)
    assert not events(lab.folder / "study", "compiled_failed")
    sound(lab.folder / "study")
