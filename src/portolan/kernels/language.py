"""A language that kernels are printed in, and what makes programs of it run. The plug-in for new hardware, level one.

A chip that has a C-like compiler needs a printer (a table of words, `printers.clike`), `compile`, and `load`: every
kernel then runs on it. One file each in `languages/`, or a package with an entry point in `portolan.languages`, tested
by `portolan.testing.LanguageContract`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from portolan.core import registry
from portolan.core.files import write_whole
from portolan.core.target import Target
from portolan.kernels.lower.nest import Group, lower
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.lower.shared import contraction
from portolan.kernels.place import digest, folder
from portolan.kernels.plan import Plan
from portolan.kernels.printers.threads import Printer
from portolan.kernels.tree import Program, Reduce, walk

Array = np.ndarray[Any, Any]
Level = Literal["print", "compile", "check", "time"]
#: Rows and columns that a thread makes of a tile that it shares with 63 others.
_SIDES = (8, 4, 2)
#: Rows and columns of a thread's tile.
_TILES = ((1, 1), (4, 4), (2, 4), (1, 4), (8, 4), (4, 1), (1, 16))


@dataclass(frozen=True)
class Here:
    """What can be done with a language on this machine.

    Attributes:
        level: `print` (nothing more), `compile`, `check` (run, but not on what it is for: nothing is timed), or `time`.
        version: of what compiles or runs it, with the device.
        reason: why there is not more; None where nothing is missing.
        fix: the command that adds it.
    """

    level: Level
    version: str = ""
    reason: str | None = None
    fix: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class Loaded(ABC):
    """A kernel, ready to be called."""

    @abstractmethod
    def __call__(self, arrays: Sequence[Array], sizes: Mapping[str, int], pool: Any = None) -> None:
        """Runs it: arguments and results, contiguous and of the kernel's types; results are written."""

    def held(self, arrays: Sequence[Array], sizes: Mapping[str, int], pool: Any = None) -> Callable[[], None]:
        """A function that runs it on the same arrays again and again, to be timed; on a device, on what lies there."""
        return lambda: self(arrays, sizes, pool)


class Maker(Protocol):
    """Makes programs of schedules: what tuning needs to know of a compiler or a language."""

    @property
    def language(self) -> str:
        """The name under which workers load its programs."""

    @property
    def versions(self) -> object:
        """All that decides what it makes and how fast that is, as plain data: part of the key of a tuning."""

    def make(self, program: Program, schedules: Sequence[Schedule]) -> Path:
        """The program, from the cache or made now."""

    def options(self, program: Program, group: Group, target: Target, sizes: Mapping[str, int]) -> list[Schedule]:
        """Schedules worth a try, the likeliest first."""


class Language(ABC):
    """A language; importing its module must import nothing heavy.

    Attributes:
        name: what people type after `--emit`.
        about: one line on it.
        suffix: of a file of it.
        built: the suffix of what `compile` makes; `suffix` where a driver compiles at load.
        ahead: the suffix of machine code that `compile_ahead` can make without the hardware; empty for none.
        shares: whether threads are started in groups of 64 that have a memory of their own and can wait for each other.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    suffix: ClassVar[str]
    built: ClassVar[str]
    ahead: ClassVar[str] = ""
    shares: ClassVar[bool] = False

    @abstractmethod
    def printer(self) -> Printer:
        """A fresh printer."""

    @abstractmethod
    def probe(self) -> Here:
        """What can be done here. Asked in a process of its own: it may import what it likes, and must not raise."""

    def compile(self, source: Path, out: Path) -> None:  # noqa: B027 - drivers compile at load
        """Makes `out` of a source file; nothing to do where a driver compiles at load.

        Raises:
            CompilerError: the compiler refused.
        """

    def compile_ahead(self, source: Path, out: Path) -> None:  # noqa: B027 - few can
        """Makes machine code that `load` does not need, where there is no hardware: at least it compiles.

        Raises:
            CompilerError: the compiler refused.
        """

    def machine_code(self, source: Path, out: Path) -> None:  # noqa: B027 - few can
        """What `compile_ahead` asks a process of the language's own interpreter for."""

    @abstractmethod
    def load(self, path: Path, plan: Plan) -> Loaded:
        """The kernel in this process; `path` is what `compile` made, or the source."""

    def schedules(self, program: Program, group: Group, sizes: Mapping[str, int]) -> list[Schedule]:
        """Layouts worth a try, the likeliest first: tiles of groups, where there are groups, and of single threads."""
        if program.stages or group.scan_axis is not None or group.ranks:
            return [ONE]
        reduces = any(isinstance(e, Reduce) for v in group.values for e in walk(v))
        found = self._shared(group, sizes) if self.shares else []
        for rows, columns in _TILES if reduces else ((1, 1), (1, 4)):
            columns_, rows_ = group.axes[-1:], group.axes[-2:-1]
            if (rows > 1 and not rows_) or (columns > 1 and not columns_):
                continue
            schedule = Schedule(
                columns_[0] if columns > 1 else None,
                rows_[0] if rows > 1 else None,
                1,
                rows,
                columns,
                chunk=rows if rows > 1 else 0,
                block=1,
                stage_vectors=1,
                pack=False,
            )
            fits = all(
                sizes.get(str(a), n) >= n
                for a, n in ((schedule.vector, columns), (schedule.rows, rows))
                if a is not None
            )
            found += [schedule] if fits else []
        return found

    def _shared(self, group: Group, sizes: Mapping[str, int]) -> list[Schedule]:
        """Tiles of contractions that a group of threads makes together."""
        if contraction(group) is None:
            return []
        rows, columns = group.axes[-2:]
        return [
            Schedule(columns, rows, 1, side * 8, side * 8, block=1, stage_vectors=1, pack=False, shared=side)
            for side in _SIDES
            if min(sizes.get(rows, 0), sizes.get(columns, 0)) >= side * 8
        ]

    def source(self, program: Program, schedules: Sequence[Schedule]) -> str:
        """The code of a kernel."""
        return self.printer().source(lower(program, schedules))

    def plan(self, program: Program, schedules: Sequence[Schedule]) -> Plan:
        """How the code is started."""
        return self.printer().plan(lower(program, schedules))

    def build(self, program: Program, schedules: Sequence[Schedule], version: str = "") -> Path:
        """What `load` takes, from the cache or compiled now; its plan lies beside it.

        Raises:
            CompilerError: it could not be compiled.
            UnsupportedOperator: the language has no words for something.
        """
        text, plan = self.source(program, schedules), self.plan(program, schedules).to_json()
        path = folder() / "lib" / f"{self.name}-{digest(text, plan, version)}{self.suffix}"
        made = path.with_suffix(self.built)
        if not path.with_suffix(".json").is_file() or not made.is_file():
            write_whole(path, text.encode())
            if made != path:
                self.compile(path, made)
            write_whole(path.with_suffix(".json"), json.dumps(plan).encode())
        return made


#: One element of the result for each thread.
ONE = Schedule(None, None, 1, block=1, stage_vectors=1, pack=False)


def languages() -> list[str]:
    """The names of all languages that kernels are printed in."""
    return registry.LANGUAGES.names()


def language(name: str) -> Language:
    """The language of that name.

    Raises:
        UnknownName: there is none.
    """
    found: Language = registry.LANGUAGES.get(name)
    return found


def load(name: str, path: Path) -> Loaded:
    """A built kernel in this process."""
    plan = Plan.from_json(json.loads(path.with_suffix(".json").read_bytes()))
    return language(name).load(path, plan)
