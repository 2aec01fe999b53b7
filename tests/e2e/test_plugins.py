"""The example plug-ins of the guides: installed by their own pyproject.toml, they keep the contracts and take part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.site import installed

PLUGINS = Path(__file__).parents[2] / "examples" / "plugins"


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which pip has installed the example package."""
    return installed("plugins", tmp_path_factory.mktemp("plugins"))


def _python(env: dict[str, str], folder: Path, *args: str) -> str:
    done = subprocess.run([sys.executable, *args], env=env, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _portolan(env: dict[str, str], folder: Path, *args: str) -> Any:
    return json.loads(_python(env, folder, "-m", "portolan", *args, "--json"))


def test_they_keep_the_contracts(env: dict[str, str], tmp_path: Path) -> None:
    _python(env, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(PLUGINS))


def test_doctor_lists_them(env: dict[str, str], tmp_path: Path) -> None:
    found = _portolan(env, tmp_path, "doctor")
    assert [b["ready"] for b in found["backends"] if b["name"] == "lean"] == [True]
    assert [p["about"][:6] for p in found["passes"] if p["name"] == "halve"] == ["Stores"]


def test_the_pass_halves_the_file(env: dict[str, str], tmp_path: Path) -> None:
    found = _portolan(env, tmp_path, "compress", "demo:digits", "--pass", "halve")
    whole = (Path(__file__).parents[2] / "src/portolan/demo/digits.onnx").stat().st_size
    assert (tmp_path / found["model"]).stat().st_size < 0.6 * whole
    assert found["metrics"]["cosine"]["value"] > 0.999


def test_the_search_plans_with_backend_and_pass(env: dict[str, str], tmp_path: Path) -> None:
    plan = _portolan(env, tmp_path, "optimize", "demo:digits", "-g", "cosine >= 0.99", "--dry-run")
    assert plan["backends"]["lean"]["recipes"] > 0
    assert "halve(least=256)" in plan["chains"]


def test_the_front_end_is_packed_on_the_backend(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "rule.linear.json").write_text('{"weights": [[1, 2, 3], [4, 5, 6]], "bias": [0.5, -0.5]}')
    found = _portolan(env, tmp_path, "pack", "rule.linear.json", "--backend", "lean")
    assert found["verified"]
    assert found["bundle"] == "rule.portolan"
