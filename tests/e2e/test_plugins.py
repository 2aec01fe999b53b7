"""The example plug-ins of the guides: installed by their own pyproject.toml, they keep the contracts and take part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

PLUGINS = Path(__file__).parents[2] / "examples" / "plugins"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment in which the example package is installed, as far as imports and entry points can tell."""
    project = tomllib.loads((PLUGINS / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [f"[{group}]\n{_lines(entries)}" for group, entries in project["entry-points"].items()]
    (info / "entry_points.txt").write_text("\n".join(groups))
    path = [str(info.parent), str(PLUGINS), *filter(None, sys.path)]
    return {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}


def _lines(entries: dict[str, str]) -> str:
    return "".join(f"{name} = {place}\n" for name, place in entries.items())


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
