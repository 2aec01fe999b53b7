"""Runs the code blocks of Markdown files as the tutorials they are.

The blocks of one file run in order in one folder, which is empty unless the file says `<!-- studies from PAGE -->`:
then it begins with the studies that PAGE left behind, so that a search is not paid for twice.

`console`: of a block's commands, those that start with `$ portolan` run; other commands are for people. The lines under
a command must appear in this order among what it prints, with numbers, their units and the width of columns taken as
equal, since they differ between machines; `...` stands for any lines and `[..]` for anything within a line. Words after
`console`: `no-run` keeps the block from being run, `exit=3` names an exit code, and `sample` says that the block shows
what one machine answered: rows of its tables are not compared, and of other lines only the first word is.

`python`: runs as a script of its own; `no-run` keeps it from that. Any language with `file=NAME` is written to that
file in place of being run, and with `from=PATH` must be what stands in that file of the repository.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[a-z]*)(?P<info>[^\n`]*)$")
NUMBER = re.compile(r"[-+~≈±]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?: ?(?:ms|µs|s|%|B|[kKMGT]i?B)(?![\w/]))?")
BEGINS_WITH = re.compile(r"<!-- studies from (\S+) -->")
_ROW = re.compile(r"\s*(★|\d|- )")
_WORDS = {"console": r"no-run|sample|exit=\d+", "python": r"no-run|(file|from)=\S+"}


@dataclass(frozen=True)
class Block:
    """One fenced block: the line it begins at, its language, the words after that, and its lines."""

    line: int
    language: str
    words: tuple[str, ...]
    lines: tuple[str, ...]

    def word(self, key: str) -> str | None:
        """The value of `key=value` among the words."""
        return next((w.partition("=")[2] for w in self.words if w.startswith(f"{key}=")), None)

    @property
    def text(self) -> str:
        """What a file with these lines holds."""
        return "\n".join(self.lines) + "\n"


@dataclass(frozen=True)
class Command:
    """One command of a block: where it stands, its words, its exit code and the lines it is to print."""

    line: int
    text: str
    code: int
    expected: tuple[str, ...]


def blocks(markdown: str) -> Iterator[Block]:
    """Every fenced block, in order.

    Raises:
        ValueError: a block that does not end, or an unknown word after its language.
    """
    lines = markdown.splitlines()
    i = 0
    while i < len(lines):
        opening = FENCE.match(lines[i])
        i += 1
        if opening is None:
            continue
        end = next((j for j in range(i, len(lines)) if lines[j].strip() == opening["fence"]), None)
        if end is None:
            raise ValueError(f"line {i}: the block does not end")
        language, words, indent = opening["language"], tuple(opening["info"].split()), len(opening["indent"])
        known = _WORDS.get(language, r"(file|from)=\S+")
        if unknown := [word for word in words if not re.fullmatch(known, word)]:
            raise ValueError(f"line {i}: `{unknown[0]}` means nothing after `{language}`")
        yield Block(i, language, words, tuple(line[indent:] for line in lines[i:end]))
        i = end + 1


def commands(markdown: str) -> Iterator[Command]:
    """The commands to run, in order."""
    for block in blocks(markdown):
        if block.language == "console":
            yield from _commands(block)


def _commands(block: Block) -> Iterator[Command]:
    if "no-run" in block.words:
        return
    code = int(block.word("exit") or 0)
    lines = list(block.lines)
    starts = [i for i, line in enumerate(lines) if line.startswith("$ ")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        text, body = lines[start][2:], lines[start + 1 : end]
        while text.endswith("\\") and body:
            text = text[:-1] + body.pop(0).strip()
        if text.split()[:1] == ["portolan"]:
            expected = tuple(line for line in body if line.strip())
            if "sample" in block.words:
                expected = tuple(_first_word(line) for line in expected if not _ROW.match(line))
            yield Command(block.line + 1 + start, text, code if end == len(lines) else 0, expected)


def _first_word(line: str) -> str:
    return line if line.strip() == "..." else f"{line.split()[0]}[..]"


def masked(line: str) -> str:
    """A line without what differs between machines."""
    numbers = NUMBER.sub("#", line.replace("★", " ")).replace("##", "#")
    return " ".join(numbers.replace("# (# to #)", "# #").split())  # an interval, even or lopsided


def missing(expected: tuple[str, ...], printed: str) -> str | None:
    """The first expected line that does not follow the ones before it in what was printed."""
    rest = iter([masked(line) for line in printed.splitlines()])
    for line in expected:
        if line.strip() == "...":
            continue
        pattern = re.compile(".*".join(re.escape(masked(part)) for part in line.split("[..]")))
        if not any(pattern.fullmatch(found) for found in rest):
            return line
    return None


def run(path: Path, folder: Path, timeout: float = 280.0) -> list[str]:
    """Runs a file's blocks in `folder`; gives back what went wrong, empty when nothing did."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PORTOLAN_", "XDG_"))}
    env |= {"HOME": str(folder), "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = []
    for block in blocks(path.read_text(encoding="utf-8")):
        where = f"{path.name}:{block.line}"
        if name := block.word("from"):
            if (ROOT / name).read_text(encoding="utf-8") != block.text:
                told.append(f"{where}: the block is not what stands in {name}")
        elif name := block.word("file"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(block.text, encoding="utf-8")
        elif block.language == "python" and "no-run" not in block.words:
            script = folder / ".block.py"  # a file, as a reader would have: some of it reads its own source
            script.write_text(block.text, encoding="utf-8")
            code, printed = _process([sys.executable, script.name], folder, env, timeout)
            script.unlink()
            if code:
                told.append(f"{where}: the script exits with {code}:\n{printed}")
        elif block.language == "console":
            told += [wrong for command in _commands(block) if (wrong := _wrong(command, path, folder, env, timeout))]
    return told


def _wrong(command: Command, path: Path, folder: Path, env: dict[str, str], timeout: float) -> str | None:
    code, printed = _process([sys.executable, "-m", *shlex.split(command.text)], folder, env, timeout)
    where = f"{path.name}:{command.line}: `{command.text}`"
    if code != command.code:
        return f"{where} exits with {code}, not {command.code}:\n{printed}"
    if (line := missing(command.expected, printed)) is not None:
        return f"{where} does not print `{line}`:\n{printed}"
    return None


def _process(argv: list[str], folder: Path, env: dict[str, str], timeout: float) -> tuple[int, str]:
    done = subprocess.run(
        argv, cwd=folder, env=env, timeout=timeout, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, done.stdout


def prepare(path: Path, folder: Path, done: dict[str, Path]) -> None:
    """Makes the folder that a page runs in; `done` holds the folders of the pages that ran before, by path."""
    folder.mkdir()
    if begin := BEGINS_WITH.search(path.read_text(encoding="utf-8")):
        for study in done[begin[1]].glob("study-*"):
            shutil.copytree(study, folder / study.name)
