"""The system's C compiler: found, asked for its version, and run in the cache folder."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from portolan.core.files import write_whole
from portolan.core.running import CompilerError, cc, run
from portolan.core.target import Target
from portolan.errors import NoBackend
from portolan.kernels.candidates import candidates
from portolan.kernels.lower.nest import Group, lower
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.place import digest, folder
from portolan.kernels.printers.c import CPrinter, prelude
from portolan.kernels.tree import Program

#: No -ffast-math: it breaks infinities and NaN, and linked into a library it turns denormals off for the whole process.
FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-w")
__all__ = ["FLAGS", "Compiler", "CompilerError", "find", "source"]


def source(program: Program, schedules: Sequence[Schedule]) -> str:
    """The C code of a kernel under schedules."""
    return CPrinter().source(lower(program, schedules))


@dataclass(frozen=True)
class Compiler:
    """A C compiler.

    Attributes:
        argv: how it is started.
        version: the first line of what it says of itself.
        flags: for every kernel.
        seconds: that one compilation may take.
    """

    argv: tuple[str, ...]
    version: str
    flags: tuple[str, ...] = (*FLAGS, "-march=native")
    seconds: float = 60.0

    @property
    def language(self) -> str:
        """What workers load its libraries as."""
        return "c"

    @property
    def versions(self) -> object:
        """All that decides what it makes."""
        return (self.version, self.flags, digest(prelude()))

    def make(self, program: Program, schedules: Sequence[Schedule]) -> Path:
        """The library of a kernel under schedules.

        Raises:
            CompilerError: it could not be compiled.
        """
        return self.build(source(program, schedules))

    def options(self, program: Program, group: Group, target: Target, sizes: Mapping[str, int]) -> list[Schedule]:
        """Layouts that the model of registers and reuse bets on."""
        return candidates(program, group, target, sizes)

    def build(self, source: str, extra: Sequence[str] = ()) -> Path:
        """The shared library of `source`, from the cache or compiled now.

        Raises:
            CompilerError: it could not be compiled.
        """
        key = digest(source, self.argv, self.version, self.flags, list(extra), _machine())
        path = folder() / "lib" / f"{key}.so"
        if not path.is_file():
            self._compile(source, path, extra)
        return path

    def _compile(self, source: str, path: Path, extra: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory(prefix="portolan-kernel-") as name:
            file, made = Path(name) / "kernel.c", Path(name) / "kernel.so"
            file.write_text(source, encoding="utf-8")
            command = [*self.argv, *self.flags, *extra, "-o", str(made), str(file), "-lm"]
            code, text = run(command, self.seconds, self.argv[0])
            if code or not made.is_file():
                lines = (line.partition("error: ")[2] for line in text.splitlines())
                said = next(filter(None, lines), text.strip()[-300:])
                raise CompilerError(f"`{self.argv[0]}` ended with code {code}: {said or 'it said nothing'}")
            write_whole(path.with_suffix(".c"), source.encode())
            write_whole(path, made.read_bytes())


def find() -> Compiler:
    """The compiler that PORTOLAN_CC names, else the first of gcc, clang and cc.

    Raises:
        NoBackend: there is none.
    """
    path, *options = cc()
    return Compiler((path, *options), _version(path))


def unready(target: Target) -> str | None:
    """Why kernels cannot be compiled and raced for a target; None if they can."""
    from portolan.targets.local import local

    if target.fingerprint != local.fingerprint():
        return "kernels are compiled and raced on the machine that they are for, and the target is another one"
    try:
        find()
    except NoBackend as error:
        return f"{error.message} ({error.hint})"
    return None


@lru_cache(maxsize=8)
def _version(path: str) -> str:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (said.splitlines() or ["unknown"])[0]


@lru_cache(maxsize=1)
def _machine() -> str:
    """What `-march=native` stands for: a cache that moves to another processor must not be believed there."""
    from portolan.targets.local import local

    return local.processor().instructions
