"""The runner of documentation finds what is wrong in it."""

from __future__ import annotations

from pathlib import Path

import docs_blocks
import pytest
from docs_blocks import Command, commands, masked, missing

PAGE = """
# A page

```console
$ pip install portolan
Collecting things
$ portolan --version
portolan 0.1.0
```

```console no-run
$ portolan optimize big.onnx
```

```sh
portolan not a console block
```

  ~~~console exit=2
  $ portolan \\
      optimise
  error: no command named `optimise`
  ...
  hint: did you mean `[..]`?
  ~~~
"""


def test_commands_are_found() -> None:
    assert list(commands(PAGE)) == [
        Command(7, "portolan --version", 0, ("portolan 0.1.0",)),
        Command(
            20, "portolan optimise", 2,
            ("error: no command named `optimise`", "...", "hint: did you mean `[..]`?"),
        ),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("page", "told"), [("```console\n$ portolan\n", "does not end"), ("```console norun\n```\n", "`norun`")]
)
def test_a_broken_page_is_an_error(page: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        list(commands(page))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("baseline  19.4 ms ±0.2   97.8 MiB", "baseline 812 µs ±3   1,024 B"),
        ("★14 quantize  6.9 ±0.1  0.3%", "  9 quantize   11.25 ±0.02   -1.2%"),
        ("goals met: 2.8x faster", "goals met: 13x faster"),
        ("0.3% ±0.2  met", "0.0% (0.0 to 0.6)  met"),
    ],
)
def test_numbers_are_all_equal(a: str, b: str) -> None:
    assert masked(a) == masked(b)


def test_words_are_not() -> None:
    assert masked("2.8x faster") != masked("2.8x slower")
    assert masked("8 bits") != masked("8 bytes")


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        (("one", "three"), None),
        (("one", "...", "three"), None),
        (("t[..]", "three"), None),
        (("three", "one"), "one"),
        (("four",), "four"),
        (("two", "two"), "two"),
        (("on",), "on"),
    ],
)
def test_lines_must_follow_each_other(expected: tuple[str, ...], found: str | None) -> None:
    assert missing(expected, "one\ntwo\nthree\n") == found


def test_a_page_is_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert docs_blocks.run(page, tmp_path) == []
    page.write_text(PAGE.replace("exit=2", "exit=3").replace("portolan 0.1.0", "portulan 0.1.0"))
    wrong = docs_blocks.run(page, tmp_path)
    assert len(wrong) == 2
    assert "page.md:7: `portolan --version` does not print `portulan 0.1.0`" in wrong[0]
    assert "exits with 2, not 3" in wrong[1]


def test_of_a_sample_only_first_words_count() -> None:
    table = "baseline  19 ms\n★ 2  a  b\n 11  c\n  - 1 refused: x\ngoals met: 2x\n"
    page = f"```console sample\n$ portolan optimize x\n{table}```"
    assert [c.expected for c in commands(page)] == [("baseline[..]", "goals[..]")]
    assert missing(("baseline[..]", "goals[..]"), "baseline  1 ms\nmore\ngoals met: no\n") is None
    assert missing(("baseline[..]", "goals[..]"), "baseline  1 ms\nno goals met: no\n") == "goals[..]"


def test_scripts_run_and_files_are_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```toml file=sub/a.toml\nx = 1\n```\n"
        "```python\nfrom pathlib import Path\nassert Path('sub/a.toml').read_text() == 'x = 1\\n'\n```\n"
        "```python no-run\nraise SystemExit(3)\n```\n"
    )
    assert docs_blocks.run(page, tmp_path) == []
    page.write_text(page.read_text().replace(" no-run", ""))
    assert "page.md:8: the script exits with 3" in docs_blocks.run(page, tmp_path)[0]


def test_a_block_that_is_not_its_file_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = (docs_blocks.ROOT / "constraints.txt").read_text()
    page.write_text(f"```text from=constraints.txt\n{text}```\n")
    assert docs_blocks.run(page, tmp_path) == []
    page.write_text(f"```text from=constraints.txt\n{text}more\n```\n")
    assert docs_blocks.run(page, tmp_path) == ["page.md:1: the block is not what stands in constraints.txt"]


def test_a_page_may_begin_with_the_studies_of_another(tmp_path: Path) -> None:
    (tmp_path / "first" / "study-x").mkdir(parents=True)
    (tmp_path / "first" / "other").mkdir()
    page = tmp_path / "page.md"
    page.write_text("<!-- studies from first.md -->\n")
    docs_blocks.prepare(page, tmp_path / "second", {"first.md": tmp_path / "first"})
    assert [p.name for p in (tmp_path / "second").iterdir()] == ["study-x"]
