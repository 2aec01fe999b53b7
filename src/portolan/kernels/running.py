"""Compilers as processes: each in a group of its own, so that one that hangs ends with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from portolan.errors import PortolanError


class CompilerError(PortolanError):
    """The compiler refused a program, crashed or took too long."""


class CompilerLate(CompilerError):
    """The compiler took too long, and was ended."""


def run(command: Sequence[str], seconds: float, name: str | None = None) -> tuple[int, str]:
    """Runs a compiler; its code, and what it said on stderr.

    Args:
        command: its arguments.
        seconds: after which it is ended, with the processes it started: a driver's children would go on for ever.
        name: what it is called in an error; its first argument without one.

    Raises:
        CompilerError: it could not be started.
        CompilerLate: it took too long.
    """
    called = name or Path(command[0]).name
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise CompilerError(f"`{called}` could not be started: {error.strerror}") from error
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _ended(process)
        raise CompilerLate(
            f"`{called}` did not finish within {seconds:g} s, and was ended", hint=f"see what it does: {command[0]} -v"
        ) from None
    except BaseException:
        _ended(process)
        raise
    return process.returncode, said


def _ended(process: subprocess.Popen[str]) -> None:
    """Kills a process with its group, and waits for it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stderr is not None:
        process.stderr.close()
