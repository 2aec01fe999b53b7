"""The final race: who takes part, how long it will take, and what each raced trial is then known to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from portolan.core.measurement import Measurement, Metrics
from portolan.errors import WorkerError
from portolan.measure.lock import measuring
from portolan.measure.race import Arm, race
from portolan.measure.result import Race
from portolan.search.space import Candidate
from portolan.study.budget import Spending
from portolan.study.builder import Compiled
from portolan.study.probe import Session
from portolan.study.trial import Trial

#: Entrants besides the baseline and the defaults.
FINALISTS = 4
#: Starts of each entrant: what the budget is kept for, and the most while the race is undecided.
STARTS, MOST_STARTS = 5, 10
#: Longest warm-up of one process, and what the loaded run of one trial takes; seconds.
WARM_UP, LOADED = 0.5, 4.0

Trials = Mapping[str, Trial]


def entrants(live: Sequence[Candidate], finalists: Sequence[Candidate], trials: Trials) -> list[Candidate]:
    """Baseline, finalists, and each backend's exact default: nobody loses for want of being asked."""
    defaults: dict[str, Candidate] = {}
    for candidate in live:
        if candidate.exact and not candidate.recipe.passes:
            defaults.setdefault(candidate.recipe.backend, candidate)
    chosen = [live[0], *finalists, *(c for c in defaults.values() if _contender(c, trials))]
    fit = {c.key: c for c in chosen if c.key in trials and trials[c.key].status == "ok"}
    return list(fit.values())


def _contender(candidate: Candidate, trials: Trials) -> bool:
    """A default that was screened as more than twice as slow as the fastest has had its chance."""
    trial = trials.get(candidate.key)
    if trial is None or trial.status != "ok" or "latency_p50" not in trial.metrics:
        return False
    fastest = min(t.metrics["latency_p50"].value for t in trials.values() if "latency_p50" in t.metrics)
    return trial.metrics["latency_p50"].value <= 2 * fastest


def seconds(chosen: Sequence[Candidate], trials: Trials) -> float:
    """About how long the race of `chosen` takes; the baseline runs twice."""
    starts = [trials[c.key].metrics["cold_start"].value / 1e3 for c in (chosen[0], *chosen)]
    one = sum(starts) + len(starts) * (WARM_UP + 4 * _block_seconds(chosen, trials))
    return STARTS * one


def _starts(spent: float, chosen: Sequence[Candidate], trials: Trials) -> int:
    """Starts of a race that no time bounds: as many as take what the search took, and enough for a claim."""
    fit = STARTS * spent / seconds(chosen, trials)
    return int(min(max(fit, STARTS), MOST_STARTS))


def _block_seconds(chosen: Sequence[Candidate], trials: Trials) -> float:
    slowest = max(_latency(c, trials) for c in chosen)
    return max(0.1, min(0.5, 3 * slowest))


def _latency(candidate: Candidate, trials: Trials) -> float:
    return trials[candidate.key].metrics["latency_p50"].value / 1e3


class Finals:
    """The race itself.

    Args:
        compiled: gives what a candidate's processes load.
        feeds: the inputs of the timed runs.
        least: the fewest inferences of a block.
        say: told one line at a time.
    """

    def __init__(
        self,
        compiled: Callable[[Candidate], Compiled],
        feeds: Sequence[Mapping[str, np.ndarray]],
        least: int,
        say: Callable[[str], None],
    ) -> None:
        self._compiled, self._feeds, self._least, self._say = compiled, feeds, least, say

    def run(
        self, chosen: Sequence[Candidate], trials: Trials, spending: Spending, seed: int, cores: int
    ) -> dict[str, Any]:
        """Races `chosen`, the baseline first; plain data for the ledger, which `read` reads.

        Args:
            chosen: who takes part.
            trials: what screening said of them.
            spending: of the budget.
            seed: of the order of blocks.
            cores: callers of the loaded run.

        Raises:
            WorkerError: the baseline failed.
        """
        begin, left = time.monotonic(), spending.left
        timed = left < float("inf")
        self._say(f"final race of {len(chosen)}")
        seen: dict[str, list[_Watched]] = {c.key: [] for c in chosen}
        outcome = race(
            [self._arm(candidate, seen[candidate.key]) for candidate in chosen],
            baseline=chosen[0].key,
            starts=MOST_STARTS if timed else _starts(spending.seconds, chosen, trials),
            block_seconds=_block_seconds(chosen, trials),
            deadline=begin + max(left, 1.0) if timed else None,
            rng=np.random.default_rng(seed),
            progress=self._say,
            warm_up=WARM_UP,
        )
        more: dict[str, Metrics] = {}
        for candidate in chosen:
            if candidate.key in outcome.arms:
                more[candidate.key] = _seen(seen[candidate.key])
                if spending.left > LOADED:
                    more[candidate.key] |= self._loaded(candidate, cores, _latency(candidate, trials))
        found = {key: {name: m.to_json() for name, m in metrics.items()} for key, metrics in more.items()}
        return {"race": outcome.to_json(), "more": found}

    def _arm(self, candidate: Candidate, seen: list[_Watched]) -> Arm:
        compiled = self._compiled(candidate)

        def start() -> Session:
            seen.append(_Watched(compiled, self._feeds, least=self._least))
            return seen[-1]

        return Arm(candidate.key, start)

    def _loaded(self, candidate: Candidate, cores: int, latency: float) -> Metrics:
        """Throughput under concurrent callers; nothing if the runtime cannot take them."""
        try:
            session = Session(self._compiled(candidate), self._feeds)
            try:
                with measuring():
                    return {"throughput": session.throughput(cores, latency)}
            finally:
                session.close()
        except WorkerError as error:
            self._say(f"no throughput of {candidate.recipe.backend}: {error}")
            return {}


def read(kept: Mapping[str, Any]) -> tuple[Race, dict[str, Metrics]]:
    """The race, and each entrant's other metrics, from what `Finals.run` returned."""
    more = {key: {name: Measurement(**m) for name, m in found.items()} for key, found in kept["more"].items()}
    return Race.from_json(kept["race"]), more


def settled(trial: Trial, outcome: Race, more: Metrics) -> Trial:
    """The trial with what the race found of it."""
    key = trial.recipe.key
    if key in outcome.failures:
        return replace(trial, status="failed", reason=outcome.failures[key], metrics={})
    if key not in outcome.arms:
        return trial
    arm = outcome.arms[key]
    return replace(trial.with_metrics({**more, **arm.metrics()}, "raced"), samples=_thinned(arm.blocks))


class _Watched(Session):
    """A session that remembers its peak memory when it ends."""

    peak: int | None = None

    def close(self) -> None:
        try:
            self.peak = self.peak_memory()
        except WorkerError:
            self.peak = None
        finally:
            super().close()


def _seen(sessions: Sequence[_Watched]) -> Metrics:
    """Cold start and memory over all starts of one entrant: medians, with the range."""
    columns = {
        "cold_start": [s.cold_start_ms for s in sessions],
        "memory": [float(s.peak) for s in sessions if s.peak is not None],
    }
    return {
        name: Measurement.of(name, float(np.median(values)), min(values), max(values), len(values))
        for name, values in columns.items()
        if values
    }


def _thinned(blocks: Sequence[Sequence[np.ndarray]], most: int = 200) -> tuple[tuple[float, ...], ...]:
    starts = []
    for start in blocks:
        readings = np.concatenate(list(start)) if len(start) else np.array([])
        step = max(1, len(readings) // most)
        starts.append(tuple(float(f"{ms:.5g}") for ms in readings[::step]))
    return tuple(starts)
