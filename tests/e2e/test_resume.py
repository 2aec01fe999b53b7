"""Nothing is lost: whatever was killed, wherever, the repeated command goes on, and ends with a valid result."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import portolan
from portolan.backends.fake import Fake
from portolan.errors import NoResult
from portolan.measure.lock import lock_path
from support.studies import SRC, Lab, events, labelled, matmul, sound

ENV = {**os.environ, "PYTHONPATH": str(SRC)}
BOTH = ["-g", "min latency_p50", "-g", "min size"]
QUICK: dict[str, Any] = {"goals": ["min latency_p50", "min size"], "starts": 1}


def valid(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    assert data["best"]["recipe"]["options"]["variant"] == "fast"
    assert data["best"]["status"] == "ok"
    assert data["baseline"]["metrics"]["latency_p50"]["value"] > 3.9
    return data


def measured_once(study: Path) -> None:
    """No question was asked of a machine twice once its answer was written down."""
    twice = {key: n for key, n in Counter(key for key, _ in events(study, "screened")).items() if n > 1}
    assert twice == {}


def test_a_repeated_command_answers_from_the_ledger(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.script(fast={"latency_ms": 2.0})
    first = lab.optimize(**QUICK)

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    before = len(events(lab.folder / "study", "screened"))
    again = lab.optimize(**QUICK)
    assert again.to_json() == first.to_json()
    assert portolan.open(lab.folder / "study").to_json() == first.to_json()
    assert len(events(lab.folder / "study", "screened")) == before


def test_other_goals_on_the_same_study_use_what_was_measured(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.script(fast={"latency_ms": 2.0})
    lab.optimize(**QUICK)
    before = len(events(lab.folder / "study", "screened"))
    study = lab.optimize(goals=["latency_p50 < 3ms", *QUICK["goals"]], starts=1)
    assert study.met
    assert len(events(lab.folder / "study", "screened")) == before


def test_what_missed_one_goal_untimed_is_timed_when_another_goal_allows_it(lab: Lab) -> None:
    lab.script(noisy={"latency_ms": 1.0, "error": 0.05})
    strict = lab.optimize(goals=["cosine >= 0.9999", *QUICK["goals"]], starts=1)
    assert strict.best.recipe.options["variant"] == "default"
    loose = lab.optimize(goals=["cosine >= 0.99", *QUICK["goals"]], starts=1)
    assert loose.best.recipe.options["variant"] == "noisy"
    sound(lab.folder / "study")


def screenings(lab: Lab, **options: Any) -> int:
    """New measurements that this `optimize` made."""
    path = lab.folder / "study"
    before = len(events(path, "screened")) if (path / "ledger.sqlite").is_file() else 0
    assert lab.optimize(**{**QUICK, "budget": "1 trials", **options}).met
    return len(events(path, "screened")) - before


def test_what_decides_a_measurement_is_measured_again_when_it_changes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = labelled(lab.folder / "data.npz")
    assert screenings(lab, data=data) == 1
    assert screenings(lab, data=data, goals=["latency_p50 < 1h", *QUICK["goals"]]) == 0
    compiled = {p.name for p in (lab.folder / "study" / "compiled").iterdir()}

    np.savez(data, x=np.ones((64, 8), np.float32), labels=np.zeros(64, np.int64))
    assert screenings(lab, data=data) == 1
    assert {p.name for p in (lab.folder / "study" / "compiled").iterdir()} == compiled, "data does not decide that"

    monkeypatch.setattr(Fake, "versions", lambda self: {"portolan": "0.1.0", "onnx": "99.0"})
    assert screenings(lab, data=data) == 1
    assert len(list((lab.folder / "study" / "compiled").iterdir())) == len(compiled) + 1

    matmul(lab.model, seed=5)
    assert screenings(lab, data=data) == 1
    assert len(list((lab.folder / "study" / "compiled").iterdir())) == len(compiled) + 2


def test_a_failure_for_want_of_memory_stands_until_the_limit_changes(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.script(big={"latency_ms": 1.0, "behaviour": "leak", "limit_mb": 10240})

    def failures(hours: int) -> int:
        lab.optimize(goals=[f"latency_p50 < {hours}h", *QUICK["goals"]], starts=1)
        return sum(data["reason"] is not None for _, data in events(lab.folder / "study", "screened"))

    monkeypatch.setenv("PORTOLAN_WORKER_MEMORY", str(2**29))
    assert failures(1) == 1
    assert failures(2) == 1, "the same limit gives the same answer"
    monkeypatch.setenv("PORTOLAN_WORKER_MEMORY", str(2**29 + 2**28))
    assert failures(3) == 2
    sound(lab.folder / "study")


# --- kill -9 of the controller


EVENTS = ("append", "appended", "worker", "asked", "answered", "built", "saved")
#: A search with a pass, from its first question to its answer: a kill in each phase, in the order in which they come.
PHASES = (
    "append ceilings", "worker", "asked compile", "built", "asked load", "asked inputs", "asked time",
    "asked evaluate", "asked memory", "append screened", "asked apply", "saved", "append race", "append finished",
    "appended finished",
)  # fmt: skip
#: The same where goals ask for what a server does; and for a model of a fixed batch, which is not served, with callers.
SERVED = (*PHASES[:-2], "append profile", "append loaded", *PHASES[-2:])
CALLED = (*PHASES[:8], "asked load_test", *PHASES[8:])
MOMENTS = st.lists(st.builds("{}:{}".format, st.sampled_from(EVENTS), st.integers(1, 6)), min_size=5, max_size=8)
#: Nothing is shrunk: that would take an hour, and the moments of a failure are told as they are.
ONCE = settings(max_examples=1, phases=[Phase.generate], database=None)


def survive(lab: Lab, words: list[object], moments: Sequence[str], codes: Sequence[int]) -> dict[str, Any]:
    """Kills the command at each of these moments, one run after the other, and then lets it end."""
    study, temporary = lab.folder / "study", lab.folder / "tmp"
    temporary.mkdir(exist_ok=True)
    for moment in moments:
        done = lab.run(*words, starts=1, env={"KILL_AT": moment, "TMPDIR": str(temporary)})
        assert done.returncode in codes, (moment, done.stderr)
        if (study / "ledger.sqlite").is_file():
            sound(study) if events_table(study) else None
    done = lab.run(*words, starts=1, env={"TMPDIR": str(temporary)})
    assert done.returncode == 0, done.stderr
    assert {path.name for path in temporary.iterdir()} <= {lock_path().name}
    data: dict[str, Any] = json.loads(done.stdout)
    sound(study)
    measured_once(study)
    assert not list(study.glob(".building-*"))
    assert json.loads(lab.run(*words, starts=1).stdout) == data
    return data


def events_table(study: Path) -> bool:
    """Whether the ledger was made before the controller died."""
    import sqlite3

    with sqlite3.connect(study / "ledger.sqlite") as db:
        found = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'events'").fetchone()
    db.close()
    return found is not None


@pytest.mark.parametrize(
    ("phases", "batch", "more"),
    [
        pytest.param(PHASES, "n", [], id="search and race"),
        pytest.param(SERVED, "n", ["-g", "throughput > 1 qps"], id="and serving", marks=pytest.mark.slow),
        pytest.param(CALLED, 1, ["-g", "throughput > 1 qps"], id="with callers", marks=pytest.mark.slow),
    ],
)
def test_the_controller_is_killed_in_every_phase(
    lab: Lab, phases: Sequence[str], batch: int | str, more: list[str]
) -> None:
    lab.model = matmul(lab.folder / "wide.onnx", inner=64, batch=batch)
    lab.speeds({"int8:dynamic": 0.25})
    words = ["optimize", lab.model, "--backend", "fake", "--passes", "quantize", "--study", "study", "--json"]
    goals = ["-g", "cosine >= 0.99", "-g", "min latency_p50", "-g", "min size", *more]
    data = survive(lab, [*words, *goals], [f"{phase}:1" for phase in phases], [-signal.SIGKILL])
    assert [step["name"] for step in data["best"]["recipe"]["passes"]] == ["quantize"]
    assert data["met"]


def killed(folder: Path, moments: Sequence[str]) -> None:
    lab = Lab(folder)
    lab.script(fast={"latency_ms": 2.0})
    data = survive(lab, lab.optimize_words(*BOTH, "--json"), moments, [-signal.SIGKILL, 0])
    assert data["best"]["recipe"]["options"]["variant"] == "fast"


@ONCE
@given(moments=MOMENTS)
def test_the_controller_is_killed_at_any_moments(tmp_path_factory: pytest.TempPathFactory, moments: list[str]) -> None:
    killed(tmp_path_factory.mktemp("killed"), moments)


@pytest.mark.slow
@settings(ONCE, max_examples=16)
@given(moments=MOMENTS)
def test_the_controller_is_killed_at_many_more_moments(
    tmp_path_factory: pytest.TempPathFactory, moments: list[str]
) -> None:
    killed(tmp_path_factory.mktemp("killed"), moments)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_the_controller_is_killed_by_the_clock(lab: Lab, seed: int) -> None:
    """Moments that no hook names: in the middle of a write, of an import, of a block."""
    lab.script(fast={"latency_ms": 2.0})
    rng, words = random.Random(seed), lab.optimize_words(*BOTH, "--json")
    for _ in range(8):
        process = lab.start(*words, starts=1)
        try:
            process.wait(timeout=rng.uniform(0.1, 5))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    valid(lab.run(*words, starts=1))
    sound(lab.folder / "study")
    measured_once(lab.folder / "study")


# --- kill -9 of workers


@settings(ONCE, max_examples=2)
@given(fated=st.sets(st.integers(0, 40), min_size=1, max_size=6))
def test_workers_are_killed_at_random(tmp_path_factory: pytest.TempPathFactory, fated: set[int]) -> None:
    """These requests find their worker dead. What the study says is still right, and a repetition is whole."""
    from portolan.worker import Worker

    lab = Lab(tmp_path_factory.mktemp("killed"))
    lab.script(fast={"latency_ms": 2.0})
    ask, asked = Worker.ask, itertools.count()

    def dying(self: Worker, op: str, **rest: Any) -> Any:
        if next(asked) in fated:
            os.kill(self.pid, signal.SIGKILL)
        return ask(self, op, **rest)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in lab.env.items():
            patch.setenv(name, value)
        patch.setattr(Worker, "ask", dying)
        study = None
        with contextlib.suppress(NoResult):  # the baseline was hit twice
            study = lab.optimize(**QUICK)
        patch.setattr(Worker, "ask", ask)
        for trial in study.trials if study is not None else ():
            assert trial.status == "ok" or ("SIGKILL" in str(trial.reason) and not trial.metrics)
        sound(lab.folder / "study")
        again = lab.optimize(**QUICK)
    assert again.baseline.status == "ok"
    assert again.met


@pytest.mark.parametrize("op", ["compile", "load", "time", "evaluate", "memory"])
def test_one_kill_of_a_worker_changes_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    """SIGKILL comes from outside, so what it hit is done once more, baseline or candidate."""
    lab.script(default={"latency_ms": 8.0}, fast={"latency_ms": 1.0})
    left = dies_at(monkeypatch, op, at=2)
    study = lab.optimize(**QUICK, budget="2 trials")
    assert not left
    assert [t.status for t in study.trials] == ["ok", "ok"]
    assert study.best.recipe.options["variant"] == "fast"


def test_one_kill_of_a_worker_that_applies_a_pass_changes_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.model = matmul(lab.folder / "wide.onnx", inner=64)
    lab.speeds({"int8:dynamic": 0.25})
    left = dies_at(monkeypatch, "apply", at=1)
    study = lab.optimize(goals=["cosine >= 0.99", *QUICK["goals"]], starts=1, recipe=None, passes=["quantize"])
    assert not left
    assert [step.name for step in study.best.recipe.passes] == ["quantize"]


@pytest.mark.parametrize("victim", ["default", "fast"])
def test_one_kill_in_the_final_race_changes_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch, victim: str) -> None:
    from portolan.measure.race import Arm
    from portolan.study.finals import Finals

    lab.script(default={"latency_ms": 8.0}, fast={"latency_ms": 1.0})
    original, left = Finals._arm, [True]

    def fragile(self: Finals, candidate: Any, seen: Any) -> Arm:
        made = original(self, candidate, seen)

        def start() -> Any:
            session = made.start()
            if left and candidate.recipe.options["variant"] == victim:
                left.pop()
                os.kill(session.worker.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            return session

        return Arm(made.name, start)

    monkeypatch.setattr(Finals, "_arm", fragile)
    study = lab.optimize(**QUICK, budget="2 trials")
    assert not left
    assert [(t.status, "raced" in t.stages) for t in study.trials] == [("ok", True)] * 2
    assert study.best.recipe.options["variant"] == "fast"


def dies_at(monkeypatch: pytest.MonkeyPatch, op: str, at: int) -> list[int]:
    """The request `op` finds its worker dead when it is asked for the `at`-th time; what is left of those times."""
    from portolan.worker import Worker

    ask, left = Worker.ask, list(range(at))

    def dying(self: Worker, asked: str, **rest: Any) -> Any:
        if asked == op and left:
            left.pop()
            if not left:
                os.kill(self.pid, signal.SIGKILL)
        return ask(self, asked, **rest)

    monkeypatch.setattr(Worker, "ask", dying)
    return left


def test_the_pace_dies_while_a_candidate_is_timed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the baseline's process: the candidate is not blamed, and a new one takes its place."""
    from portolan.study.pace import Pace

    lab.script(fast={"latency_ms": 2.0})
    against, left = Pace.against, [True]

    def dying(self: Pace, *args: Any) -> Any:
        if left:
            left.pop()
            os.kill(self._session.worker.pid, signal.SIGKILL)
        return against(self, *args)

    monkeypatch.setattr(Pace, "against", dying)
    study = lab.optimize(**QUICK)
    assert not left
    assert study.best.recipe.options["variant"] == "fast"


# --- Ctrl-C


def test_ctrl_c_saves_and_says_how_to_go_on(lab: Lab) -> None:
    """SIGINT to the whole process group, as a terminal sends it, once the first trial is told."""
    lab.script(fast={"latency_ms": 2.0}, hang={"latency_ms": 1.0, "behaviour": "hang"})
    process = lab.start(*lab.optimize_words(*BOTH), starts=1)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("#0"):
            break
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "trials; all are saved in" in err
    assert "hint: repeat the command to go on" in err
    saved = len(events(lab.folder / "study", "screened"))
    assert saved >= 1
    lab.script(fast={"latency_ms": 2.0}, hang={"latency_ms": 3.0})
    valid(lab.run(*lab.optimize_words(*BOTH, "--json"), starts=1))
    measured_once(lab.folder / "study")


@pytest.mark.parametrize("ended", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_race_leaves_nothing(ended: signal.Signals, lab: Lab) -> None:
    place = lab.folder / "temporary"
    place.mkdir()
    process = lab.start("bench", f"{lab.model}@fake", "--budget", "60s", env={"TMPDIR": str(place)})
    assert process.stderr is not None
    assert any(line.startswith("start 1 of") for line in process.stderr)
    assert list(place.glob("portolan-workspace-*"))
    os.killpg(process.pid, ended)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "error: interrupted" in err
    assert "hint" not in err
    assert not list(place.glob("portolan-*"))


# --- two at once


def test_two_optimizers_on_one_study(lab: Lab) -> None:
    lab.script(fast={"latency_ms": 2.0})
    words = lab.optimize_words(*BOTH, "--json")
    both = [lab.start(*words, starts=1) for _ in range(2)]
    told = [process.communicate(timeout=200) for process in both]
    for process, (out, err) in zip(both, told, strict=True):
        valid(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    sound(lab.folder / "study")
    numbers = [
        sorted((t["id"], t["recipe"]["options"]["variant"]) for t in json.loads(out)["trials"]) for out, _ in told
    ]
    assert numbers[0] == numbers[1]


def test_many_ledgers_made_at_once(tmp_path: Path) -> None:
    """The first moment of a study: every process makes the tables, and none fails."""
    code = (
        "import sys; from pathlib import Path; from portolan.core.ledger import Ledger\n"
        "sys.stdin.read(1)\n"
        "ledger = Ledger(Path('ledger.sqlite'))\n"
        "print([ledger.number('trial', f'{i}', {}) for i in range(20)])\n"
    )
    start = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(start, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV)
        for _ in range(6)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    answers = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert answers == {str(list(range(20)))}


# --- building ahead


def test_jobs_build_ahead_and_nothing_is_timed_meanwhile(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.model = matmul(lab.folder / "wide.onnx", inner=64)
    lab.speeds({"int8:dynamic": 0.25})
    log: list[str] = []
    lock = threading.Lock()
    from portolan.worker import Worker

    ask = Worker.ask

    def noted(self: Worker, op: str, **rest: Any) -> Any:
        with lock:
            log.append(f"begin {op}")
        try:
            return ask(self, op, **rest)
        finally:
            with lock:
                log.append(f"end {op}")

    monkeypatch.setattr(Worker, "ask", noted)
    notes: list[str] = []
    study = lab.optimize(
        **{**QUICK, "goals": ["cosine >= 0.99", *QUICK["goals"]]}, recipe=None, passes=["quantize", "simplify"], jobs=2,
        progress=notes.append,
    )  # fmt: skip
    assert any("recipes ahead in 2 processes" in note for note in notes)
    assert [s.name for s in study.best.recipe.passes][-1] == "quantize"
    open_, most = 0, 0
    for entry in log:
        step, op = entry.split()
        if op in ("compile", "apply"):
            open_ += 1 if step == "begin" else -1
            most = max(most, open_)
        elif op == "time":
            assert open_ == 0, "something was built while something was timed"
    assert most == 2
