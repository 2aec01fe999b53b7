"""The fake does what its script says: every behaviour, at every stage."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from portolan.backends._script import BEHAVIOURS, STAGES, Variant, parse
from portolan.backends.fake import Play, fake
from portolan.core.backend import Executable
from portolan.errors import NoBackend, PortolanError, UnknownName, UsageError
from portolan.testing.models import Case, perceptron, this_machine

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a script in which `default` is quick, and the given variants."""

    def write(speed: dict[str, float] | None = None, **variants: dict[str, Any]) -> None:
        path = tmp_path / "script.json"
        path.write_text(json.dumps({"variants": {"default": {"latency_ms": 0.01}} | variants, "speed": speed or {}}))
        monkeypatch.setenv("PORTOLAN_FAKE", str(path))

    return write


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return perceptron(tmp_path)


def compiled(case: Case, variant: str = "default") -> Executable:
    return fake.compile(case.model, this_machine(), variant=variant)


def test_toml_and_json_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = tmp_path / "script.toml"
    toml.write_text('[variants.default]\nlatency_ms = 2\nstarts = [1, 2.5]\n[variants.bad]\nbehaviour = "hang"\n')
    monkeypatch.setenv("PORTOLAN_FAKE", str(toml))
    assert fake.schema.parameters["variant"].values(this_machine()) == ("default", "bad")
    script = parse({"variants": {"default": {"latency_ms": 2, "starts": [1, 2.5]}, "bad": {"behaviour": "hang"}}}, "x")
    assert script.variants == {
        "default": Variant(latency_ms=2.0, starts=(1.0, 2.5)),
        "bad": Variant(behaviour="hang", when="run"),
    }


@pytest.mark.parametrize(
    ("data", "message", "where"),
    [
        ([], "not a table", "s"),
        ({"variant": {}}, "no key of a script named `variant`", "s"),
        ({"variants": {"fast": {}}}, "needs a variant named `default`", "s: $.variants"),
        ({"variants": {"default": 3}}, "a variant is not a table", "s: $.variants.default"),
        ({"variants": {"default": {"latency": 3}}}, "no key of a variant named `latency`", "s: $.variants.default"),
        (
            {"variants": {"default": {"latency_ms": "3"}}},
            "`latency_ms` expects float, got `'3'`",
            "s: $.variants.default.latency_ms",
        ),
        (
            {"variants": {"default": {"latency_ms": -3}}},
            "`latency_ms` expects float, got `-3`",
            "s: $.variants.default.latency_ms",
        ),
        ({"variants": {"default": {"size": True}}}, "`size` expects int", "s: $.variants.default.size"),
        ({"variants": {"default": {"starts": 2}}}, "`starts` expects a list", "s: $.variants.default.starts"),
        ({"variants": {"default": {"behaviour": "segfalt"}}}, "no behaviour named `segfalt`", "s: $.variants.default"),
        (
            {"variants": {"default": {"behaviour": "nan", "when": "load"}}},
            "`nan` cannot happen at `load`",
            "s: $.variants.default",
        ),
        ({"variants": {"default": {}}, "speed": {"int8": "fast"}}, "`speed` is not a table of numbers", "s: $.speed"),
    ],
)
def test_a_wrong_script_is_refused_with_the_place(data: Any, message: str, where: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(data, "s")
    assert message in caught.value.message
    assert caught.value.where == where


def test_a_script_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, text in ((tmp_path / "missing.toml", None), (tmp_path / "bad.toml", "= ="), (tmp_path / "b.json", "{")):
        if text is not None:
            path.write_text(text)
        monkeypatch.setenv("PORTOLAN_FAKE", str(path))
        with pytest.raises(UsageError, match="cannot be read"):
            fake.probe(this_machine())


def test_without_a_script_it_is_not_ready(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORTOLAN_FAKE", raising=False)
    support = fake.probe(this_machine())
    assert not support.ready
    assert "PORTOLAN_FAKE" in (support.reason or "")
    assert fake.schema.parameters["variant"].values(this_machine()) == ()
    with pytest.raises(NoBackend):
        compiled(case)


def test_a_mistyped_variant_is_answered_with_the_nearest(write: Write, case: Case) -> None:
    write(fast={})
    with pytest.raises(UnknownName) as caught:
        compiled(case, "fats")
    assert caught.value.hint == "did you mean `fast`?"


def test_latencies_follow_the_script_and_repeat(write: Write, case: Case, tmp_path: Path) -> None:
    write(two={"latency_ms": 3.0, "starts": [1.0, 2.0], "jitter": 0.1})
    folder = tmp_path / "saved"
    folder.mkdir()
    compiled(case, "two").save(folder)
    loaded = [fake.load(folder, variant="two").facts()["latency_ms"] for _ in range(3)]
    assert loaded == [3.0, 6.0, 3.0]
    first, second = compiled(case, "two"), compiled(case, "two")
    assert isinstance(first, Play)
    assert isinstance(second, Play)
    assert first._random.random() == second._random.random()


def test_a_call_takes_at_least_its_latency(write: Write, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    write(slow={"latency_ms": 40.0})
    clock, slept = [0], []

    def now() -> int:
        clock[0] += 1000
        return clock[0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += int(seconds * 1e9)

    executable = compiled(case, "slow")
    monkeypatch.setattr("portolan.backends.fake.perf_counter_ns", now)
    monkeypatch.setattr("portolan.backends.fake.sleep", sleep)
    executable.run(case.inputs)
    assert 40_000_000 <= clock[0] < 41_000_000
    assert slept == [pytest.approx(0.0397, abs=1e-4)]


def test_a_batch_takes_longer_for_each_row(write: Write, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    write(slow={"latency_ms": 10.0, "row_ms": 4.0})
    waits: list[int] = []
    executable = compiled(case, "slow")
    monkeypatch.setattr("portolan.backends.fake.perf_counter_ns", lambda: 0)
    monkeypatch.setattr("portolan.backends.fake._until", waits.append)
    for rows in (1, 3):
        executable.run({name: np.concatenate([array[:1]] * rows) for name, array in case.inputs.items()})
    assert waits == [10_000_000, 18_000_000]


def test_exploited_features_change_the_latency_and_are_not_refused(write: Write, case: Case, tmp_path: Path) -> None:
    write({"int8:dynamic": 0.5}, fast={"latency_ms": 4.0})
    model = replace(case.model, features=("int8:dynamic",))
    assert fake.refuse(model, this_machine()) is None
    assert "`fake`" in (fake.refuse(replace(model, features=("int8:static",)), this_machine()) or "")
    folder = tmp_path / "saved"
    folder.mkdir()
    executable = fake.compile(model, this_machine(), variant="fast")
    executable.save(folder)
    assert executable.facts()["latency_ms"] == 2.0
    assert fake.load(folder, variant="fast").facts()["latency_ms"] == 2.0


def test_errors_are_of_the_scripted_size_and_not_exact(write: Write, case: Case) -> None:
    write(rough={"error": 0.05})
    assert fake.exact({})
    assert not fake.exact({"variant": "rough"})
    right = case.expected["y"]
    first, second = (compiled(case, "rough").run(case.inputs)["y"] for _ in range(2))
    assert 0.03 < (first - right).std() / right.std() < 0.07
    np.testing.assert_array_equal(first, second)


def test_size_pads_what_is_saved(write: Write, case: Case, tmp_path: Path) -> None:
    write(big={"size": 12345})
    folder = tmp_path / "saved"
    folder.mkdir()
    compiled(case, "big").save(folder)
    assert (folder / "padding").stat().st_size == 12345


def test_wrong_and_nan_spoil_the_outputs(write: Write, case: Case) -> None:
    write(wrong={"behaviour": "wrong"}, nan={"behaviour": "nan"}, late={"behaviour": "wrong", "when": "time"})
    right = case.expected["y"]
    assert np.abs(compiled(case, "wrong").run(case.inputs)["y"] - right).max() > right.std()
    assert np.isnan(compiled(case, "nan").run(case.inputs)["y"]).all()
    late = compiled(case, "late")
    case.check(late.run(case.inputs), 1e-6)
    with pytest.raises(AssertionError):
        case.check(late.run(case.inputs), 1e-6)
    other = {"x": case.inputs["x"] + 1}
    assert late.run(other)["y"].shape == right.shape


def test_falling_back_is_a_loud_failure(write: Write, case: Case) -> None:
    write(elsewhere={"behaviour": "fallback"})
    with pytest.raises(PortolanError, match="was asked for device `cpu` and runs with `elsewhere`"):
        compiled(case, "elsewhere")


def test_a_slow_load_takes_its_seconds(
    write: Write, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(slow={"behaviour": "slow_load", "seconds": 7.0}, thorough={"seconds": 9.0})
    slept: list[float] = []
    monkeypatch.setattr("portolan.backends.fake.sleep", slept.append)
    folder = tmp_path / "saved"
    folder.mkdir()
    compiled(case, "slow").save(folder)
    assert slept == [0]
    fake.load(folder, variant="slow")
    assert slept == [0, 7.0]
    compiled(case, "thorough")
    assert slept == [0, 7.0, 9.0]


_PLAY = """
import json, sys
from pathlib import Path
import numpy as np
from portolan.backends.fake import fake
from portolan.core.model import Model
from portolan.core.target import Target
model, target, folder = json.loads(sys.argv[1])
def stage(name):
    print("stage", name, file=sys.stderr, flush=True)
stage("compile")
executable = fake.compile(Model.from_json(model), Target.from_json(target), variant="bad")
Path(folder).mkdir()
executable.save(Path(folder))
stage("load")
executable = fake.load(Path(folder), variant="bad")
inputs = {"x": np.ones((8, 32), np.float32)}
stage("run")
executable.run(inputs)
stage("time")
executable.run(inputs)
stage("end")
"""


def play(case: Case, folder: Path, **options: Any) -> tuple[int, str, str]:
    """Plays the variant `bad` in a process: its exit status, the last stage it reached, and what it printed."""
    question = json.dumps([case.model.to_json(), this_machine().to_json(), str(folder)])
    command = [sys.executable, "-c", _PLAY, question]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)
    stages = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("stage ")]
    return done.returncode, stages[-1], done.stdout


@pytest.mark.parametrize("when", STAGES)
@pytest.mark.parametrize(
    ("behaviour", "status"), [("segfault", -signal.SIGSEGV), ("abort", -signal.SIGABRT), ("exit", 3), ("raise", 1)]
)
def test_it_ends_its_process_at_the_stage(
    write: Write, case: Case, tmp_path: Path, behaviour: str, status: int, when: str
) -> None:
    write(bad={"behaviour": behaviour, "when": when, "latency_ms": 0.01})
    assert play(case, tmp_path / "saved")[:2] == (status, when)


def test_printing_garbage_reaches_stdout_twice(write: Write, case: Case, tmp_path: Path) -> None:
    write(bad={"behaviour": "print", "when": "time", "latency_ms": 0.01})
    status, last, out = play(case, tmp_path / "saved")
    assert (status, last) == (0, "end")
    assert out.count("WARNING") == 2


def test_a_leak_ends_at_the_limit(write: Write, case: Case, tmp_path: Path) -> None:
    write(bad={"behaviour": "leak", "latency_ms": 0.01, "limit_mb": 64})
    assert play(case, tmp_path / "saved")[:2] == (1, "run")


def test_a_leak_is_stopped_by_the_system(write: Write, case: Case, tmp_path: Path) -> None:
    write(bad={"behaviour": "leak", "latency_ms": 0.01})

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    assert play(case, tmp_path / "saved", preexec_fn=limit)[:2] == (1, "run")


def test_hanging_never_ends(write: Write, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(bad={"behaviour": "hang"})
    never = Mock()
    monkeypatch.setattr("portolan.backends.fake._NEVER", never)
    compiled(case, "bad").run(case.inputs)
    never.wait.assert_called_once_with()


def test_every_behaviour_is_known() -> None:
    assert set(BEHAVIOURS.values()) <= set(STAGES)
    assert parse({"variants": {"default": {}} | {b: {"behaviour": b} for b in BEHAVIOURS}}, "s").variants.keys() == {
        "default",
        *BEHAVIOURS,
    }
