"""Every `console` block of the README and of docs/ does what it shows."""

from __future__ import annotations

from pathlib import Path

import docs_blocks

ROOT = Path(__file__).parents[2]


def test_the_documentation_does_what_it_shows(tmp_path: Path) -> None:
    told = []
    for number, path in enumerate([*ROOT.glob("README.md"), *sorted((ROOT / "docs").glob("**/*.md"))]):
        folder = tmp_path / str(number)
        folder.mkdir()
        told += docs_blocks.run(path, folder)
    assert not told, "\n\n".join(told)
