"""Running the tools that fetch and unpack packages, with what they say on failure as the reason."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from portolan.core.silence import quiet_environment
from portolan.errors import DiskFull, NoBackend

_SECONDS = 1800.0


def need(program: str, hint: str) -> str:
    """The path of a program.

    Raises:
        NoBackend: it is not installed.
    """
    found = shutil.which(program)
    if found is None:
        raise NoBackend(f"`{program}` is not installed", hint=hint)
    return found


def run(argv: Sequence[str], *, doing: str, folder: Path, hint: str, seconds: float = _SECONDS) -> str:
    """What the command printed.

    Raises:
        NoBackend: it failed, or took longer than `seconds`; the message ends with its last words.
        DiskFull: no space was left.
    """
    try:
        done = subprocess.run(
            argv, cwd=folder, capture_output=True, text=True, errors="replace", timeout=seconds, check=False,
            stdin=subprocess.DEVNULL, env={**os.environ, **quiet_environment(), "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoBackend(f"{doing} took longer than {seconds:g} s", hint=hint) from None
    except OSError as error:
        raise NoBackend(f"{doing} failed: {error.strerror}: `{argv[0]}`", hint=hint) from error
    if done.returncode:
        said = f"{done.stdout}\n{done.stderr}"
        if "No space left" in said or "ENOSPC" in said:
            raise DiskFull(f"the disk is full: {doing} failed")
        raise NoBackend(f"{doing} failed: {_reason(said) or f'exit code {done.returncode}'}", hint=hint)
    return done.stdout


def _reason(said: str) -> str:
    """The first line that is called an error, or the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith(("E: ", "ERROR: ", "npm error", "npm ERR!", "error: "))]
    telling = [line for line in marked if not line.endswith(("code", "errno"))]
    return " ".join((telling or marked or lines[-1:] or [""])[0].split())[:300]
