"""What `import portolan` offers, and that it costs nothing until it is used."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import portolan

NAMES = [
    "PortolanError", "__version__", "bench", "compress", "deploy", "doctor", "env", "inspect", "kernel", "load", "open",
    "optimize", "pack", "report", "serve", "shapes", "target",
]  # fmt: skip


def test_names() -> None:
    assert portolan.__all__ == NAMES
    assert dir(portolan) == NAMES


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(portolan.__file__).read_text(encoding="utf-8"))
    seen = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert set(NAMES) - {"__version__"} <= seen


def test_every_name_can_be_had() -> None:
    for name in NAMES:
        assert getattr(portolan, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="`nothing`"):
        _ = portolan.nothing


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys, portolan; print([m for m in sys.modules if m.startswith('portolan')], 'numpy' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True, timeout=60)
    assert ran.stdout == "['portolan'] False\n"
