"""Where things are printed: stdout is the answer, stderr is progress and notes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click


@dataclass(frozen=True)
class Line:
    """One line of an answer; `style` is empty, `bold` or `dim` and means nothing where there is no colour."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Answer:
    """What a command says to people: the lines, the next command to type, and the verdict, which comes last.

    Attributes:
        lines: the table or the facts.
        next: commands worth typing next.
        verdict: one line.
        notes: choices made automatically and other remarks, for stderr.
        code: the exit code.
    """

    lines: Sequence[Line]
    verdict: str
    next: Sequence[str] = ()
    notes: Sequence[str] = ()
    code: int = 0


@dataclass
class Console:
    """How this run prints; the flags `--json`, `--quiet` and `--verbose` set it."""

    json: bool = False
    quiet: bool = False
    verbose: int = 0
    color: bool | None = field(default_factory=lambda: False if os.environ.get("NO_COLOR") else None)

    @classmethod
    def early(cls, args: Sequence[str]) -> Console:
        """Guesses from the raw arguments, so that an error before or during their parsing is printed right."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a `★` must never be what ends a run
                stream.reconfigure(errors="replace")
        flags = args[: args.index("--")] if "--" in args else args
        short = max((a.count("v") for a in flags if a.strip("-v") == "" and a.startswith("-v")), default=0)
        return cls(
            json="--json" in flags,
            quiet="-q" in flags or "--quiet" in flags,
            verbose=max(short, flags.count("-v"), flags.count("--verbose")),
        )

    def answer(self, data: Mapping[str, Any], show: Callable[[], Answer]) -> int:
        """Prints one JSON object, or what `show` makes of it; gives back the exit code."""
        answer = show()
        if self.json:
            from portolan.core.plain import finite  # `--help` prints without it

            self._out(json.dumps(finite(data), ensure_ascii=False, allow_nan=False, default=str))
            return answer.code
        for note in answer.notes:
            self.note(note)
        for line in answer.lines:
            self._out(_styled(line))
        if answer.next:
            self._out(_styled(Line("next: " + "    ".join(answer.next), "dim")))
        self._out(_styled(Line(answer.verdict, "bold")))
        return answer.code

    def note(self, text: str) -> None:
        """One dim line on stderr, unless quiet or JSON was asked for."""
        if not self.quiet and not self.json:
            self.error(click.style(text, dim=True))

    def error(self, text: str) -> None:
        """A line on stderr, always."""
        with contextlib.suppress(BrokenPipeError):
            click.echo(text, err=True, color=self.color)

    def raw(self, text: str) -> None:
        """A line on stdout as it is."""
        self._out(text)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Callable[[str], None]]:
        """A function to be called with what is happening now.

        A terminal gets one line that changes, anything else gets plain lines, `--quiet` gets nothing.
        """
        if self.quiet:
            yield lambda text: None
        elif not sys.stderr.isatty() or self.verbose:
            yield lambda text: self.error(text)
        else:
            from rich.console import Console as Rich
            from rich.text import Text

            with Rich(stderr=True, no_color=self.color is False).status("starting") as status:
                yield lambda text: status.update(Text(text, overflow="ellipsis", no_wrap=True))

    def _out(self, text: str) -> None:
        try:
            click.echo(text, color=self.color)
        except BrokenPipeError:  # `| head` has seen enough; the rest goes nowhere, and so does Python's last flush
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _styled(line: Line) -> str:
    return click.style(line.text, bold=line.style == "bold" or None, dim=line.style == "dim" or None)
