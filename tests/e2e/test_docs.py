"""Every `console` and `python` block of the README and of docs/ does what it shows, and every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import docs_blocks
import pytest

ROOT = docs_blocks.ROOT
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]*)(#[^)\s]*)?\)")


@pytest.mark.timeout(600)  # a minute or two; a machine that is shared takes its time
def test_the_documentation_does_what_it_shows(tmp_path: Path) -> None:
    told: list[str] = []
    done: dict[str, Path] = {}
    for number, path in enumerate(PAGES):
        folder = tmp_path / str(number)
        docs_blocks.prepare(path, folder, done)
        told += docs_blocks.run(path, folder)
        done[str(path.relative_to(ROOT))] = folder
    assert not told, "\n\n".join(told)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in LINK.findall(text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        place = (path.parent / target) if target else path
        assert place.exists(), f"{path.name}: nothing at `{target}`"
        if anchor:
            assert anchor[1:] in anchors(place.read_text(encoding="utf-8")), f"{path.name}: no `{anchor}` in `{target}`"


def anchors(markdown: str) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    titles = re.findall(r"^#+ +(.+?) *$", markdown, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
