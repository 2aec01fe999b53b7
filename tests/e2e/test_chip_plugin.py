"""New hardware from another package: installed by pip, held to the contract, and used by the command line."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHIP = Path(__file__).parents[2] / "examples" / "chip"
OPS = """
from portolan import kernel, shapes

@kernel
def tropical(A: "i k", B: "k j") -> "i j":
    return max(A[i, k] + B[k, j] for k in K)

shapes(tropical, i=33, k=17, j=29)
"""
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="the simulator needs a C compiler")


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if importlib.util.find_spec("hatchling") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("needs pip and hatchling: pip install hatchling")
    folder = tmp_path_factory.mktemp("chip")
    source = shutil.copytree(CHIP, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*command, "--target", str(folder / "site"), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = os.pathsep.join([str(folder / "site"), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "PORTOLAN_CACHE": str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}


def python(env: dict[str, str], folder: Path, *args: str) -> str:
    done = subprocess.run([sys.executable, *args], env=env, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


#: A part of the contract for every day: a contraction, a carry, a ranking, and everything that is no kernel.
SOME = "tropical or attention or selective or knn or butterfly or half or not oracle and not printed"


@pytest.mark.parametrize("part", [SOME, pytest.param("", marks=pytest.mark.slow)], ids=["some", "all"])
def test_it_keeps_the_contract(part: str, env: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(CHIP / "test_tally.py", tmp_path)
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, *(["-k", part] if part else [])]
    said = python(env, tmp_path, "-m", "pytest", *options, str(tmp_path))
    assert "skipped" not in said
    assert "failed" not in said


def test_the_command_line_knows_it(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text(OPS)
    code = python(env, tmp_path, "-m", "portolan", "kernel", "ops.py", "--emit", "tally")
    assert "kernel portolan_tropical_0_0(far const float *alone a_A" in code
    found = json.loads(python(env, tmp_path, "-m", "portolan", "kernel", "ops.py", "--target", "tally", "--json"))
    (row,) = found["kernels"]
    assert row["target"] == "tally"
    assert row["max_abs_error"] < 1e-6
    assert found["language"]["level"] == "check"
