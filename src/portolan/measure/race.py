"""Races: arms timed in their own processes, in interleaved blocks of random order, over several process starts.

A start round starts every live arm once (the baseline twice: the second is the A/A arm, the noise floor), warms each
up, and then times blocks in which each arm runs once. Machine drift hits all arms of a block alike, so it cancels in
the block's log ratio; what differs from process to process is seen because there are several starts. The race looks at
its data only at starts fixed beforehand, with intervals corrected for the looks: peeking after every start would call
a winner between equal arms in a fifth of the races.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from portolan.errors import Interrupted, PortolanError, UnknownName, UsageError, WorkerCrashed, WorkerError
from portolan.measure.environment import environment, ticks
from portolan.measure.lock import measuring
from portolan.measure.result import ALPHA, MIN_STARTS, UNDECIDED, Race, Samples, indifferent
from portolan.measure.stats import Floats, ratio_interval

_LOOKS = (5, 10, 20)
_STEADY = 0.02
_STEADY_BLOCKS = 3
_WARM_UP_BLOCKS = 20
_LONGEST_WAIT = 60.0


class Session(Protocol):
    """One started process of one arm, loaded and ready."""

    def block(self, seconds: float) -> Floats:
        """Times inferences for about `seconds`; the milliseconds of each, at least one."""
        ...

    def close(self) -> None:
        """Ends the process."""
        ...


@dataclass(frozen=True)
class Arm:
    """One contender: its name, and how to start a fresh process of it."""

    name: str
    start: Callable[[], Session]


@dataclass
class _Lane:
    """An arm while the race runs. The baseline has two lanes."""

    arm: Arm
    name: str
    samples: Samples = field(default_factory=Samples)
    live: bool = True

    def frozen(self) -> Samples:
        """The readings up to now."""
        return Samples(list(self.samples.blocks), list(self.samples.warm_up))


def looks(starts: int) -> list[int]:
    """The numbers of starts at which a race of at most `starts` looks at its data; none below five."""
    return [*(look for look in _LOOKS if look < starts), starts] if starts >= MIN_STARTS else []


def race(
    arms: Sequence[Arm],
    *,
    baseline: str,
    starts: int = 5,
    blocks: int = 4,
    block_seconds: float = 0.1,
    precision: float = 0.02,
    deadline: float | None = None,
    rng: np.random.Generator,
    aa: bool = True,
    progress: Callable[[str], None] | None = None,
    warm_up: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    lock: Callable[[float], AbstractContextManager[object]] = measuring,
) -> Race:
    """Times `arms` against each other.

    It ends early, at a look, when every question is decided: each arm against the baseline and against the leader is
    called, or lies inside ±2 %, or is known to ±`precision`/2. An arm that the leader clearly beats leaves at a look.
    An arm that fails is dropped with its reason; the race goes on. A process that was killed from outside is no fault
    of its arm's: the start round is timed anew, once for each arm.

    Args:
        arms: the contenders, the baseline among them. One arm alone is allowed: its latencies are measured.
        baseline: name of the arm that all are compared with.
        starts: most process starts of each arm. Below 5 there are readings but no claims (screening).
        blocks: timed blocks of each start.
        block_seconds: about how long a block times each arm.
        precision: relative width that resolves a difference.
        deadline: on `clock`; no start round begins that would pass it, yet one start and one block are always made.
        rng: order of arms.
        aa: whether the baseline runs twice. Without it no claim is made.
        progress: told one line per start.
        warm_up: longest warm-up of one process, seconds; it ends when three block medians agree within 2 %.
        clock: seconds; a simulated machine brings its own.
        lock: called with the longest wait in seconds, held while anything is timed.

    Raises:
        UsageError: no arm, a name that occurs twice, or a number out of range.
        UnknownName: no arm is named `baseline`.
        WorkerError: the baseline failed (or whatever PortolanError it failed with).
    """
    longest = _WARM_UP_BLOCKS * block_seconds if warm_up is None else warm_up
    plan = _Plan(baseline, starts, blocks, block_seconds, precision, deadline, rng, progress, longest, clock, lock)
    plan.check([arm.name for arm in arms])
    return _Runner(arms, plan, aa).run()


@dataclass(frozen=True)
class _Plan:
    """What was asked for; the fields are `race`'s arguments."""

    baseline: str
    starts: int
    blocks: int
    block_seconds: float
    precision: float
    deadline: float | None
    rng: np.random.Generator
    progress: Callable[[str], None] | None
    warm_up: float
    clock: Callable[[], float]
    lock: Callable[[float], AbstractContextManager[object]]

    def check(self, names: list[str]) -> None:
        """Refuses what cannot be raced."""
        if not names:
            raise UsageError("there is no arm to measure", hint="name at least one model")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"the arm `{twice}` is there twice", hint="give each arm its own name")
        if self.baseline not in names:
            raise UnknownName("arm", self.baseline, names)
        for word, number in (("starts", self.starts), ("blocks", self.blocks)):
            if number < 1:
                raise UsageError(f"`{word}` is {number}", hint="give a whole number above zero")
        for word, size in (("block_seconds", self.block_seconds), ("precision", self.precision)):
            if not (size > 0 and math.isfinite(size)):
                raise UsageError(f"`{word}` is {size}", hint="give a number above zero")


class _Struck(Exception):
    """A process was killed from outside: what the round has read so far is not worth keeping."""


class _Runner:
    """The state of one race while it runs."""

    def __init__(self, arms: Sequence[Arm], plan: _Plan, aa: bool) -> None:
        self.plan = plan
        self.looks = looks(plan.starts)
        self.lanes = [_Lane(arm, arm.name) for arm in arms]
        self.again: _Lane | None = None
        if aa:
            first = next(arm for arm in arms if arm.name == plan.baseline)
            self.again = _Lane(first, f"{plan.baseline} (again)")
            self.lanes.append(self.again)
        self.alone = len(arms) == 1
        self.failures: dict[str, str] = {}
        self.eliminated: dict[str, int] = {}
        self.struck: set[str] = set()
        self.order: list[list[list[str]]] = []
        self.since = ticks()

    def run(self) -> Race:
        """Start round after start round until the question is decided, or starts or time run out."""
        longest, stopped, number = 0.0, "starts", 0
        while number < self.plan.starts:
            number += 1
            begun = self.plan.clock()
            if number > 1 and self.plan.deadline is not None and begun + longest > self.plan.deadline:
                stopped = "deadline"
                break
            if self.plan.progress is not None:
                live = sum(lane.live for lane in self.lanes)
                self.plan.progress(f"start {number} of at most {self.plan.starts}, {live} processes")
            try:
                self._round(number)
            except _Struck:
                number -= 1
                continue
            longest = max(longest, self.plan.clock() - begun)
            if not self.alone and not self._candidates():
                stopped = "no candidates"
                break
            if number in self.looks and number < self.plan.starts and self._decided(number):
                stopped = "decided"
                break
        return self._race(stopped)

    def _candidates(self) -> list[_Lane]:
        return [lane for lane in self.lanes if lane.live and lane.arm.name != self.plan.baseline]

    def _race(self, stopped: str) -> Race:
        done = {lane.name: lane.frozen() for lane in self.lanes if lane is not self.again and self._valid(lane)}
        return Race(
            baseline=self.plan.baseline,
            arms=done,
            again=None if self.again is None else self.again.frozen(),
            failures=dict(self.failures),
            eliminated=dict(self.eliminated),
            order=[[list(block) for block in start] for start in self.order],
            looks=max(1, len(self.looks)),
            stopped=stopped,
            environment=environment(self.since),
        )

    def _valid(self, lane: _Lane) -> bool:
        return lane.name not in self.failures and bool(lane.samples.blocks)

    # One start round -------------------------------------------------------------------------------------------

    def _late(self) -> bool:
        return self.plan.deadline is not None and self.plan.clock() >= self.plan.deadline

    def _wait(self) -> float:
        left = _LONGEST_WAIT if self.plan.deadline is None else self.plan.deadline - self.plan.clock()
        return min(_LONGEST_WAIT, max(0.0, left))

    def _shuffled(self) -> list[_Lane]:
        live = [lane for lane in self.lanes if lane.live]
        return [live[i] for i in self.plan.rng.permutation(len(live))]

    def _round(self, number: int) -> None:
        """Starts, warms up and times every live lane once. A round cut short by the deadline counts only if first."""
        sessions: dict[str, Session] = {}
        warm: dict[str, list[float]] = {}
        rows: dict[str, list[Floats]] = {lane.name: [] for lane in self.lanes}
        orders: list[list[str]] = []
        try:
            for lane in self._shuffled():
                with self._guard(lane):
                    sessions[lane.name] = lane.arm.start()
                    with self.plan.lock(self._wait()):
                        warm[lane.name] = self._warm_up(sessions[lane.name])
            for block in range(self.plan.blocks):
                if block and self._late():
                    break
                orders.append(self._block(sessions, rows))
        finally:
            for session in sessions.values():
                with suppress(WorkerError):
                    session.close()
        if len(orders) < self.plan.blocks and number > 1:
            return
        self.order.append(orders)
        for lane in self.lanes:
            if lane.live:
                lane.samples.blocks.append(rows[lane.name])
                lane.samples.warm_up.append(warm[lane.name])

    def _block(self, sessions: dict[str, Session], rows: dict[str, list[Floats]]) -> list[str]:
        order = self._shuffled()
        with self.plan.lock(self._wait()):
            for lane in order:
                with self._guard(lane):
                    rows[lane.name].append(_readings(sessions[lane.name], self.plan.block_seconds))
        return [lane.name for lane in order]

    def _warm_up(self, session: Session) -> list[float]:
        """Blocks until three medians in a row agree within 2 %, or the time for it is over; their medians, ms."""
        end = self.plan.clock() + self.plan.warm_up
        if self.plan.deadline is not None:
            end = min(end, self.plan.deadline)
        medians: list[float] = []
        while True:
            medians.append(float(np.median(_readings(session, self.plan.block_seconds))))
            last = medians[-_STEADY_BLOCKS:]
            steady = len(last) == _STEADY_BLOCKS and max(last) <= min(last) * (1 + _STEADY)
            if steady or self.plan.clock() >= end:
                return medians

    @contextmanager
    def _guard(self, lane: _Lane) -> Iterator[None]:
        """Takes a lane that fails out of the race with its reason; the baseline's errors and Ctrl-C go up.

        Raises:
            _Struck: its process was killed from outside, for the first time.
        """
        try:
            yield
        except PortolanError as error:
            if isinstance(error, WorkerCrashed) and error.killed and lane.name not in self.struck:
                self.struck.add(lane.name)
                raise _Struck from error
            if isinstance(error, Interrupted) or lane.arm.name == self.plan.baseline:
                raise
            lane.live = False
            self.failures[lane.name] = error.message

    # Looks -----------------------------------------------------------------------------------------------------

    def _decided(self, number: int) -> bool:
        """Whether nothing is left to find out; takes clearly beaten arms out of the race."""
        found = self._race("look")
        if self.again is not None and not found.noise.ok:
            return False
        live = [lane.name for lane in self._candidates()]
        if not live:
            return self.again is not None and self._known(found.log_ratios_again(), found.looks)
        against_baseline = {r.a: r for r in found.ratios() if r.a in live}
        leader = min(
            [self.plan.baseline, *live], key=lambda n: against_baseline[n].ratio if n != self.plan.baseline else 1.0
        )
        against_leader = {r.a: r for r in found.ratios(leader)}
        open_ = [
            name
            for name in live
            if not all(
                r.verdict != UNDECIDED or self._known(found.log_ratios(r.a, r.b), found.looks)
                for r in (against_baseline[name], against_leader.get(name))
                if r is not None
            )
        ]
        if not open_:
            return True
        # Never all of them: if the baseline leads and beats each, nothing was open any more.
        self._eliminate([name for name in live if name != leader and against_leader[name].verdict == "slower"], number)
        return False

    def _known(self, d: Floats, planned: int) -> bool:
        """Whether the interval lies inside ±2 %, or is as narrow as was asked for."""
        interval = ratio_interval(d, 1 - ALPHA / planned)
        return indifferent(interval) or math.log(interval.hi / interval.lo) <= self.plan.precision

    def _eliminate(self, beaten: list[str], number: int) -> None:
        for lane in self.lanes:
            if lane.name in beaten:
                lane.live = False
                self.eliminated[lane.name] = number


def _readings(session: Session, seconds: float) -> Floats:
    """One block's readings, checked: a runtime that reports impossible times is a failed one."""
    block = np.asarray(session.block(seconds), dtype=np.float64).ravel()
    if block.size == 0:
        raise WorkerError("the worker returned no readings")
    if not (np.isfinite(block).all() and (block > 0).all()):
        raise WorkerError("the worker returned times that are not above zero")
    return block
