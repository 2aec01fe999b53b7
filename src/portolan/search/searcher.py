"""What to try next: an anytime search that is asked and told, and does nothing by itself.

    start    the baseline, each backend's defaults and its reduced precision, the ledger's best, each chain of passes
             that may pay, a few far off
    loop     the largest expected gain in dominated volume per second, times the chance that it runs and meets the
             limits; sometimes a random one; whatever may still be on the front is measured longer
    end      the volume grew by less than 1 % in each of 3 batches, or nothing is left

Everything is a function of the space, the goals, the seed, the prior and what was told, in that order: repeat what was
told after a crash, and the search goes on as if nothing had happened.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from portolan.core.goal import Goals
from portolan.core.measurement import Metrics
from portolan.core.recipe import Step
from portolan.search import pareto
from portolan.search.beliefs import Beliefs, Prior, Scores
from portolan.search.knowledge import Knowledge
from portolan.search.space import Candidate

#: The level whose readings are taken at their value; shorter ones count as so far on the way to their bad end.
TOP_LEVEL, DOUBT = 1, 0.5
#: Share of random proposals, the chance of running below which one is tried last, trials per artefact and batch.
EXPLORE, UNLIKELY, PER_ARTEFACT = 0.15, 0.2, 2
#: The search ends after this many batches with less than this relative gain each.
IDLE_BATCHES, IDLE_GAIN = 3, 0.01
#: Longer measurements between two batches, and in all at the end.
PROMOTIONS, FINALISTS = 1, 8
#: Batches before the defaults of a backend that compiles native code: a usable answer comes before it is ready.
LIGHT_FIRST = 2
#: Candidates considered at each step of the loop, drawn at random where there are more.
POOL = 2000
#: A chain is tried early only if at least this share of the ensemble sees a gain in it.
HOPE = 0.25

#: How much faster than it was screened a finalist may turn out: small models settle into one of two speeds as they are
#: loaded, and the one or two starts of a screening may have shown the slower. The race starts each of them again.
ROOM = 0.4

Move = tuple[int, int, str]


@dataclass(frozen=True)
class Proposal:
    """One trial to run.

    Attributes:
        candidate: what to build and measure.
        level: 0 = a short screening, 1 = longer.
        why: which rule chose it.
        judge: whether the quality of its outputs must be judged; if not, another candidate with the same arithmetic
            was judged already.
    """

    candidate: Candidate
    level: int
    why: str
    judge: bool


class Searcher:
    """Proposes trials and remembers their results. Pure: it measures nothing and knows no clock.

    Args:
        candidates: the space; the first is the baseline. Refused ones are ignored.
        goals: what to reach.
        seed: the same seed and the same results give the same proposals.
        prior: what the ledger knows of these recipes elsewhere: one context, or several.
        batch: trials between two looks at promotions and at the rule that ends the search.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        goals: Goals,
        *,
        seed: int = 0,
        prior: Prior | Sequence[Prior] | None = None,
        batch: int = 4,
    ) -> None:
        live = [c for c in candidates if c.refused is None]
        contexts: list[Prior] = []
        if isinstance(prior, Mapping):
            contexts = [prior]
        elif prior is not None:
            contexts = list(prior)
        self.goals = goals
        self.stopped: str | None = None
        self._known = Knowledge(live, goals)
        self._beliefs = Beliefs(live, goals, [c for c in contexts if any(x.key in c for x in live)])
        self._seed, self._batch = seed, max(1, batch)
        self._pending: dict[int, int] = {}
        self._levels_told: list[int] = []
        self._defaults = _defaults(live)
        self._ledgers = self._beliefs.ledgers_best(min(10, max(3, len(live) // 20)))
        self._fill = min(10, len(live) // 80)

    # --- asked and told

    def ask(self, *, closing: bool = False) -> Proposal | None:
        """The next trial; None when nothing is worth trying, or when everything that is left is pending.

        `stopped` then says why; it is None while results are awaited.

        Args:
            closing: the budget is nearly spent: only measure longer what may be the best, and try nothing new.
        """
        self.stopped = None
        whole = (self._first, self._promote, self._next, self._promotion)
        for rule in (self._promotion,) if closing else whole:
            move = rule()
            if move is not None:
                place, level, why = move
                self._pending[place] = level
                return Proposal(self._known.candidates[place], level, why, self._known.needs_judging(place, level))
        if not self._pending:
            self.stopped = "the budget is nearly spent" if closing else self._idle() or "every candidate was tried"
        return None

    def tell(
        self, candidate: Candidate, level: int, metrics: Metrics | None, seconds: float, failure: str | None = None
    ) -> None:
        """Adds a result, whether it was asked for or not. A candidate outside the space is ignored.

        Args:
            candidate: what was tried.
            level: how long it was measured.
            metrics: what was measured; the quality of outputs alone, when that already ended the trial.
            seconds: what the trial cost, building included.
            failure: why it failed; None if it did not.
        """
        place = self._known.places.get(candidate.key)
        if place is None:
            return
        self._pending.pop(place, None)
        self._levels_told.append(level)
        self._known.tell(place, level, metrics, max(seconds, 1e-6), failure)

    def rule_out(self, steps: Sequence[Step], reason: str) -> None:
        """Adds that these passes cannot be applied, so that no chain that starts with them is tried any more."""
        self._known.rule_out(steps, reason)

    # --- answers, valid at any time

    @property
    def introduced(self) -> bool:
        """Whether the defaults of every backend were tried, so that nobody loses for want of being asked."""
        return not self.waiting()

    def waiting(self) -> list[Candidate]:
        """The defaults of the backends that have not had their turn."""
        open_ = set(self._open())
        return [self._known.candidates[p] for p in self._defaults if p in open_]

    def metrics(self, candidate: Candidate) -> Metrics:
        """Everything known of a candidate, with the quality that its arithmetic shares."""
        place = self._known.places.get(candidate.key)
        return {} if place is None else self._known.metrics(place)

    def best(self) -> Candidate | None:
        """The feasible candidate with the lowest cost; None while there is none.

        The first objective ranks; among those whose intervals overlap with the best, the next one does. A short
        reading counts as worse than it is: the best of many short readings looks better than it is.
        """
        left = self._known.feasible()
        last = len(self.goals.objectives) - 1
        for i in range(last + 1):
            if not left:
                return None
            winner = min(left, key=lambda p: (self._careful(p, i), p))
            if i == last:
                return self._known.candidates[winner]
            limit = self._known.box(winner).hi[i]
            left = [p for p in left if self._known.box(p).lo[i] <= limit]
        return None

    def closest(self) -> Candidate | None:
        """The measured candidate that misses the limits by the least; None before anything was measured."""
        measured = self._known.measured()
        return self._known.candidates[min(measured, key=self._shortfall)] if measured else None

    def finalists(self, most: int) -> list[Candidate]:
        """Feasible candidates that may be on the front, the most promising first, to be raced.

        The best of the backends' defaults is always among them, so that the race shows the gain over what anyone gets
        without a search.
        """
        feasible = self._known.feasible()
        on_front = [feasible[i] for i in pareto.front_within([_roomy(self._known.box(p)) for p in feasible])]
        axes = range(len(self.goals.objectives))
        ends = [min(on_front, key=lambda p: (self._careful(p, i), p)) for i in axes if on_front]
        ranked = sorted(on_front, key=lambda p: (*(self._careful(p, i) for i in axes), p))
        chosen = list(dict.fromkeys([*ends, *ranked]))[: max(most, 0)]
        usual = [p for p in feasible if p in self._defaults]
        if chosen and usual and not any(p in self._defaults for p in chosen):
            chosen = [*chosen[: max(most - 1, 1)], min(usual, key=lambda p: (self._careful(p, 0), p))][: max(most, 0)]
        return [self._known.candidates[p] for p in chosen]

    def skipped(self) -> list[Candidate]:
        """Candidates never timed, as their passes fail or their arithmetic misses a limit, each with that reason."""
        return [
            replace(c, refused=why)
            for i, c in enumerate(self._known.candidates)
            if i not in self._known.tried and (why := self._known.hopeless(i)) is not None
        ]

    def _careful(self, place: int, objective: int) -> float:
        box = self._known.box(place)
        doubt = 0.0 if self._known.levels.get(place, 0) >= TOP_LEVEL else DOUBT
        value, bad = box.value[objective], box.hi[objective]
        return value + doubt * (bad - value) if math.isfinite(bad) else bad

    def _shortfall(self, place: int) -> tuple[int, float, tuple[float, ...], int]:
        metrics = self._known.metrics(place)
        short = [limit.shortfall(metrics.get(limit.metric)) for limit in self.goals.limits]
        missing = sum(math.isinf(s) for s in short)
        return missing, sum(s for s in short if math.isfinite(s)), self.goals.costs(metrics), place

    # --- rules, asked in this order; each answers with a move or None

    def _first(self) -> Move | None:
        """The start. Its moves are chosen one by one, since the later ones depend on what the first ones gave."""
        open_ = self._open()
        usual = [p for p in self._defaults if p in open_]
        for place in (p for p in usual if p == 0 or not self._known.candidates[p].heavy):
            return place, 0, "the baseline" if place == 0 else "the defaults of a backend"
        if (other := self._new_arithmetic(open_)) is not None:
            return other, 0, "an arithmetic not tried yet"
        if (known := self._elsewhere(open_)) is not None:
            return known, 0, "best elsewhere"
        if (fresh := self._new_chain(open_)) is not None:
            return fresh, 0, "a chain not tried yet"
        touched = self._touched()
        if usual and len(touched) >= LIGHT_FIRST * self._batch:
            return usual[0], 0, "the defaults of a backend"
        chains = len({self._known.candidates[p].recipe.chain for p in touched}) - 1
        light = [p for p in open_ if not self._known.candidates[p].heavy]
        if light and len(touched) < len({*self._defaults, *self._ledgers} & {*touched}) + chains + self._fill:
            return self._beliefs.farthest(light, touched, self._rng()), 0, "unlike what was tried"
        return None

    def _new_arithmetic(self, open_: Sequence[int]) -> int | None:
        """The untouched model in a reduced precision: it costs no pass to build, and often pays the most."""
        candidates, seen = self._known.candidates, {self._known.candidates[p].numerics for p in self._touched()}
        fresh = [
            p
            for p in open_
            if not candidates[p].recipe.passes and not candidates[p].heavy and candidates[p].numerics not in seen
        ]
        return next(iter(self._beliefs.plainest(fresh)), None)

    def _elsewhere(self, open_: Sequence[int]) -> int | None:
        """The next of those that did best elsewhere, unless what was measured here is better than it can be."""
        places = [p for p in self._ledgers if p in open_]
        if not places:
            return None
        scores = self._beliefs.scores(self._known, places, self._rng())
        hopeful = (scores.hope >= HOPE) & (scores.quality >= UNLIKELY)
        return next((p for p, hope in zip(places, hopeful, strict=True) if hope), None)

    def _new_chain(self, open_: Sequence[int]) -> int | None:
        used = {self._known.candidates[p].recipe.chain for p in self._touched()}
        fresh = self._beliefs.plainest([p for p in open_ if self._known.candidates[p].recipe.chain not in used])
        if not fresh:
            return None
        scores = self._beliefs.scores(self._known, fresh, self._rng())
        hopeful = (scores.hope >= HOPE) & (scores.runs >= UNLIKELY) & (scores.quality >= UNLIKELY)
        if not hopeful.any():
            return None
        return fresh[int(np.argmax(np.where(hopeful, scores.worth, -1.0)))]

    def _promote(self) -> Move | None:
        """Between batches, measures longer what may be the best."""
        if len(self._touched()) % self._batch:
            return None
        recent = len(self._levels_told) - max((i + 1 for i, x in enumerate(self._levels_told) if x == 0), default=0)
        recent += sum(level > 0 for level in self._pending.values())
        return self._promotion() if recent < PROMOTIONS else None

    def _promotion(self) -> Move | None:
        """The most promising short reading among all that may be on the front, if few of those were read longer."""
        axes = self._beliefs.axes(self._known)
        possible = [p for p in self._known.measured() if self._known.still_possible(p)]
        if not axes or not possible:
            return None
        goals = Goals(self.goals.limits, tuple(axes))
        boxes = [self._known.box(p, goals) for p in possible]
        contenders = [possible[i] for i in pareto.front_within(boxes)]
        short = [p for p in contenders if self._known.levels[p] < TOP_LEVEL and p not in self._pending]
        if not short or len(contenders) - len(short) >= FINALISTS:
            return None
        place = min(short, key=lambda p: (self._known.box(p, goals).value, p))
        return place, TOP_LEVEL, "may be the best"

    def _next(self) -> Move | None:
        """The loop: the largest expected gain per second, or now and then a random one."""
        open_ = self._open()
        if not open_ or self._idle() is not None:
            return None
        # Native code starts with its defaults, whose turn comes in the start.
        ready = {self._known.candidates[p].recipe.backend for p in self._touched()}
        candidates = self._known.candidates
        open_ = [p for p in open_ if not candidates[p].heavy or candidates[p].recipe.backend in ready] or open_
        rng = self._rng()
        if len(open_) > POOL:
            open_ = sorted(rng.choice(open_, POOL, replace=False).tolist())
        scores = self._beliefs.scores(self._known, open_, rng)
        allowed = self._allowed(scores)
        if rng.random() < EXPLORE:
            weights = np.where(allowed, scores.quality * scores.runs / scores.seconds, 0.0)
            if weights.sum() > 0:
                return open_[int(rng.choice(len(open_), p=weights / weights.sum()))], 0, "at random"
        worth = np.where(allowed, scores.worth, -1.0)
        if worth.max() <= 0:  # no member sees a gain anywhere: what misses limits least, or the cheapest that may work
            likely = scores.quality * scores.runs
            worth = likely * np.exp(-3 * scores.miss) if scores.miss.any() else likely / scores.seconds
            worth = np.where(allowed, worth, -1.0)
        return open_[int(np.argmax(worth))], 0, "largest expected gain per second"

    def _allowed(self, scores: Scores) -> npt.NDArray[np.bool_]:
        """Which may be proposed: likely to run, no third of one artefact in a batch; all, if none is left."""
        touched = self._touched()
        batch = touched[len(touched) - len(touched) % self._batch :]
        count: dict[str, int] = {}
        for place in batch:
            count[self._known.numerics[place]] = count.get(self._known.numerics[place], 0) + 1
        likely = scores.runs >= UNLIKELY
        spread = np.array([count.get(self._known.numerics[p], 0) < PER_ARTEFACT for p in scores.places])
        for choice in (likely & spread, likely):
            if choice.any():
                return choice
        return np.ones(len(scores.places), dtype=bool)

    def _idle(self) -> str | None:
        """Why the search ends: the last batches gained next to nothing."""
        done = len(self._known.order)
        start = len(self._defaults) + len(self._ledgers) + self._fill
        whole = done - done % self._batch
        first = whole - IDLE_BATCHES * self._batch
        if first < start:
            return None
        volumes = [self._beliefs.volume(self._known, first + i * self._batch) for i in range(IDLE_BATCHES + 1)]
        if volumes[0] <= 0 or any(b - a >= IDLE_GAIN * b for a, b in itertools.pairwise(volumes)):
            return None
        return f"the last {IDLE_BATCHES} batches of {self._batch} gained less than {IDLE_GAIN:.0%} each"

    # --- state

    def _touched(self) -> list[int]:
        """Places told or pending for the first time, in order."""
        return [*self._known.order, *(p for p in self._pending if p not in self._known.tried)]

    def _open(self) -> list[int]:
        """Places that were neither tried nor asked for, and are not known to fail the quality limits."""
        taken = self._known.tried | set(self._pending)
        return [i for i in range(len(self._known.candidates)) if i not in taken and self._known.hopeless(i) is None]

    def _rng(self) -> np.random.Generator:
        """A generator that depends on how far the search is, so that a resumed one draws the same."""
        return np.random.default_rng([self._seed, len(self._levels_told), len(self._pending)])


def _roomy(box: pareto.Box) -> pareto.Box:
    low = (min(lo, value - ROOM * abs(value)) for lo, value in zip(box.lo, box.value, strict=True))
    return replace(box, lo=tuple(low))


def _defaults(candidates: Sequence[Candidate]) -> list[int]:
    """The first candidate of each backend: its defaults on the untouched model, where the space has them."""
    first: dict[str, int] = {}
    for i, c in enumerate(candidates):
        held = first.get(c.recipe.backend)
        if held is None or (candidates[held].recipe.passes and not c.recipe.passes):
            first[c.recipe.backend] = i
    return list(first.values())
