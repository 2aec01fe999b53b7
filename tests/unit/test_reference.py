"""The reference is what the code says: `python tools/make_reference.py` writes it."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "tools" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_reference"] = module
    spec.loader.exec_module(module)
    return module


def test_it_is_up_to_date(tool: ModuleType) -> None:
    assert tool.outdated() == [], "run `python tools/make_reference.py`"


def test_a_page_that_differs_is_found(tool: ModuleType, tmp_path: Path) -> None:
    made = {"a.md": "a\n", "b.md": "b\n", "c.md": "c\n"}
    (tmp_path / "a.md").write_text("a\n")
    (tmp_path / "b.md").write_text("old\n")
    assert tool.outdated(tmp_path, made) == ["b.md", "c.md"]


def test_everything_has_a_place_in_it(tool: ModuleType) -> None:
    pages = tool.pages()
    assert all(f"## {verb}\n" in pages["commands.md"] for verb in tool.VERBS)
    assert all(f"`{name}`" in pages["metrics-and-goals.md"] for name in tool.METRICS)
    for page, registry in (("backends.md", tool.BACKENDS), ("passes.md", tool.PASSES)):
        stems = {p.stem.replace("_", "-") for p in (ROOT / "src/portolan" / registry.group).glob("[a-z]*.py")}
        assert stems <= {name.replace("_", "-") for name in registry.built_in}
        assert sorted(re.findall(r"^## ([\w-]+)$", pages[page], re.MULTILINE)) == sorted(registry.built_in)


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *optional["openvino"], *optional["torch"]]
    text = (ROOT / "docs/explanations/dependencies.md").read_text()
    for requirement in wanted:
        name = re.split(r"[<>=!~\[; ]", requirement)[0]
        assert f"| {name} |" in text, f"`{name}` is not in dependencies.md"
