"""A backend from another package: found by its entry point, held to the contract, and caught where it breaks it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from portolan import testing

#: One module with a backend that keeps the contract, and one for each way of breaking it.
BACKENDS = '''
from pathlib import Path
from typing import Annotated
from portolan.backends.reference import Evaluator, Reference
from portolan.core.schema import Knob

class Echo(Reference):
    """The evaluator of ONNX, from outside."""
    name, distributions, module = "echo", ("portolan-echo",), "echo_runtime"
    fix = "pip install portolan-echo"

class Off(Evaluator):
    def run(self, inputs):
        return {name: value + value.dtype.type(1) for name, value in super().run(inputs).items()}

class Views(Evaluator):
    def run(self, inputs):
        self.kept = getattr(self, "kept", {})
        for name, value in super().run(inputs).items():
            if name in self.kept and self.kept[name].shape == value.shape:
                self.kept[name][...] = value
            else:
                self.kept[name] = value
        return dict(self.kept)

def breaking(executable):
    class Broken(Echo):
        def compile(self, model, target):
            found = super().compile(model, target)
            found.__class__ = executable
            return found
        def load(self, folder):
            found = super().load(folder)
            found.__class__ = executable
            return found
    return Broken()

class Mute(Echo):
    def compile(self, model, target, *, speed: Annotated[int, Knob(values=(2, 1))] = 1):
        return super().compile(model, target)
    def load(self, folder, *, speed=1):
        return super().load(folder)

echo, off, views, mute = Echo(), breaking(Off), breaking(Views), Mute()
'''
HEAVY = """
import numpy
from echo_backends import Echo

class Heavy(Echo):
    pass

heavy = Heavy()
"""
SUITE = """
from portolan.core.registry import backend
from portolan.testing import BackendContract
import echo_backends

class TestEcho(BackendContract):
    backend = backend("echo")
class TestOff(BackendContract):
    backend = echo_backends.off
class TestViews(BackendContract):
    backend = echo_backends.views
class TestMute(BackendContract):
    backend = echo_backends.mute
class TestHeavy(BackendContract):
    backend = backend("heavy")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package as pip would leave it."""
    site = tmp_path_factory.mktemp("site")
    (site / "echo_runtime.py").write_text("")
    (site / "echo_backends.py").write_text(BACKENDS)
    (site / "echo_heavy.py").write_text(HEAVY)
    info = site / "portolan_echo-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: portolan-echo\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text("[portolan.backends]\necho = echo_backends:echo\nheavy = echo_heavy:heavy\n")
    (site / "test_echo.py").write_text(SUITE)
    return site


def python(site: Path, *args: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *args], env=env, cwd=site, capture_output=True, text=True, timeout=240, check=False
    )


def test_the_suites_are_had_lazily() -> None:
    code = (
        "import sys, portolan.testing as t; print('numpy' in sys.modules, 'pytest' in sys.modules, dir(t));"
        "from portolan.testing import BackendContract as B, FrontendContract, PassContract; print(B.__module__)"
    )
    ran = python(Path.cwd(), "-c", code)
    assert ran.stdout.splitlines() == [
        "False False ['BackendContract', 'FrontendContract', 'LanguageContract', 'PassContract']",
        "portolan.testing.backend",
    ], ran.stderr


def test_there_is_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no attribute `TargetContract`"):
        _ = testing.TargetContract


def test_doctor_knows_it(site: Path) -> None:
    ran = python(site, "-m", "portolan", "doctor", "--json")
    rows = {row["name"]: row for row in json.loads(ran.stdout)["backends"]}
    assert rows["echo"] == {"name": "echo", "ready": True, "version": "0.3", "reason": None, "fix": None} | {
        key: rows["echo"][key] for key in rows["echo"].keys() - {"name", "ready", "version", "reason", "fix"}
    }


def test_who_keeps_the_contract_passes_and_who_breaks_it_fails(site: Path) -> None:
    """Of 80 tests only those fail that are about what is broken, so that a plug-in's author sees where to look."""
    ran = python(
        site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--tb=no", "-rf", "test_echo.py"
    )
    failed: dict[str, set[str]] = {}
    for owner, test in re.findall(r"FAILED test_echo.py::Test(\w+)::(\w+)", ran.stdout):
        failed.setdefault(owner, set()).add(test.removeprefix("test_"))
    assert "Echo" not in failed, ran.stdout
    assert failed.keys() == {"Off", "Views", "Mute", "Heavy"}, ran.stdout
    assert failed["Heavy"] == {"importing_and_probing_load_nothing_heavy"}
    assert failed["Mute"] == {"options_are_documented_and_have_values"}
    assert {"outputs_belong_to_the_caller", "two_threads_get_their_own_answers"} >= failed["Views"]
    assert "outputs_belong_to_the_caller" in failed["Views"]
    assert {"outputs_are_right", "saved_is_loaded_by_another_process"} <= failed["Off"]
