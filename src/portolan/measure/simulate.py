"""A simulated machine in virtual time: it drifts, its processes differ, and it has spikes; races run on it unchanged.

The model is that of Portolan's statistics benchmark: AR(1) drift of the whole machine (sd 6 %), an offset fixed when a
process starts (sd 1 %), independent noise (sd 1.5 %) and spikes in 2 % of the readings. Small models may also have two
speeds, drawn when a process starts. How fast the drift is forgotten (2 s, 400 inferences of 5 ms) was chosen so that
timing all of A before all of B calls a winner between equal arms in most of the runs, as it does on real machines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from portolan.errors import WorkerCrashed
from portolan.measure.race import Arm
from portolan.measure.stats import Floats


@dataclass(frozen=True)
class Conditions:
    """How a simulated machine behaves. Spreads are standard deviations of the log time.

    Attributes:
        drift: of the machine's slow drift.
        drift_seconds: time after which the drift is forgotten to 1/e.
        offset: between process starts.
        noise: between readings.
        spikes: share of readings that are spikes.
        spike: how much longer a spike takes, as a share.
        slow_mode: how much slower the slow one of two speeds is, as a share; 0 for a single speed.
        start_seconds: time a process start takes.
    """

    drift: float = 0.06
    drift_seconds: float = 2.0
    offset: float = 0.01
    noise: float = 0.015
    spikes: float = 0.02
    spike: float = 0.5
    slow_mode: float = 0.0
    start_seconds: float = 0.3


class Machine:
    """One simulated machine with its own clock.

    Args:
        rng: of everything random.
        conditions: how it behaves.
        slowdown: factor on the time of an inference at a given second, for planted disturbances.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        conditions: Conditions | None = None,
        slowdown: Callable[[float], float] | None = None,
    ) -> None:
        self.rng = rng
        self.conditions = conditions or Conditions()
        self.slowdown = slowdown
        self.now = 0.0
        self.open_sessions = 0
        self._drift = float(rng.normal()) * self.conditions.drift

    def clock(self) -> float:
        """Seconds of virtual time."""
        return self.now

    def arm(
        self, name: str, ms: float, fails_at: int | None = None, scripted: Callable[[], Floats] | None = None
    ) -> Arm:
        """An arm whose inference takes `ms` on average.

        Args:
            name: the arm's name.
            ms: median time of an inference on the undisturbed machine.
            fails_at: its n-th block (counted over all its processes, warm-up included) crashes.
            scripted: returns a block's readings instead of the model.
        """
        count = [0]

        def start() -> SimulatedSession:
            self.pause(self.conditions.start_seconds)
            return SimulatedSession(self, name, ms, count, fails_at, scripted)

        return Arm(name, start)

    def pause(self, seconds: float) -> None:
        """Lets time pass."""
        keep = math.exp(-seconds / self.conditions.drift_seconds)
        self._drift = keep * self._drift + self._shock(keep) * float(self.rng.normal())
        self.now += seconds

    def read(self, ms: float, offset: float, n: int) -> Floats:
        """`n` inferences in a row by a process with the log `offset`: their milliseconds."""
        c = self.conditions
        keep = math.exp(-ms / 1000 / c.drift_seconds)
        # AR(1) without a loop: x_k = keep^k (x_0 + sum of shocks / keep^j), in pieces short enough not to overflow.
        drift = np.empty(n)
        piece = max(1, min(n, int(20 / -math.log(keep))))
        for begin in range(0, n, piece):
            size = min(piece, n - begin)
            powers = keep ** np.arange(1, size + 1)
            shocks = self.rng.normal(size=size) * self._shock(keep)
            drift[begin : begin + size] = powers * (self._drift + np.cumsum(shocks / powers))
            self._drift = float(drift[begin + size - 1])
        times = ms * np.exp(drift + offset + self.rng.normal(size=n) * c.noise)
        times[self.rng.random(n) < c.spikes] *= 1 + c.spike
        if self.slowdown is None:
            self.now += float(times.sum()) / 1000
            return times
        for i in range(n):
            times[i] *= self.slowdown(self.now)
            self.now += float(times[i]) / 1000
        return times

    def offset(self) -> float:
        """The log offset of a new process."""
        mode = math.log1p(self.conditions.slow_mode) * float(self.rng.random() < 0.5)
        return float(self.rng.normal()) * self.conditions.offset + mode

    def _shock(self, keep: float) -> float:
        return self.conditions.drift * math.sqrt(1 - keep * keep)


class SimulatedSession:
    """A process on a simulated machine: a `Session` for `race`."""

    def __init__(
        self,
        machine: Machine,
        name: str,
        ms: float,
        count: list[int],
        fails_at: int | None,
        scripted: Callable[[], Floats] | None,
    ) -> None:
        self.machine, self.name, self.ms = machine, name, ms
        self.count, self.fails_at, self.scripted = count, fails_at, scripted
        self.offset = machine.offset()
        machine.open_sessions += 1

    def block(self, seconds: float) -> Floats:
        """About `seconds` of inferences, in ms each; at least one."""
        self.count[0] += 1
        if self.count[0] == self.fails_at:
            raise WorkerCrashed(f"`{self.name}` ended with signal 11")
        if self.scripted is not None:
            return self.scripted()
        return self.machine.read(self.ms, self.offset, max(1, round(seconds * 1000 / self.ms)))

    def close(self) -> None:
        """Ends the process."""
        self.machine.open_sessions -= 1
