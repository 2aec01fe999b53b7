"""Ways to serve a compiled model, and what each would do under load: predicted from its profile before any is measured.

The prediction runs the server's own queue and policy on simulated arrivals: a pure function of the profile, the load,
the seed, and of what the server adds to a batch where that was measured. It knows nothing of what the front and the
load generator take from the same cores, so it only ranks.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from portolan.core.goal import Goals
from portolan.core.measurement import METRICS, Measurement, Metrics, at_load, load_of
from portolan.core.serving import KEYS, Overhead, Profile, Serving, largest_batch, sizes_up_to
from portolan.measure.load import QUANTILES
from portolan.search.candidate import Candidate
from portolan.serving.scheduler import Cost, Queue

#: Calls of one simulation.
CALLS = 2000
#: A load this close to what all replicas can do at best is one that they cannot hold.
_FULL = 0.98
#: Predictions within this share are equal, and a batch within this share of the fastest is fast enough.
_SAME, _NEARLY = 0.2, 0.9


@dataclass(slots=True)
class _Call:
    """One simulated call, as the scheduler's queue wants it."""

    due: float
    deadline: float
    level: int = 0
    key: Hashable = 0
    rows: int = 1
    size: int = 0
    alone: bool = False
    gone: bool = False


@dataclass(frozen=True)
class Choice:
    """A compiled model with a way to serve it.

    Attributes:
        candidate: what was compiled, with the serving in its recipe.
        profile: what its batches take.
        predicted: metrics by the simulation, and what is known of the compiled model.
    """

    candidate: Candidate
    profile: Profile
    predicted: Metrics

    @property
    def serving(self) -> Serving:
        """How it is served."""
        return self.candidate.recipe.served


def simulate(
    seconds: Mapping[int, float],
    *,
    rate: float,
    cap: int,
    replicas: int = 1,
    deadline: float = math.inf,
    calls: int = CALLS,
    seed: int = 0,
) -> np.ndarray:
    """Seconds from due to answered of calls that arrive at random (Poisson); infinite for those refused.

    Args:
        seconds: of a batch, by its size.
        rate: calls per second.
        cap: the largest batch.
        replicas: instances that run batches side by side.
        deadline: seconds after which a call is given up.
        calls: how many.
        seed: of the arrivals.
    """
    due = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, calls)).tolist()
    cost, queue, latencies = Cost(seconds, cap), Queue[_Call](), []
    busy = [0.0] * replicas  # when each instance is free again
    number, now = 0, 0.0
    while number < calls or len(queue):
        now = max(now, busy[0]) if len(queue) else max(now, busy[0], due[number])
        while number < calls and due[number] <= now:
            queue.push(_Call(due[number], due[number] + deadline))
            number += 1
        batch, refused = queue.pick(now, cost, cap)
        latencies += [math.inf] * len(refused)
        if batch:
            done = now + cost(len(batch))
            heapq.heapreplace(busy, done)
            latencies += [done - call.due for call in batch]
    return np.array(latencies)


def predict(
    profile: Profile, serving: Serving, goals: Goals, known: Metrics, overhead: Overhead | None = None
) -> Metrics:
    """What serving a model so would give, for the metrics that the goals name; the rest is what is known of the model.

    Args:
        profile: of the compiled model.
        serving: with its batch and replicas chosen.
        goals: what is asked for.
        known: metrics of the compiled model in one process.
        overhead: what the server adds to a batch; None where that was not measured.
    """
    seconds = (overhead or Overhead()).on(profile.seconds)
    cap, replicas = largest_batch(serving.max_batch, profile), max((serving.replicas or (1, 1))[1], 1)
    best = replicas * max(size / value for size, value in seconds.items() if size <= max(cap, 1))
    found = dict(known)
    for rate in goals.loads:
        held = rate < _FULL * best
        deadline = serving.deadline or math.inf
        times = simulate(seconds, rate=rate, cap=cap, replicas=replicas, deadline=deadline) if held else None
        for name, share in QUANTILES.items():
            value = math.inf if times is None else float(np.quantile(times, share, method="higher")) * 1e3
            found[at_load(name, rate)] = Measurement(value, "ms", kind="predicted")
    found["throughput"] = Measurement(best, METRICS["throughput"].unit, kind="predicted")
    if memory := known.get("memory"):
        found["memory"] = Measurement(memory.value * replicas, memory.unit, kind="predicted")
    return found


def choices(
    candidate: Candidate,
    profile: Profile,
    goals: Goals,
    known: Metrics,
    *,
    cores: int,
    threads: int,
    pinned: Mapping[str, Any],
) -> Iterator[Choice]:
    """Every way to serve one compiled model that is worth predicting.

    Args:
        candidate: what was compiled.
        profile: what its batches take.
        goals: what is asked for.
        known: metrics of the compiled model in one process.
        cores: of the target; replicas are given cores of their own.
        threads: that one replica uses.
        pinned: the `serving` of a recipe file: what it names stays, and a list of batches or deadlines is a range.
    """
    most = max(1, cores // max(1, threads))
    usual: Mapping[str, Sequence[Any]] = {
        "max_batch": sizes_up_to(profile.largest),
        "replicas": [[n, n] for n in range(1, most + 1)],
        "deadline": [tightest(goals)],
    }
    ranges = [_range(pinned, name, usual[name]) for name in KEYS]
    for values in itertools.product(*ranges):
        serving = Serving.of({k: v for k, v in zip(KEYS, values, strict=True) if v is not None})
        served = replace(candidate, recipe=replace(candidate.recipe, serving=serving.to_json()))
        yield Choice(served, profile, predict(profile, serving, goals, known))


def check_pinned(pinned: Mapping[str, Any], where: str | None = None) -> None:
    """Checks the `serving` of a recipe file, ranges included.

    Raises:
        UsageError: a key or a value that does not fit.
    """
    for key, value in pinned.items():
        for one in _range(pinned, key, ()) or [value]:
            Serving.of({key: one}, where)


def _range(pinned: Mapping[str, Any], name: str, usual: Sequence[Any]) -> Sequence[Any]:
    if name not in pinned:
        return usual
    # A list of replicas is their fewest and most.
    return pinned[name] if isinstance(pinned[name], list) and name != "replicas" else [pinned[name]]


def with_overhead(choice: Choice, goals: Goals, known: Metrics, overhead: Overhead) -> Choice:
    """The choice, predicted again with what the server adds to a batch; see `predict`."""
    return replace(choice, predicted=predict(choice.profile, choice.serving, goals, known, overhead))


def scaled(choice: Choice, metric: str, factor: float) -> Choice:
    """The choice with one of its predictions times `factor`."""
    found = choice.predicted.get(metric)
    if found is None:
        return choice
    return replace(choice, predicted={**choice.predicted, metric: replace(found, value=found.value * factor)})


def tightest(goals: Goals) -> float | None:
    """Seconds of the tightest limit on a latency under load: what comes later than that is worth nothing."""
    bounds = [x.bound / 1e3 for x in goals.limits if load_of(x.metric) is not None and x.op[0] == "<" and x.bound > 0]
    return min(bounds, default=None)


def ranked(found: Sequence[Choice], goals: Goals) -> list[Choice]:
    """The most promising first: those predicted to meet every limit, by the objectives; then those that miss by least.

    Equal is what differs by less than a fifth: no prediction is better than that. Among equals fewer replicas come
    first, and then the smallest batch that is nearly as fast as any: batches are formed only of calls that wait, so a
    larger limit costs nothing while there are few, and is what holds when the load is heavier than the profile says.
    """

    def key(choice: Choice) -> tuple[object, ...]:
        short = goals.shortfall(choice.predicted)
        costs = tuple(_rough(c) for c in goals.costs(choice.predicted))
        serving = choice.serving
        replicas, batch = (serving.replicas or (1, 1))[1], largest_batch(serving.max_batch, choice.profile)
        room = min(choice.profile.rate(batch) / choice.profile.rate(choice.profile.largest), _NEARLY)
        return short, costs, replicas, -round(room, 2), batch, choice.candidate.key

    return sorted(found, key=key)


def _rough(cost: float) -> float:
    if not math.isfinite(cost) or cost == 0:
        return cost
    return round(math.copysign(1.0, cost) * math.log(abs(cost)) / _SAME)
