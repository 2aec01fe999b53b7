"""Names in a study come from model files and logs of strangers. None of them may become markup or code."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from portolan.reports import render, write

GOLDEN = Path(__file__).parents[1] / "golden"
ATTACKS = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\"><svg onload=document.title='owned'>",
    "' onmouseover='alert(1)",
    "<!--<script>",
    "]]></style><style>*{display:none}</style>",
    "`<b>code</b>`",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "line\u2028separator\u2029end",
    "javascript:alert(1)",
]
# Words that the contract fixes; everything else in a study is free text.
FIXED = {"status", "kind", "goals", "verdict", "metric", "unit", "a", "b"}


def poison(data: Any, attack: str, key: str = "") -> Any:
    """`data` with `attack` appended to every free text, and to the free keys too."""
    if isinstance(data, str):
        return data if key in FIXED else data + attack
    if isinstance(data, list):
        return [poison(item, attack, key) for item in data]
    if isinstance(data, dict):
        free = {k: poison(v, attack, k) for k, v in data.items()}
        return free | ({f"key {attack}": 1} if key in ("options", "versions", "environment") else {})
    return data


class Skeleton(HTMLParser):
    """The tags and attribute names of a page, without any text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_text_stays_text(attack: str) -> None:
    study = json.loads((GOLDEN / "study_served.json").read_text())
    harmless = Skeleton(render([poison(study, "x")])).tags
    page = render([poison(study, attack)])
    # A name in backticks may be shown as code; no other element may appear.
    plain = [tag for tag in Skeleton(page).tags if tag != ("code", ())]
    assert plain == [tag for tag in harmless if tag != ("code", ())]


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_data_survives_unchanged(attack: str) -> None:
    study = poison(json.loads((GOLDEN / "study.json").read_text()), attack)
    page = render([study])
    start = page.index('id="portolan-data">') + len('id="portolan-data">')
    block = page[start : page.index("</script>", start)]
    assert json.loads(block)["studies"] == [study]
    assert not set("<>&\u2028\u2029") & set(block)


def test_names_cannot_disguise_themselves(tmp_path: Path) -> None:
    study = json.loads((GOLDEN / "study.json").read_text())
    study["name"] = "safe\u202egpj.exe\x00\ud800\x1b[2J"
    page = write([study], tmp_path / "report.html").read_text(encoding="utf-8")
    body = page[page.index("<body>") : page.index('id="portolan-data"')]
    assert "safe\ufffdgpj.exe\ufffd\ufffd\ufffd[2J" in body


def test_metric_names_are_hostile_too() -> None:
    study = json.loads((GOLDEN / "study.json").read_text())
    study["best"]["metrics"]["<img src=x onerror=alert(1)>"] = {"value": 1.0, "unit": "<b>", "kind": "measured"}
    study["best"]["metrics"]["__proto__"] = {"value": 1.0, "unit": "", "kind": "measured"}
    page = render([study])
    assert "img" not in {tag for tag, _ in Skeleton(page).tags}
    assert page.count("<b>") == 2, "the footer's own marks are the only ones"
