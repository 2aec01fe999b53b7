"""Finds the layout of a kernel's loops for sizes and a target: candidates, each checked, then timed side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from portolan.core.interpreters import python_for
from portolan.core.running import CompilerLate
from portolan.core.target import Target
from portolan.errors import NoResult, PortolanError
from portolan.kernels import place
from portolan.kernels.compiler import source
from portolan.kernels.language import Maker
from portolan.kernels.lower.nest import groups
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.tree import Program
from portolan.kernels.verify import AGENT, Judge, odd_cases, real_case, specs
from portolan.measure.lock import measuring
from portolan.measure.stats import percentile_intervals
from portolan.worker.session import Worker, patience

Progress = Callable[[str], None]
_CANDIDATES = 7
_BLOCK_SECONDS = 0.02
_ROUNDS = 3
_FINAL_ROUNDS = 8
_SPARE = 4.0
#: Seconds from the last block to the answer.
_CLOSING = 0.5
_SLOW = 1.5
__all__ = ["Trial", "Tuned", "key", "recalled", "shape_class", "source", "tune"]


@dataclass
class Trial:
    """One schedule: what became of it."""

    schedule: Schedule
    path: Path | None = None
    error: float | None = None
    reason: str | None = None
    blocks: list[list[float]] = field(default_factory=list)

    @property
    def ms(self) -> float:
        """The median of its blocks' medians."""
        return float(np.median([np.median(b) for b in self.blocks]))


@dataclass(frozen=True)
class Tuned:
    """The best layout found.

    Attributes:
        schedules: one for each group of results.
        ms: milliseconds of a call: value, lo, hi and n.
        max_error: the largest error against the oracle, relative to the largest value.
        seconds: that finding it took, compiling included.
        trials: how many schedules were tried, and how many of them failed.
    """

    schedules: tuple[Schedule, ...]
    ms: Mapping[str, Any]
    max_error: float
    seconds: float
    trials: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "schedules": [s.to_json() for s in self.schedules],
            "ms": dict(self.ms),
            "max_error": self.max_error,
            "seconds": self.seconds,
            "trials": list(self.trials),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tuned:
        """Reads what `to_json` wrote."""
        schedules = tuple(Schedule.from_json(s) for s in data["schedules"])
        tried, failed = data["trials"]
        return cls(schedules, data["ms"], data["max_error"], data["seconds"], (tried, failed))


def shape_class(sizes: Mapping[str, int]) -> str:
    """Sizes that are tuned together: each to its nearest power of two."""
    return " ".join(f"{name}={2 ** round(float(np.log2(max(1, size))))}" for name, size in sorted(sizes.items()))


def key(program: Program, sizes: Mapping[str, int], target: Target, maker: Maker) -> str:
    """Under what a tuning is kept: kernel, shape class and target, and a hash of all that makes the code."""
    tree = repr((program.name, program.inputs, program.outputs, program.stages, program.values))
    return f"{program.name} {shape_class(sizes)} {target.fingerprint} {place.digest(tree, maker.versions, _lowering())}"


@cache
def _lowering() -> str:
    """What makes loops of a tree and code of loops: another version of it may like another layout best."""
    here = Path(__file__).parent
    files = (here / "candidates.py", *sorted((here / "lower").glob("*.py")), *sorted((here / "printers").glob("*.py")))
    return place.digest([file.read_text(encoding="utf-8") for file in files])


def recalled(program: Program, sizes: Mapping[str, int], target: Target, maker: Maker) -> Tuned | None:
    """What an earlier tuning found; None when there was none."""
    found = place.recall(place.TUNED, key(program, sizes, target, maker))
    try:
        return None if found is None else Tuned.from_json(found)
    except (KeyError, TypeError, ValueError):
        return None


def tune(
    program: Program,
    sizes: Mapping[str, int],
    target: Target,
    maker: Maker,
    *,
    seed: int = 0,
    budget: float = 10.0,
    progress: Progress | None = None,
) -> Tuned:
    """Tries schedules within `budget` seconds; what it finds is kept.

    Raises:
        NoResult: not one schedule compiled, agreed with the oracle and ran.
    """
    begun = time.monotonic()
    told = progress or (lambda text: None)
    made = groups(program)
    best = [maker.options(program, g, target, sizes)[0] for g in made]
    tried: list[Trial] = []
    with Worker(module=AGENT, python=python_for(maker.language)) as worker, _compiling() as compiling:
        rng = np.random.default_rng(seed)
        real = real_case(program, sizes, rng)
        judge = Judge(program, [*odd_cases(program, best[0], rng), real], worker, maker.language)
        tensors = {f"a{n}": a for n, a in enumerate(real.arrays)}
        worker.ask("hold", timeout=patience(60), tensors=tensors, sizes=dict(sizes), results=specs(program, sizes))
        for number, group in enumerate(made):
            share = (number + 1) / len(made)
            end, last = begun + (budget - _SPARE) * share, begun + (budget - _CLOSING) * share
            options = maker.options(program, group, target, sizes)[:_CANDIDATES]
            session = _Session(program, best, number, judge, maker, told)
            trials = session.run(options, compiling, end, last)
            tried += trials
            good = [t for t in trials if t.blocks]
            if not good:
                reasons = "; ".join(dict.fromkeys(t.reason or "?" for t in trials))
                raise NoResult(f"kernel `{program.name}`: no schedule gave a valid program: {reasons}")
            winner = min(good, key=lambda t: t.ms)
            best[number] = winner.schedule
    interval = percentile_intervals([[np.asarray(b) for b in winner.blocks]], [0.5])[0]
    ms = {"value": interval.value, "lo": interval.lo, "hi": interval.hi, "n": sum(map(len, winner.blocks))}
    worst = max(t.error or 0.0 for t in tried if t.schedule in best)
    failed = sum(t.reason is not None for t in tried)
    found = Tuned(tuple(best), ms, worst, time.monotonic() - begun, (len(tried), failed))
    place.remember(place.TUNED, key(program, sizes, target, maker), found.to_json())
    return found


@contextmanager
def _compiling() -> Iterator[ThreadPoolExecutor]:
    """Two threads for compilers; at the end nobody waits for one that is late."""
    pool = ThreadPoolExecutor(2, "portolan-compile")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _within(future: Future[Path], end: float) -> bool:
    """Waits for a compilation, at most until `end`; whether it is done."""
    return not wait([future], timeout=max(0.0, end - time.monotonic())).not_done


class _Session:
    """The trials of one group of results."""

    def __init__(
        self,
        program: Program,
        best: Sequence[Schedule],
        number: int,
        judge: Judge,
        maker: Maker,
        told: Progress,
    ) -> None:
        self.program, self.best, self.number = program, list(best), number
        self.judge, self.maker, self.told = judge, maker, told
        self.late: CompilerLate | None = None
        self.longest = 0.0  # seconds of a block, its first call included

    def run(self, options: Sequence[Schedule], compiling: ThreadPoolExecutor, end: float, last: float) -> list[Trial]:
        """Compiles and checks until `end`, then times what is right, side by side, until `last`."""
        pending = [(Trial(option), compiling.submit(self._compiled, option)) for option in options]
        done: list[Trial] = []
        for trial, future in pending:
            over = time.monotonic() > end  # also for what is compiled: checking large shapes takes as long
            if any(t.error is not None for t in done) and (over or not _within(future, end)):
                future.cancel()
                continue
            self._check(trial, future)
            done.append(trial)
            self._time([trial], 1)
        self._race([t for t in done if t.error is not None and t.blocks], last)
        return done

    def _compiled(self, schedule: Schedule) -> Path:
        if self.late is not None:  # a compiler that hung is asked no more
            raise self.late
        whole = [*self.best[: self.number], schedule, *self.best[self.number + 1 :]]
        try:
            return self.maker.make(self.program, whole)
        except CompilerLate as error:
            self.late = error
            raise

    def _name(self, trial: Trial) -> str:
        return str(trial.path)

    def _check(self, trial: Trial, future: Future[Path]) -> None:
        s = trial.schedule
        self.told(f"{self.program.name}: trying {s.tile_rows} x {s.tile_vectors} vectors of {s.lanes}")
        try:
            trial.path = future.result()
            trial.error = self.judge.error(self._name(trial), trial.path)
        except PortolanError as error:
            trial.reason = error.message

    def _time(self, trials: Sequence[Trial], rounds: int, last: float = math.inf) -> None:
        with measuring():
            for _ in range(rounds):
                for trial in trials:
                    begin = time.monotonic()
                    if begin + self.longest > last:
                        return
                    if trial.error is not None:
                        reply = self.judge.worker.ask(
                            "block",
                            timeout=patience(60),
                            name=self._name(trial),
                            seconds=_BLOCK_SECONDS,
                            threads=1,
                        )
                        trial.blocks.append(reply.fields["ms"])
                        self.longest = max(self.longest, time.monotonic() - begin)

    def _race(self, trials: list[Trial], last: float) -> None:
        """Rounds in which each runs once; then the best two alone. Large shapes have no time for all of them."""
        if not trials:
            return
        fastest = min(t.ms for t in trials)
        near = [t for t in trials if t.ms < _SLOW * fastest]
        self._time(near, _ROUNDS, last)
        self._time(sorted(near, key=lambda t: t.ms)[:2], _FINAL_ROUNDS, last)
