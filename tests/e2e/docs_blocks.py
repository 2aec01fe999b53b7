"""Runs the `console` blocks of Markdown files as the tutorials they are.

The blocks of one file run in order in one empty folder. Of a block's commands, those that start with `$ portolan` run;
other commands are for people. The lines under a command must appear in this order among what it prints, with numbers,
their units and the width of columns taken as equal, since they differ between machines; `...` stands for any lines and
`[..]` for anything within a line. `console no-run` keeps a block from being run, `console exit=3` names an exit code.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})console(?P<info>[^\n`]*)$")
NUMBER = re.compile(r"[-+~≈±]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?: ?(?:ms|µs|s|%|B|[kKMGT]i?B)(?![\w/]))?")


@dataclass(frozen=True)
class Command:
    """One command of a block: where it stands, its words, its exit code and the lines it is to print."""

    line: int
    text: str
    code: int
    expected: tuple[str, ...]


def commands(markdown: str) -> Iterator[Command]:
    """The commands to run, in order.

    Raises:
        ValueError: a block that does not end, or an unknown word after `console`.
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
        info = opening["info"].split()
        if unknown := [word for word in info if not re.fullmatch(r"no-run|exit=\d+", word)]:
            raise ValueError(f"line {i}: `{unknown[0]}` means nothing after `console`")
        if "no-run" not in info:
            code = next((int(word[5:]) for word in info if word.startswith("exit=")), 0)
            indent = len(opening["indent"])
            yield from _of_block([line[indent:] for line in lines[i:end]], i + 1, code)
        i = end + 1


def _of_block(lines: list[str], first: int, code: int) -> Iterator[Command]:
    starts = [i for i, line in enumerate(lines) if line.startswith("$ ")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        text, body = lines[start][2:], lines[start + 1 : end]
        while text.endswith("\\") and body:
            text = text[:-1] + body.pop(0).strip()
        if text.split()[:1] == ["portolan"]:
            last = end == len(lines)
            yield Command(first + start, text, code if last else 0, tuple(line for line in body if line.strip()))


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
    """Runs a file's commands in `folder`; gives back what went wrong, empty when nothing did."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PORTOLAN_", "XDG_"))}
    env |= {"HOME": str(folder), "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = []
    for command in commands(path.read_text(encoding="utf-8")):
        argv = [sys.executable, "-m", *shlex.split(command.text)]
        done = subprocess.run(
            argv, cwd=folder, env=env, timeout=timeout, check=False, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        where = f"{path.name}:{command.line}: `{command.text}`"
        if done.returncode != command.code:
            told.append(f"{where} exits with {done.returncode}, not {command.code}:\n{done.stdout}")
        elif (line := missing(command.expected, done.stdout)) is not None:
            told.append(f"{where} does not print `{line}`:\n{done.stdout}")
    return told
