"""Imports point down only, also those inside functions and those for types."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import portolan

ROOT = Path(portolan.__file__).parent
ORDER = [
    *(
        "errors",
        "units",
        "core",
        "environments",
        "demo",
        "targets",
        "frontends",
        "importers",
        "passes",
        "backends",
        "worker",
        "emulation",
    ),
    *(
        "measure",
        "kernels",
        "fusing",
        "filtering",
        "serving",
        "search",
        "study",
        "bundle",
        "shipped",
        "packing",
        "comparison",
        "agreement",
        "embedding",
        "compression",
        "hosting",
    ),
    *("deployment", "reports", "api", "cli", "__main__"),
]
#: The root package is everyone's for its version; its lazy names lead up on purpose. The test suites see everything.
FREE = {"testing", ""}


def layer(module: str) -> str:
    return module.partition(".")[2].partition(".")[0] if module.startswith("portolan") else "?"


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                submodule = (ROOT / f"{alias.name}.py").exists() or (ROOT / alias.name).is_dir()
                yield f"portolan.{alias.name}" if node.module == "portolan" and submodule else node.module or ""


def wrong(source: str, own: str) -> list[str]:
    used = (m for m in imports(ast.parse(source)) if m.split(".")[0] == "portolan")
    known = [m for m in used if layer(m) != ""]
    return [m for m in known if layer(m) not in ORDER or ORDER.index(layer(m)) > ORDER.index(own)]


def test_imports_point_down() -> None:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own in FREE or own == "__init__":
            continue
        assert own in ORDER, f"`{own}` has no place in the order of layers"
        if bad := wrong(path.read_text(encoding="utf-8"), own):
            found[str(path.relative_to(ROOT))] = bad
    assert found == {}


def test_every_layer_is_there_and_in_the_architecture() -> None:
    page = (ROOT.parents[1] / "docs/architecture.md").read_text(encoding="utf-8")
    listed = set(page.partition("## Layers")[2].partition("## ")[0].split())
    for name in (*ORDER, *FREE - {""}):
        path = f"{name}/" if (ROOT / name).is_dir() else f"{name}.py"
        assert (ROOT / path).exists(), f"there is no `{path}`"
        assert path in listed or name == "__main__", f"docs/architecture.md does not list `{path}`"


def test_an_import_that_points_up_is_found() -> None:
    assert wrong("def f():\n    from portolan.cli import app", "core") == ["portolan.cli"]
    assert wrong("import portolan.study.trial", "measure") == ["portolan.study.trial"]
    assert wrong("from portolan import units\nfrom portolan import __version__", "core") == []
    assert wrong("from portolan import cli", "api") == ["portolan.cli"]
    assert wrong("from portolan.nowhere import x", "cli") == ["portolan.nowhere"]
