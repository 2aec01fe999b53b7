"""A backend may live in another interpreter: `PORTOLAN_PYTHON_<BACKEND>` names it."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from portolan.core import environments, registry
from portolan.core.target import Target
from portolan.errors import UnknownName, UsageError
from portolan.testing.models import cases, this_machine
from portolan.worker import Worker
from portolan.worker.environments import backends, python_for, python_for_compiling


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter of another place: isolated, without the current folder, and it leaves a line per start."""
    path = tmp_path / "other python"
    path.write_text(
        f"#!/bin/sh\necho started >> {shlex.quote(str(tmp_path / 'starts'))}\n"
        f'exec {shlex.quote(sys.executable)} -I "$@"\n'
    )
    path.chmod(0o755)
    return path


def starts(python: Path) -> int:
    log = python.parent / "starts"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_without_the_variable_it_is_this_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORTOLAN_PYTHON_REFERENCE", raising=False)
    assert python_for("reference") is None
    monkeypatch.setenv("PORTOLAN_PYTHON_REFERENCE", "")
    assert python_for("reference") is None


def test_the_variable_is_an_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTOLAN_PYTHON_MY_OWN", "ssh -T 'a box' python3")
    assert python_for("my-own") == ["ssh", "-T", "a box", "python3"]


def test_the_other_interpreter_answers(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTOLAN_PYTHON_REFERENCE", shlex.quote(str(python)))
    target = this_machine()
    found = backends(target, ["reference", "onnxruntime"])
    assert starts(python) == 1
    support = found["reference"].probe(target)
    assert (support.ready, support.reason) == (True, None)
    assert found["reference"].versions()["onnx"] == support.version
    assert found["onnxruntime"].probe(target).ready
    assert starts(python) == 1


def test_other_backends_stay_here(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTOLAN_PYTHON_REFERENCE", shlex.quote(str(python)))
    backends(this_machine(), ["openvino", "onnxruntime"])
    assert starts(python) == 0


def test_it_compiles_and_runs_there(python: Path, tmp_path: Path) -> None:
    """With the files of this package and none of its other packages' paths."""
    (tmp_path / "models").mkdir()
    (tmp_path / "out").mkdir()
    case = cases(tmp_path / "models")[0]
    with Worker(python=[str(python)]) as worker:
        worker.ask(
            "compile", timeout=60, backend="reference", model=case.model.to_json(), target=this_machine().to_json(),
            options={}, out=str(tmp_path / "out"),
        )  # fmt: skip
        case.check(worker.ask("run", tensors=case.inputs, timeout=60).tensors, 1e-4)
    assert starts(python) == 1


def test_another_version_there_is_another_version_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache keys hold the versions of the interpreter that compiles, not of the one that asks."""
    site = tmp_path / "site"
    info = site / "onnx-0.0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnx\nVersion: 0.0.1\n")
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(site))} exec {shlex.quote(sys.executable)} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PORTOLAN_PYTHON_REFERENCE", str(wrapper))
    target = this_machine()
    assert backends(target, ["reference"])["reference"].versions()["onnx"] == "0.0.1"
    monkeypatch.delenv("PORTOLAN_PYTHON_REFERENCE")
    assert backends(target, ["reference"])["reference"].versions()["onnx"] != "0.0.1"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (None, "no worker could be started: No such file or directory"),
        ("echo 'no module here' >&2\nexit 3", "no module here"),
        ("exit 0", ""),
        ("echo this is not a frame", ""),
    ],
)
def test_an_interpreter_that_does_not_answer_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, why: str
) -> None:
    path = tmp_path / "python"
    if script is not None:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PORTOLAN_PYTHON_REFERENCE", str(path))
    target = this_machine()
    found = backends(target, ["reference"])["reference"]
    support = found.probe(target)
    assert not support.ready
    assert support.reason is not None
    assert support.reason.startswith(f"`{path}` does not answer: ")
    assert why in support.reason
    assert support.fix == "unset PORTOLAN_PYTHON_REFERENCE"
    assert found.versions() == {}


def test_the_object_in_the_registry_is_not_changed(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTOLAN_PYTHON_ONNXRUNTIME", "/nowhere/python")
    target = this_machine()
    assert not backends(target, ["onnxruntime"])["onnxruntime"].probe(target).ready
    monkeypatch.delenv("PORTOLAN_PYTHON_ONNXRUNTIME")
    assert backends(target, ["onnxruntime"])["onnxruntime"].probe(target).ready


def test_an_unknown_backend_is_an_unknown_name() -> None:
    with pytest.raises(UnknownName, match="`opnvino`"):
        backends(this_machine(), ["opnvino"])


def test_a_variable_that_is_no_command_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTOLAN_PYTHON_ONNXRUNTIME", "python3 'unclosed")
    with pytest.raises(UsageError, match="`PORTOLAN_PYTHON_ONNXRUNTIME` is no command line"):
        python_for("onnxruntime")


REACH = ("qemu", "-L", "root", "/root/python3")


class There:
    """A worker on a target that has every backend in its first version."""

    def __init__(self, **_: Any) -> None:
        self.fields: dict[str, Any] = {"support": {"ready": True, "version": "1.0"}}

    def __enter__(self) -> There:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def ask(self, op: str, *, timeout: float, backend: str, target: Any) -> There:
        del op, timeout, target
        self.fields["versions"] = {backend: "1.0"}
        return self


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A target with an interpreter of its own; this machine has no environments yet."""
    monkeypatch.setenv("PORTOLAN_ENVS", str(tmp_path / "envs"))
    monkeypatch.setattr("portolan.worker.environments.Worker", There)
    return dataclasses.replace(this_machine(), id="arm", kind="emulated", reach=REACH)


def whole(name: str, root: Path) -> Path:
    """What a look at a whole environment sees."""
    site = root / "envs" / name / "lib" / "python3.11" / "site-packages"
    (site / name).mkdir(parents=True)
    for pin in environments.plan(name).pins:
        (site / f"{pin.name.replace('-', '_')}-{pin.version}.dist-info").mkdir()
    python = root / "envs" / name / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    (root / "envs" / name / environments.STAMP).write_text('{"size": 1}')
    return python


def test_a_target_without_the_converter_takes_what_is_converted_here(far: Target, tmp_path: Path) -> None:
    support = backends(far, ["ncnn"])["ncnn"].probe(far)
    assert (support.ready, support.fix) == (False, "portolan env add ncnn")
    assert support.reason == "`ncnn` is converted on this machine: the package `ncnn` is not installed"
    python = whole("ncnn", tmp_path)
    found = backends(far, ["ncnn", "onnxruntime"])
    assert found["ncnn"].probe(far).ready
    pins = {pin.name: pin.version for pin in environments.plan("ncnn").pins}
    assert found["ncnn"].versions() == {"ncnn": "1.0", "pnnx": pins["pnnx"]}
    assert found["onnxruntime"].versions() == {"onnxruntime": "1.0"}
    assert python_for_compiling(far, found["ncnn"]) == [str(python)]


def test_what_is_not_portable_is_compiled_where_it_runs(far: Target, tmp_path: Path) -> None:
    whole("ncnn", tmp_path)
    assert python_for_compiling(far, registry.backend("onnxruntime")) == list(REACH)
    same = dataclasses.replace(far, reach=("qemu", sys.executable))  # an older processor with this interpreter
    here = str(tmp_path / "envs" / "ncnn" / "bin" / "python")
    assert python_for_compiling(same, registry.backend("ncnn")) == ["qemu", here]
    assert python_for_compiling(this_machine(), registry.backend("ncnn")) == [here]
