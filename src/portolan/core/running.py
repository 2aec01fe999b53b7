"""Other programs as processes that leave nothing behind: a compiler that hangs, a browser whose owner was killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from portolan.errors import NoBackend, PortolanError

#: Asks the kernel to kill this process with the thread that started it (PR_SET_PDEATHSIG), and becomes the program.
_TIED = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execvp(sys.argv[2], sys.argv[2:])"
)


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


def tied(command: Sequence[str]) -> list[str]:
    """The command line of a program that ends with the thread of this process that starts it, even by a SIGKILL."""
    # A program that is not there is left to who starts it, whose error names it.
    if sys.platform != "linux" or shutil.which(command[0]) is None:
        return [*command]
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command]


def _ended(process: subprocess.Popen[str]) -> None:
    """Kills a process with its group, and waits for it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stderr is not None:
        process.stderr.close()


def cc(what: str = "") -> list[str]:
    """The C compiler that PORTOLAN_CC names, else the first of gcc, clang and cc; as `plus`."""
    return _compiler("C", "PORTOLAN_CC", ("gcc", "clang", "cc"), what)


def plus(what: str) -> list[str]:
    """The C++ compiler that PORTOLAN_CXX names, else the first of g++, clang++ and c++.

    Args:
        what: needs it, for the error.

    Raises:
        NoBackend: there is none.
    """
    return _compiler("C++", "PORTOLAN_CXX", ("g++", "clang++", "c++"), what)


def _compiler(of: str, variable: str, names: Sequence[str], what: str) -> list[str]:
    asked = os.environ.get(variable, "").split()
    if asked and shutil.which(asked[0]) is None:
        raise NoBackend(f"the compiler `{asked[0]}` that {variable} names is not there", hint=f"unset {variable}")
    for argv in [asked] if asked else [[name] for name in names]:
        if (path := shutil.which(argv[0])) is not None:
            return [path, *argv[1:]]
    needs = f", which {what} needs" if what else ""
    hint = f"apt install {names[0]} (or clang), or name one: {variable}=/path/to/{names[-1]}"
    raise NoBackend(f"no {of} compiler was found{needs}", hint=hint)


def compiled(command: Sequence[str], source: str, suffix: str, seconds: float) -> bytes:
    """What a compiler makes of a program: `command`, then `-o`, the result and the source, whose name ends in `suffix`.

    Raises:
        CompilerError: it ended with an error; as `run`.
    """
    with tempfile.TemporaryDirectory(prefix="portolan-compiled-") as name:
        text, result = Path(name) / f"source{suffix}", Path(name) / "made.so"
        text.write_text(source, encoding="utf-8")
        code, heard = run([command[0], "-o", str(result), str(text), *command[1:]], seconds)
        if code or not result.is_file():
            said = next((line for line in heard.splitlines() if "error" in line), heard[-300:])
            raise CompilerError(f"`{command[0]}` ended with code {code}: {said}")
        return result.read_bytes()
