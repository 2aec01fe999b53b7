"""Kernels in other languages than C: what of them can be done on this machine, and doing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from portolan.core.interpreters import python_for, variable
from portolan.core.target import Target
from portolan.errors import NoBackend, NoResult, PortolanError
from portolan.kernels import place
from portolan.kernels.compiler import find
from portolan.kernels.language import Here, language, languages
from portolan.kernels.lower.nest import Group, groups
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.tree import Program
from portolan.kernels.tune import Tuned, key, recalled, tune
from portolan.kernels.verify import AGENT, Judge, odd_cases, real_case
from portolan.kernels.work import flops, traffic
from portolan.worker.session import Worker, patience

_PROBE_SECONDS = 150.0
Progress = Callable[[str], None]


@dataclass(frozen=True)
class LanguageMaker:
    """Makes programs in a language for what was found here."""

    language: str
    version: str

    @property
    def versions(self) -> object:
        """The language, and what compiles and runs it; its printer is in the code of every program."""
        return [self.language, self.version]

    def make(self, program: Program, schedules: Sequence[Schedule]) -> Path:
        """The program, from the cache or compiled now."""
        return language(self.language).build(program, schedules, self.version)

    def options(self, program: Program, group: Group, target: Target, sizes: Mapping[str, int]) -> list[Schedule]:
        """How large a tile each thread makes."""
        return language(self.language).schedules(program, group, sizes)


def here(name: str) -> Here:
    """What can be done with a language on this machine, asked in a process of its own."""
    if name == "c":
        try:
            return Here("time", find().version)
        except NoBackend as error:
            return Here("print", reason=error.message, fix=error.hint)
    language(name)
    python = python_for(name)
    try:
        with Worker(module=AGENT, python=python) as worker:
            return Here(**worker.ask("probe", timeout=patience(_PROBE_SECONDS), language=name).fields)
    except (PortolanError, OSError) as error:
        return Here(
            "print", reason=f"asking what is there failed: {error}", fix=f"unset {variable(name)}" if python else None
        )


def readiness() -> list[dict[str, Any]]:
    """Of every language, what can be done with it here, what is missing, and the command that adds it."""
    names = ["c", *languages()]
    with ThreadPoolExecutor(len(names), "portolan-probe") as pool:
        return [{"name": name, **found.to_json()} for name, found in zip(names, pool.map(here, names), strict=True)]


def built(
    program: Program,
    sizes: Mapping[str, int],
    name: str,
    found: Here,
    target: Target,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A kernel in a language: tuned where there is its hardware, checked where that is only imitated, else compiled.

    Returns:
        A row of the `kernel` object; what could not be measured is null.

    Raises:
        NoBackend: there is not even a compiler.
        NoResult: no layout gave a valid program.
    """
    if found.level == "print":
        hint = f"{found.fix}; `--emit {name}` prints the code without it" if found.fix else f"`--emit {name}` prints it"
        raise NoBackend(f"`{name}` cannot run here: {found.reason}", hint=hint)
    maker = LanguageMaker(name, found.version)
    if found.level == "time":
        known = recalled(program, sizes, target, maker)
        return _timed(
            program, sizes, maker, known or tune(program, sizes, target, maker, seed=seed, progress=progress), known
        )
    if found.level == "compile":
        schedules: list[Schedule] = [maker.options(program, g, target, sizes)[0] for g in groups(program)]
        error: float | None = None
    else:
        schedules, error = _checked(program, sizes, target, maker, seed)
    _compiled_ahead(name, maker.make(program, schedules))
    return _row(program, sizes, maker, schedules, error)


def _compiled_ahead(name: str, path: Path) -> None:
    """Machine code beside a program that only its hardware would compile, where the language can make it."""
    found = language(name)
    if found.ahead and not (out := path.with_suffix(found.ahead)).is_file():
        found.compile_ahead(path, out)


def _timed(
    program: Program, sizes: Mapping[str, int], maker: LanguageMaker, tuned: Tuned, known: Tuned | None
) -> dict[str, Any]:
    seconds = float(tuned.ms["value"]) / 1000
    more = {
        "seconds_tuning": 0.0 if known else tuned.seconds,
        "gflops": flops(program, sizes) / seconds / 1e9,
        "gbytes_per_s": traffic(program, sizes) / seconds / 1e9,
        "latency": {**tuned.ms, "unit": "ms", "kind": "measured"},
        "trials": {"tried": tuned.trials[0], "failed": tuned.trials[1]},
        "cached": known is not None,
    }
    return {**_row(program, sizes, maker, tuned.schedules, tuned.max_error), **more}


def _row(
    program: Program, sizes: Mapping[str, int], maker: LanguageMaker, schedules: Sequence[Schedule], error: float | None
) -> dict[str, Any]:
    return {
        "name": program.name,
        "target": maker.language,
        "max_abs_error": error,
        "seconds_tuning": None,
        "gflops": None,
        "gbytes_per_s": None,
        "artefact": str(maker.make(program, schedules)),
        "sizes": dict(sizes),
        "schedule": [s.to_json() for s in schedules],
    }


def _checked(
    program: Program, sizes: Mapping[str, int], target: Target, maker: LanguageMaker, seed: int
) -> tuple[list[Schedule], float]:
    """The first layouts that agree with the oracle, and their error; what was found before is remembered."""
    known = place.recall(place.CHECKED, name := key(program, sizes, target, maker))
    if known is not None:
        return [Schedule.from_json(s) for s in known["schedules"]], float(known["error"])
    options = [maker.options(program, g, target, sizes) for g in groups(program)]
    reasons = []
    with Worker(module=AGENT, python=python_for(maker.language)) as worker:
        rng = np.random.default_rng(seed)
        cases = [*odd_cases(program, options[0][0], rng), real_case(program, sizes, rng)]
        judge = Judge(program, cases, worker, maker.language)
        for number in range(max(map(len, options))):
            schedules = [o[min(number, len(o) - 1)] for o in options]
            try:
                error = judge.error(str(number), maker.make(program, schedules))
            except PortolanError as reason:
                reasons.append(reason.message)
                continue
            place.remember(place.CHECKED, name, {"schedules": [s.to_json() for s in schedules], "error": error})
            return schedules, error
    raise NoResult(f"kernel `{program.name}`: no layout gave a valid program: {'; '.join(dict.fromkeys(reasons))}")
