"""Packages of `examples/`, installed by pip into a folder of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def installed(package: str, folder: Path) -> dict[str, str]:
    """The environment of a process that has `examples/PACKAGE` installed; skips where pip cannot build it offline."""
    return environment(wheel(EXAMPLES / package, folder), folder)


def wheel(project: Path, folder: Path, **more: str) -> Path:
    """Where the wheel of a project is unpacked, built with `more` in the environment."""
    for needed in ("hatchling", "pip"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    site = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    asked = {**os.environ, **more}
    done = subprocess.run([*command, str(project)], env=asked, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return site


def environment(site: Path, home: Path) -> dict[str, str]:
    """The environment of a process that finds what lies in `site` before everything else."""
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    return {**os.environ, "HOME": str(home), "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
