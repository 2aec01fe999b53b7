"""What a search believes about trials that it has not run: gain, chance of success, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from portolan.core.goal import Goals, Objective
from portolan.core.measurement import METRICS
from portolan.search import pareto
from portolan.search.knowledge import Knowledge, coordinate
from portolan.search.space import Candidate
from portolan.search.surrogate import (
    MEMBERS,
    Crashes,
    Features,
    Floats,
    Neighbours,
    Surrogate,
    expected,
    prior_column,
    rule_of_thumb,
)

#: Known metrics by recipe key: what the ledger says of one other context. `seconds` in it is the cost of a trial.
Prior = Mapping[str, Mapping[str, float]]

Places = npt.NDArray[np.intp]

#: Judged before others while its own kind of reading is missing: a screening reads no throughput and no p99.
STAND_IN = Objective("latency_p50", "min", "min latency_p50")
#: Candidates whose gain is worked out when there are several objectives, the rest being ranked below them.
SHORTLIST = 60
#: Chances before anything is known that quality holds: with the model's arithmetic, with a reduced precision of it
#: (what passes do to it is in `surrogate.THUMB`), and when it was judged and not shown.
EXACT_HOLDS, PRECISION_HOLDS, UNSHOWN = 0.97, 0.9, 0.3
#: What one judgement of the same changes weighs against the chance before anything is known.
VOTE = 4.0
#: How many times longer native code is expected to take to compile, before one was compiled.
HEAVY = 8.0


@dataclass(frozen=True)
class Scores:
    """Beliefs about the candidates at `places`; each array has that length.

    Attributes:
        places: which candidates.
        gain: expected growth of the dominated volume if limits hold, averaged over the ensemble.
        hope: share of the ensemble in which there is any growth.
        miss: how far limits are expected to be missed, in log units.
        quality: chance that the outputs are good enough.
        runs: chance that it builds and runs.
        seconds: expected cost of a screening.
    """

    places: Sequence[int]
    gain: Floats
    hope: Floats
    miss: Floats
    quality: Floats
    runs: Floats
    seconds: Floats

    @property
    def worth(self) -> Floats:
        """Expected gain per second."""
        worth: Floats = self.gain * self.quality * self.runs / self.seconds
        return worth


class Beliefs:
    """Models over one space; refitted at every question, which takes milliseconds.

    Args:
        candidates: the space.
        goals: what counts as gain.
        contexts: what the ledger knows of these recipes elsewhere.
    """

    def __init__(self, candidates: Sequence[Candidate], goals: Goals, contexts: Sequence[Prior]) -> None:
        self.goals = goals
        self._places = {c.key: i for i, c in enumerate(candidates)}
        self._exact = np.array([c.exact for c in candidates], dtype=bool)
        self._numerics = [c.numerics for c in candidates]
        self._changes = _changes(candidates)
        self._hopes = [_hope(c) for c in candidates]
        self._odd = _odd(candidates)
        self._heavy = np.array([c.heavy for c in candidates], dtype=bool)
        self._features, self._neighbours = Features(candidates), Neighbours(candidates)
        self._crashes = Crashes(candidates)
        self._contexts = contexts
        self._candidates = candidates
        self._surrogates: dict[tuple[str, float], Surrogate] = {}

    # --- the space of objectives

    def axes(self, known: Knowledge) -> list[Objective]:
        """The objectives that readings so far can be ranked by; a stand-in for those not read yet."""
        read = {name for p in known.measured() for name in known.metrics(p)}
        axes = [o if o.metric in read else STAND_IN for o in self.goals.objectives]
        return [o for o in dict.fromkeys(axes) if o.metric in read]

    def points(self, known: Knowledge, axes: Sequence[Objective], first: int | None = None) -> list[tuple[float, ...]]:
        """Coordinates of the measured candidates that meet every limit read so far; of the `first` ones only."""
        read = {name for p in known.measured() for name in known.metrics(p)}
        points = []
        for place in (p for p in known.order[:first] if p not in known.failures):
            metrics = known.metrics(place)
            meets = all(x.holds(metrics.get(x.metric)) for x in self.goals.limits if x.metric in read)
            if meets and all(o.metric in metrics for o in axes):
                points.append(tuple(coordinate(o, metrics[o.metric].value) for o in axes))
        return points

    def reference(self, known: Knowledge, axes: Sequence[Objective]) -> tuple[float, ...]:
        """A corner behind everything measured: half a factor behind the worst on logarithmic axes."""
        corner = []
        for o in axes:
            seen = [coordinate(o, m[o.metric].value) for p in known.measured() if o.metric in (m := known.metrics(p))]
            margin = 0.02 if METRICS[o.metric].quality else math.log(1.5)
            corner.append(max(seen, default=0.0) + margin)
        return tuple(corner)

    def volume(self, known: Knowledge, first: int | None = None) -> float:
        """The volume that the `first` results dominate, seen from the present reference point."""
        axes = self.axes(known)
        if not axes:
            return 0.0
        points = self.points(known, axes, first)
        return pareto.hypervolume([points[i] for i in pareto.front(points)], self.reference(known, axes))

    # --- guesses

    def scores(self, known: Knowledge, places: Sequence[int], rng: np.random.Generator) -> Scores:
        """What to expect of the candidates at `places`."""
        at = np.asarray(places, dtype=np.intp)
        axes = self.axes(known)
        over = self._over(known, at, rng)
        if axes:
            members = np.stack([self._axis(known, o, at, rng) for o in axes], axis=-1)
            gains = self._gains(known, axes, members)
        else:
            gains = np.ones(over.shape)
        useful = np.where(over <= 0, gains, 0.0)
        return Scores(
            places,
            useful.mean(0),
            (useful > 0.003).mean(0),
            over.mean(0),
            self.quality(known)[at],
            self.runs(known)[at],
            self.seconds(known)[at],
        )

    def _gains(self, known: Knowledge, axes: Sequence[Objective], members: Floats) -> Floats:
        """Growth of the volume for each member and candidate, from coordinates (members, candidates, axes)."""
        points, ref = self.points(known, axes), self.reference(known, axes)
        count, width, depth = members.shape
        if depth == 1:
            return pareto.gains(members.reshape(-1, 1), points, ref).reshape(count, width)
        optimistic = members.mean(0) - members.std(0)
        rough = pareto.gains(optimistic, points, ref)
        chosen = np.argsort(-rough, kind="stable")[:SHORTLIST]
        gains = np.zeros((count, width))
        fine = members[:, chosen].reshape(-1, depth)
        gains[:, chosen] = pareto.gains(fine, points, ref).reshape(count, len(chosen))
        return gains

    def _axis(self, known: Knowledge, objective: Objective, at: Places, rng: np.random.Generator) -> Floats:
        """An ensemble of coordinates on one objective, shape (members, candidates)."""
        if METRICS[objective.metric].quality:
            return self._quality_axis(known, objective, rng)[:, at]
        logs = self._predict(known, objective.metric, at, rng)
        return logs if objective.direction == "min" else -logs

    def _predict(self, known: Knowledge, metric: str, at: Places, rng: np.random.Generator) -> Floats:
        read = [(p, m[metric].value) for p in known.measured() if metric in (m := known.metrics(p))]
        read = [(p, v) for p, v in read if math.isfinite(v) and v > 0]
        baseline = known.metrics(0).get(STAND_IN.metric)
        key = metric, baseline.value if baseline is not None and baseline.value > 0 else math.inf
        if key not in self._surrogates:
            self._surrogates[key] = self._surrogate(*key)
        logs = [math.log(v) for _, v in read]
        return self._surrogates[key].fit([p for p, _ in read], logs, rng, at).members

    def _surrogate(self, metric: str, milliseconds: float) -> Surrogate:
        kind = {"B": "size", "1/s": "rate"}.get(METRICS[metric].unit, "time")
        columns = [_rules_of_thumb(self._candidates, milliseconds)[kind]]
        for context in self._contexts:
            values = {self._places[k]: m[metric] for k, m in context.items() if k in self._places and metric in m}
            logs = {p: math.log(v) for p, v in values.items() if math.isfinite(v) and v > 0}
            if len(logs) >= 2:
                columns.append(prior_column(self._features, logs))
        others = len(columns) - 1
        slopes = [0.3, *[0.7 / others] * others] if others else [1.0]
        return Surrogate(self._features, np.stack(columns, axis=1), np.array(slopes))

    def _quality_axis(self, known: Knowledge, objective: Objective, rng: np.random.Generator) -> Floats:
        values: dict[int, float] = {}
        for p in range(len(self._exact)):
            metrics = known.metrics(p)
            if objective.metric in metrics:
                values[p] = coordinate(objective, metrics[objective.metric].value)
        spread = float(np.std(list(values.values()))) or 0.01
        guess = self._neighbours.vote(list(values), list(values.values()), float(np.mean(list(values.values()))), 0.5)
        drawn = guess + spread * rng.standard_normal((MEMBERS, len(guess)))
        drawn[:, list(values)] = list(values.values())
        return drawn

    def _over(self, known: Knowledge, at: Places, rng: np.random.Generator) -> Floats:
        """By how much each member expects limits other than quality to be missed, in log units; (members, n)."""
        over = np.zeros((MEMBERS, len(at)))
        read = {name for p in known.measured() for name in known.metrics(p)}
        for limit in self.goals.limits:
            if METRICS[limit.metric].quality or limit.metric not in read or limit.bound <= 0:
                continue
            excess = self._predict(known, limit.metric, at, rng) - math.log(limit.bound)
            over += np.maximum(0.0, excess if limit.op[0] == "<" else -excess)
        return over

    def quality(self, known: Knowledge) -> Floats:
        """The chance that each candidate's outputs are good enough."""
        verdicts = [known.quality_known(p) for p in range(len(self._exact))]
        judged = {self._changes[p]: bool(v) for p, v in enumerate(verdicts) if v is not None and not self._exact[p]}
        votes = {x: _quality_vote(*x, judged) for x in set(zip(self._changes, self._hopes, strict=True))}
        lossy = np.array([votes[x] for x in zip(self._changes, self._hopes, strict=True)])
        chance = np.where(self._exact, EXACT_HOLDS, lossy)
        for p, verdict in enumerate(verdicts):
            if verdict is not None:
                chance[p] = float(verdict)
            elif not known.needs_judging(p, 0):
                chance[p] = UNSHOWN
        return chance

    def runs(self, known: Knowledge) -> Floats:
        """The chance that each candidate builds and runs."""
        return self._crashes.chance(known.order, [p not in known.failures for p in known.order])

    def seconds(self, known: Knowledge) -> Floats:
        """The expected cost of screening each candidate, in seconds."""
        seen = {p: s for (p, level), s in known.seconds.items() if level == 0}
        logs = {p: math.log(s) for p, s in seen.items()}
        for context in self._contexts if not logs else ():
            for key, metrics in context.items():
                if key in self._places and metrics.get("seconds", 0) > 0:
                    logs.setdefault(self._places[key], math.log(metrics["seconds"]))
        if not logs:
            return np.ones(len(self._exact))
        typical = float(np.median(list(logs.values())))
        seconds: Floats = np.exp(self._neighbours.vote(list(logs), list(logs.values()), typical, 0.05))
        if not any(self._heavy[p] for p in logs):
            seconds[self._heavy] *= HEAVY
        return seconds

    def farthest(self, places: Sequence[int], tried: Sequence[int], rng: np.random.Generator) -> int:
        """Of `places`, the one least like everything tried."""
        nearest = np.zeros(len(self._exact))
        for place in tried:
            nearest = np.maximum(nearest, self._neighbours.likeness(place))
        order = [places[int(i)] for i in rng.permutation(len(places))]
        return min(order, key=lambda p: float(nearest[p]))

    def ledgers_best(self, most: int) -> list[int]:
        """The candidates that did best in other contexts, one for each arithmetic.

        Ranked by the first objective that those contexts have readings of.
        """
        for objective in (*self.goals.objectives, STAND_IN):
            found: dict[int, list[float]] = {}
            for context in self._contexts:
                values = {
                    self._places[key]: coordinate(objective, metrics[objective.metric])
                    for key, metrics in context.items()
                    if key in self._places and objective.metric in metrics and self._meets(metrics)
                }
                middle = float(np.median(list(values.values()))) if values else 0.0
                for place, value in values.items():
                    found.setdefault(place, []).append(value - middle)
            if found:
                ranked = sorted(found, key=lambda p: (float(np.mean(found[p])), p))
                return list({self._numerics[p]: p for p in reversed(ranked)}.values())[::-1][:most]
        return []

    def plainest(self, places: Sequence[int]) -> list[int]:
        """Those of `places` that differ least from their backend's defaults, apart from the precision."""
        least = min((self._odd[p] for p in places), default=0)
        return [p for p in places if self._odd[p] == least]

    def _meets(self, metrics: Mapping[str, float]) -> bool:
        """Whether quality met the limits elsewhere; other limits (a time, a size) say nothing across contexts."""
        for limit in (x for x in self.goals.limits if METRICS[x.metric].quality and x.metric in metrics):
            value = metrics[limit.metric]
            if not (value <= limit.bound if limit.op[0] == "<" else value >= limit.bound):
                return False
        return True


def _defaults(candidates: Sequence[Candidate]) -> dict[str, Mapping[str, object]]:
    found: dict[str, Mapping[str, object]] = {}
    for c in candidates:
        found.setdefault(c.recipe.backend, c.recipe.options)
    return found


def _odd(candidates: Sequence[Candidate]) -> list[int]:
    """How many options of each candidate, the precision aside, are not its backend's default."""
    defaults = _defaults(candidates)
    return [
        sum(n != "precision" and defaults[c.recipe.backend].get(n) != v for n, v in c.recipe.options.items())
        for c in candidates
    ]


def _changes(candidates: Sequence[Candidate]) -> list[frozenset[str]]:
    """What in each candidate changes outputs: the steps and precisions that no exact candidate has."""
    harmless = {str(step) for c in candidates if c.exact for step in c.recipe.passes}
    harmless |= {f"precision={c.recipe.options.get('precision')}" for c in candidates if c.exact}
    return [
        frozenset({*map(str, c.recipe.passes), f"precision={c.recipe.options.get('precision')}"} - harmless)
        for c in candidates
    ]


def _hope(candidate: Candidate) -> float:
    """The chance that quality holds, before anything is known."""
    chances = [expected(feature)[2] for feature in candidate.features]
    reduced = candidate.recipe.options.get("precision", "f32") != "f32"
    return math.prod([*chances, PRECISION_HOLDS if reduced or not chances else 1.0])


def _quality_vote(changes: frozenset[str], hope: float, judged: Mapping[frozenset[str], bool]) -> float:
    """The chance that quality survives `changes`: supersets of what failed fail, subsets hold."""
    good, votes = hope, 1.0
    for other, held in judged.items():
        if other <= changes if not held else changes <= other:
            good, votes = good + VOTE * held, votes + VOTE
    return good / votes


def _rules_of_thumb(candidates: Sequence[Candidate], milliseconds: float) -> dict[str, Floats]:
    defaults = _defaults(candidates)
    threads = {t for c in candidates if isinstance(t := c.recipe.options.get("threads"), int)}
    most = max(threads, default=0) * (2 if 0 in threads else 1)  # 0 stands for all: about twice the next
    rows = [rule_of_thumb(c, defaults[c.recipe.backend], most, milliseconds) for c in candidates]
    return {kind: np.array([row[kind] for row in rows]) for kind in ("time", "size", "rate")}
