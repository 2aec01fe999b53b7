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
    for needed in ("hatchling", "pip"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    site = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    done = subprocess.run([*command, str(EXAMPLES / package)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    return {**os.environ, "HOME": str(folder), "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
