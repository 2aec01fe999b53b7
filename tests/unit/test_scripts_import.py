"""Benchmarks, tools and examples take from the package what is there: nobody runs all of them after each change."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path
    for folder in ("benchmarks", "tools", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if "portolan" in path.read_text(encoding="utf-8") and ".venv" not in path.parts
)


def taken(path: Path) -> list[tuple[str, str]]:
    """What a script imports from the package: module and name."""
    nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
    return [(n.module, a.name) for n in nodes if n.module and n.module.split(".")[0] == "portolan" for a in n.names]


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) > 30


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_script_imports_is_there(path: Path) -> None:
    missing = []
    for module, name in taken(path):
        found = importlib.import_module(module)
        modules = [each.name for each in pkgutil.iter_modules(getattr(found, "__path__", []))]
        if not hasattr(found, name) and name not in modules:
            missing.append(f"{module}.{name}")
    assert missing == []
