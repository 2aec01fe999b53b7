"""The replicas of one version: started, counted, replaced when they crash or hang, and scaled with load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from portolan.serving.arena import Arena
from portolan.serving.instance import Instance, Owner
from portolan.serving.source import Limits, Source

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0


@dataclass(frozen=True)
class Load:
    """What scaling looks at.

    Attributes:
        replicas: how many there are, starting ones included.
        share: of the replicas' time that is spent running, lately.
        wait: seconds that what waits will take.
        idle: seconds since the last call.
        calm: seconds since one replica less would have been enough.
        pressed: seconds since the replicas are not enough.
    """

    replicas: int
    share: float
    wait: float
    idle: float
    calm: float
    pressed: float


def wanted(load: Load, limits: Limits) -> int:
    """How many replicas there should be.

    One more when what waits will take more than a quarter of the deadline (or of a second), or the replicas have been
    busy nearly all the time for two seconds; one less when the others would have been half idle for thirty.
    """
    least, most = limits.replicas
    if load.replicas == 0:
        return max(least, 1) if load.wait > 0 else least
    if least == 0 and load.replicas == 1 and load.wait == 0 and load.idle > limits.idle_after:
        return 0
    if load.pressed > 0.5 and load.wait > min(limits.deadline / 4, 0.25):
        return min(load.replicas + 1, most)
    if load.pressed > 2.0:
        return min(load.replicas + 1, most)
    if load.calm > 30.0:
        return max(load.replicas - 1, max(least, 1))
    return min(max(load.replicas, least), most)


class Pool:
    """The replicas of one version.

    Args:
        source: what they load.
        arena: memory shared with them.
        owner: told of what the replicas do.
        backlog: seconds that what waits will take on one replica, and seconds since the last call.

    Attributes:
        instances: the replicas that live.
        failure: why the last one could not be started.
        start_seconds: how long the last start took.
    """

    def __init__(self, source: Source, arena: Arena, owner: Owner, backlog: Callable[[], tuple[float, float]]) -> None:
        self.source = source
        self.instances: list[Instance] = []
        self.failure: str | None = None
        self.start_seconds = 1.0
        self._arena, self._owner, self._backlog = arena, owner, backlog
        self._loop = asyncio.get_running_loop()
        self._failures = 0
        self._not_before = 0.0
        self._share = 0.0
        self._busy_before = 0.0
        self._ticked = self._loop.time()
        self._calm_since = self._pressed_since = self._ticked
        self._closed = False
        self._profile = dict(source.profile)

    def free(self) -> Instance | None:
        """A replica that waits for a batch; the same one first, so that the others can be let go."""
        for instance in self.instances:
            if instance.state == "free":
                return instance
        return None

    def up(self) -> bool:
        """Whether any has loaded the model; asked for every call."""
        for instance in self.instances:  # noqa: SIM110 - a generator costs more than the answer
            if instance.state in ("free", "busy"):
                return True
        return False

    @property
    def running(self) -> int:
        """Replicas that have loaded the model."""
        return sum(instance.state in ("free", "busy") for instance in self.instances)

    def start(self, count: int) -> None:
        """Starts replicas until there are `count`."""
        while not self._closed and len(self.instances) < count:
            instance = Instance(
                self.source,
                self._arena,
                self._owner,
                cap=self.source.limits.max_batch,
                measure=not self._profile,
            )
            self.instances.append(instance)

    def loaded(self, instance: Instance, told: dict[str, Any]) -> None:
        """A replica is ready."""
        self._profile = self._profile or {int(rows): seconds for rows, seconds in told["profile"].items()}
        self.start_seconds = self._loop.time() - instance.born
        instance.loaded = True
        self._failures, self.failure = 0, None

    def lost(self, instance: Instance, reason: str) -> None:
        """A replica is gone; its successor starts now, or after a pause that doubles with each failure to load."""
        if instance in self.instances:
            self.instances.remove(instance)
        if instance.loaded:
            self._not_before = 0.0
            return
        self.failure = reason
        self._not_before = self._loop.time() + min(_FIRST_PAUSE * 2**self._failures, _LONGEST_PAUSE)
        self._failures += 1

    def tick(self, expected: Callable[[Any], float]) -> None:
        """Finds replicas that hang, and scales. `expected` gives the seconds that a batch should take."""
        now, limits = self._loop.time(), self.source.limits
        for instance in list(self.instances):
            late = now - instance.since
            if instance.state == "busy" and late > limits.hang_after + 20 * expected(instance.batches[0]):
                instance.kill(f"it did not answer for {late:.1f} s and was taken for hung")
            elif instance.state == "starting" and late > limits.start_within:
                instance.kill(f"it did not load the model within {limits.start_within:g} s")
        want = wanted(self._load(now), limits)
        if want > len(self.instances) and now >= self._not_before:
            self.start(want)
            self._calm_since = self._pressed_since = now
        elif want < len(self.instances):
            self._drop()
            self._calm_since = self._pressed_since = now

    def _drop(self) -> None:
        """Ends one replica that does nothing, the one least in use."""
        for instance in reversed(self.instances):
            if instance.state == "free":
                self.instances.remove(instance)
                instance.stop()
                return

    def _load(self, now: float) -> Load:
        wait, idle = self._backlog()
        count = max(len(self.instances), 1)
        busy = sum(i.busy + (now - i.since if i.state == "busy" else 0.0) for i in self.instances)
        span = max(now - self._ticked, 1e-3)
        share = min(max((busy - self._busy_before) / span / count, 0.0), 1.0)
        self._busy_before, self._ticked = busy, now
        self._share += min(span / 2.0, 1.0) * (share - self._share)
        if count == 1 or self._share * count / (count - 1) > 0.5 or wait > 0.05:
            self._calm_since = now
        if self._share < 0.85 and wait / count < 0.05:
            self._pressed_since = now
        return Load(
            len(self.instances), self._share, wait / count, idle, now - self._calm_since, now - self._pressed_since
        )

    def cost(self) -> tuple[int, float]:
        """Resident bytes and processor seconds of the replicas that live."""
        costs = [instance.cost() for instance in self.instances]
        return sum(c[0] for c in costs), sum(c[1] for c in costs)

    def close(self) -> None:
        """Ends all replicas."""
        self._closed = True
        for instance in list(self.instances):
            instance.stop()
        self.instances.clear()
