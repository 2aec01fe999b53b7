"""From what was measured to what platforms ask for: memory, queues, targets, patience. Each number with its reason.

What was not measured is not made up: the value is None, or a bound that its reason calls a default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from portolan import units
from portolan.deployment._facts import Facts

#: Bytes of the server beside the model's own process: supervisor and front, with room for tensors on their way.
SERVER_BYTES = 192 * 2**20
#: Room that a limit leaves above the request: the measured peak was of one kind of input.
_ROOM = 1.5
#: Seconds of patience where no cold start was measured, and times a measured one.
_STARTUP, _STARTS = 120, 10
_LEAST_STARTUP = 30
_GRACE = 30
_QUEUE = 256
#: Share of the measured capacity at which another replica is wanted.
_BUSY = 0.8


@dataclass(frozen=True)
class Sized:
    """A number and why it is that number; None where nothing was measured."""

    value: int | None
    why: str


def memory(facts: Facts) -> Sized:
    """Bytes to ask for."""
    peak = facts.claim("memory")
    if peak is None:
        return Sized(None, "memory: not measured, so nothing is asked for; a study measures it (`portolan optimize`)")
    total = math.ceil((peak.worst("lower") + SERVER_BYTES) / 2**20) * 2**20
    return Sized(total, f"the model's process peaked at {peak.short}; {_size(SERVER_BYTES)} for the server beside it")


def memory_limit(facts: Facts) -> int | None:
    """Bytes at which it is ended."""
    asked = memory(facts).value
    return None if asked is None else math.ceil(_ROOM * asked / 2**20) * 2**20


def cpus(facts: Facts) -> Sized:
    """Processors of one replica."""
    if facts.bundle.options.get("threads"):
        return Sized(facts.threads, f"the recipe runs the model with {_plural(facts.threads, 'thread')}")
    return Sized(facts.threads, f"all cores of the machine it was measured on: {_plural(facts.threads, 'core')}")


def capacity(facts: Facts) -> tuple[float | None, str]:
    """Calls per second of one replica, and where that is from."""
    if facts.profile is not None:
        rate = facts.profile.rate(facts.max_batch)
        return rate, f"one replica answers {rate:.4g} calls/s in batches of up to {facts.max_batch} (measured, p95)"
    claim = facts.claim("throughput")
    if claim is not None:
        rate = claim.worst("higher")
        return rate, f"one replica answers {rate:.4g} calls/s (measured)"
    return None, "the capacity of a replica is not measured"


def queue(facts: Facts, replicas: int = 1) -> Sized:
    """Calls that may wait for `replicas` that share a queue."""
    rate, why = capacity(facts)
    if rate is None or facts.serving.deadline is None:
        return Sized(_QUEUE, "a bound by default, not a measurement")
    most = replicas * (math.ceil(rate * facts.serving.deadline) + facts.max_batch)
    many = f", and there are {replicas}" if replicas > 1 else ""
    return Sized(most, f"{why}{many}: more calls than these would wait past their deadline")


def in_flight(facts: Facts) -> Sized:
    """Calls that one replica works on at its best: a batch that runs, and one that forms meanwhile."""
    both = 2 * facts.max_batch
    rate, why = capacity(facts)
    if rate is not None and facts.serving.deadline is not None:
        fits = max(1, math.floor(rate * facts.serving.deadline * _BUSY))
        if fits < both:
            return Sized(fits, f"{why}: {_BUSY:.0%} of what it answers within the deadline")
    return Sized(both, f"a batch of {facts.max_batch} runs while the next one forms")


def qps(facts: Facts) -> Sized:
    """Calls per second at which one replica is busy enough."""
    rate, why = capacity(facts)
    return Sized(None, why) if rate is None else Sized(max(1, math.floor(_BUSY * rate)), f"{_BUSY:.0%} of it: {why}")


def startup(facts: Facts) -> Sized:
    """Seconds that a start may take."""
    claim = facts.claim("cold_start")
    if claim is None:
        return Sized(_STARTUP, "by default: the cold start is not measured")
    seconds = max(_LEAST_STARTUP, math.ceil(_STARTS * claim.worst("lower") / 1e3))
    return Sized(seconds, f"the cold start took {claim.short}; a busy machine needs longer")


def grace(facts: Facts) -> Sized:
    """Seconds from SIGTERM to SIGKILL, in which everything accepted is answered."""
    deadline = facts.serving.deadline
    if deadline is None:
        return Sized(_GRACE, "SIGTERM drains: what was accepted is answered first")
    seconds = max(_GRACE, math.ceil(_GRACE / 2 + 2 * deadline))
    return Sized(seconds, f"SIGTERM drains: what was accepted is answered first, within {deadline * 1e3:.4g} ms each")


def _size(count: float) -> str:
    value, unit = units.scale(count, "B")
    return f"{units.digits(value, None)} {unit}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
