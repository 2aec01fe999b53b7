"""Snapshots under tests/golden/cli; `UPDATE_GOLDEN=1` writes them anew."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from scripted import Ran

FOLDER = Path(__file__).parents[1] / "golden" / "cli"


def transcript(args: tuple[str, ...], ran: Ran) -> str:
    """A command with its exit code and both streams, as one text."""
    parts = [f"$ {shlex.join(('portolan', *args))}", f"exit {ran.code}"]
    for name, text in (("stdout", ran.out), ("stderr", ran.err)):
        if text:
            parts += [f"--- {name}", text.rstrip("\n")]
    return "\n".join(parts) + "\n"


def check(name: str, text: str) -> None:
    """Compares `text` with the snapshot `name`, or writes it.

    Raises:
        AssertionError: they differ, or there is no snapshot.
    """
    path = FOLDER / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"no snapshot {path.name}; UPDATE_GOLDEN=1 writes it"
    assert text == path.read_text(encoding="utf-8")
