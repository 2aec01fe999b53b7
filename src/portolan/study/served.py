"""The search over serving: which compiled model, batch and replicas hold a load, predicted first and then measured.

    profile    each finalist's artefact, with its threads, by batch size: cheap, in one worker
    predict    every way to serve it, on simulated arrivals (`search.serving`)
    try        the untouched model as `serve` would run it, then the most promising, one start under real load
    claim      the best of these again, longer, over several starts in turn with the untouched model

Only measured values are claims. Everything lies in the ledger under what decides it, so that a repeated command finds
it there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from portolan.core.goal import Goals
from portolan.core.measurement import METRICS, said
from portolan.core.recipe import digest
from portolan.core.serving import Overhead, Profile, Serving
from portolan.errors import DiskFull, NoBackend, NoResult, PortolanError, UsageError
from portolan.measure import profile
from portolan.measure.load import STREAMS, Load, Loaded
from portolan.measure.lock import measuring
from portolan.search.serving import Choice, choices, predict, ranked, scaled, tightest, with_overhead
from portolan.search.space import Candidate
from portolan.serving.source import Limits
from portolan.serving.trial import LoadResult, put_under_load
from portolan.study.builder import holds, lasting, once_more, told
from portolan.study.loads import (
    alone,
    asked_of,
    everywhere,
    family,
    measured,
    priced,
    shown_choice,
    shown_run,
    source_of,
    unsustained,
    words_of,
)
from portolan.study.profiles import NoProfile, profiled
from portolan.study.runner import Runner
from portolan.study.trial import Trial


@dataclass(frozen=True)
class Level:
    """How thoroughly a choice is measured.

    Attributes:
        queries: the fewest calls of a start.
        seconds: the shortest time of a start.
        longest: seconds of a start above which it makes do with fewer calls; None: it never does.
        starts: how often everything is started anew.
        stage: what a trial is called that came so far.
    """

    queries: int
    seconds: float
    longest: float | None
    starts: int
    stage: str


LEVELS = (Level(500, 1.5, 8.0, 1, "tried"), Level(300, 3.0, None, 3, "loaded"))
#: Stages of a trial that was served.
SERVED = frozenset(level.stage for level in LEVELS)
#: Compiled models besides the baseline, choices that are tried, and choices that are measured to the end.
ARTEFACTS, TRIED, CLAIMED = 3, 5, 2
#: Runs of the Offline scenario in each start; the first one is the pilot of the others.
OFFLINE = 3
#: Queries and seconds of the two Stream scenarios, which are told and not judged.
_STREAM = (20, 0.3)
#: Starts that there has to be time for; else there is one longer one, and fewer are measured.
_FEWEST = 2
#: What starting a server takes besides its replicas' cold starts, seconds.
_SETUP = 1.0
#: Predictions shown in the study.
_SHOWN = 24


@dataclass
class Outcome:
    """What the search over serving found, for the study and its report."""

    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    predicted: list[Choice] = field(default_factory=list)
    tests: dict[str, list[Loaded]] = field(default_factory=dict)

    def to_json(self, trials: Mapping[str, Trial], goals: Goals) -> dict[str, Any]:
        """Plain data: profiles, predictions beside what was measured, and what each load brought to light."""
        numbers = {key: trial.id for key, trial in trials.items()}
        return {
            "loads": goals.loads,
            "profiles": list(self.profiles.values()),
            "choices": [shown_choice(choice, numbers) for choice in self.predicted[:_SHOWN]],
            "runs": [shown_run(numbers[key], run) for key, runs in self.tests.items() for run in runs],
        }


class Served:
    """Searches for the best way to serve, once the runner has searched for recipes.

    Args:
        runner: what was found so far; trials are added to its own.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner, self._task, self._pinned = runner, runner.task, runner.task.serving
        self._goals, self._say = runner.task.goals, runner.say
        self._ledger = runner.ledger
        self.outcome = Outcome()

    def search(self) -> Outcome:
        """From profiles to claims; within the budget, but the baseline is always measured."""
        baseline = self._task.live[0]
        found: list[Choice] = []
        for candidate in self._artefacts():
            if found and self._left() < self._seconds(LEVELS[1], 2):
                self._say("no time to profile more models")
                break
            found += self._choices(candidate)
        self._runner.close()  # nothing else may run beside the loads
        self._say(f"{len(found)} ways to serve {len(self.outcome.profiles)} compiled models, predicted from profiles")
        usual = self._usual(baseline)
        tried = [usual] if usual is not None and self._try(usual) else []
        found = [replace(c, predicted=priced(c.predicted, self._task.price)) for c in self._corrected(found, usual)]
        self.outcome.predicted = ranked(found, self._goals)
        for choice in self._promising():
            # Room for two starts of the best and the untouched model; what is left makes it more.
            if tried and self._left() < self._seconds(LEVELS[0], 1) + 1.5 * self._seconds(LEVELS[1], 1):
                break
            if self._try(choice):
                tried.append(choice)
        self._claim(tried, usual)
        self._only_served()
        return self.outcome

    def _left(self) -> float:
        """Seconds of the budget."""
        return self._runner.spending.left

    # --- what may be served

    def _artefacts(self) -> list[Candidate]:
        """The untouched model and the finalists, each also with the other thread counts that the space holds."""
        live = self._task.live
        chosen = [live[0], *self._runner.finalists(ARTEFACTS)]
        families = set(map(family, chosen))
        more = [c for c in live if family(c) in families]
        found = []
        for candidate in {c.key: c for c in [*chosen, *more]}.values():
            trial = self._runner.trials.get(candidate.key)
            if trial is None and self._left() > self._seconds(LEVELS[1], 2):
                trial = self._runner.try_(candidate, 0)
            if trial is not None and trial.status == "ok" and not self._goals_missed(trial):
                found.append(candidate)
        return list({c.key: c for c in [live[0], *found]}.values())

    def _goals_missed(self, trial: Trial) -> bool:
        """Whether a limit on quality is missed: serving changes nothing about that."""
        limits = [x for x in self._goals.unloaded.limits if METRICS[x.metric].quality or x.metric == "size"]
        return any(not limit.holds(trial.metrics.get(limit.metric)) for limit in limits)

    def _choices(self, candidate: Candidate) -> list[Choice]:
        try:
            known = self._profile(candidate)
        except (UsageError, DiskFull, NoResult):
            raise
        except PortolanError as error:
            self._say(f"no profile of {candidate.recipe} on {candidate.recipe.backend}: {error.message}")
            return []
        trial, cores = self._runner.trials[candidate.key], self._task.target.cores
        threads = int(candidate.recipe.options.get("threads", 0)) or cores
        fit = choices(
            candidate, known, self._goals, trial.metrics, cores=cores, threads=threads, pinned=self._pinned
        )  # fmt: skip
        return list(fit)

    def _usual(self, baseline: Candidate) -> Choice | None:
        """The untouched model as `serve` runs it when nobody chose anything."""
        kept = self.outcome.profiles.get(baseline.key)
        if kept is None:
            return None
        known, limits = Profile.from_json(kept["profile"]), Limits()
        assumed = Serving(None, limits.replicas, limits.deadline)
        metrics = predict(known, assumed, self._goals, self._runner.trials[baseline.key].metrics)
        return Choice(baseline, known, metrics)

    def _promising(self) -> list[Choice]:
        """The first choices by prediction, at most two of the same compiled model."""
        chosen: list[Choice] = []
        for choice in self.outcome.predicted:
            same = sum(alone(c.candidate) == alone(choice.candidate) for c in chosen)
            if same < 2 and len(chosen) < TRIED:
                chosen.append(choice)
        return chosen

    def _corrected(self, found: Sequence[Choice], usual: Choice | None) -> list[Choice]:
        """The predictions with what was seen of the usual server: what it adds to a batch, and the memory of a replica,
        which is less than a measuring worker's.
        """
        overhead, trials = self._overhead(usual), self._runner.trials
        if overhead is not None:
            found = [with_overhead(c, self._goals, trials[alone(c.candidate).key].metrics, overhead) for c in found]
        trial = None if usual is None else trials[usual.candidate.key]
        if usual is None or trial is None or not SERVED & set(trial.stages) or "memory" not in usual.predicted:
            return list(found)
        factor = trial.metrics["memory"].value / usual.predicted["memory"].value
        return [scaled(choice, "memory", factor) for choice in found]

    def _overhead(self, usual: Choice | None) -> Overhead | None:
        """What the server adds to a batch, as the first load test found it."""
        if usual is None or (kept := self._test(usual, LEVELS[0], 0))["reason"]:
            return None
        return LoadResult.from_json(kept["test"]).overhead

    def _only_served(self) -> None:
        """Takes back what one process did in trials that were not served: it is not what a server does."""
        for key, trial in self._runner.trials.items():
            if not SERVED & set(trial.stages):
                self._runner.trials[key] = replace(trial, metrics=everywhere(trial.metrics))

    # --- profiles

    def _profile(self, candidate: Candidate) -> Profile:
        key = self._runner.question(candidate, "profile")
        kept = self._kept("profile", key, lambda: self._measured_profile(candidate))
        if kept["reason"]:
            raise NoProfile(kept["reason"])
        found = Profile.from_json(kept["profile"])
        number = self._runner.trials[candidate.key].id
        self.outcome.profiles[candidate.key] = {
            "trial": number,
            "recipe": alone(candidate).recipe.to_json(),
            "profile": kept["profile"],
            "note": kept["note"],
        }
        largest = found.batches[found.largest]
        self._say(
            f"profile of #{number}: {found.batches[1].value * 1e3:.3g} ms alone, "
            f"{largest.value * 1e3:.3g} ms for {found.largest} together"
        )
        return found

    def _measured_profile(self, candidate: Candidate) -> dict[str, Any]:
        compiled = self._runner.compiled(candidate)
        longest = tightest(self._goals) or 1.0
        with measuring():
            found, note = profiled(compiled, self._task.samples, self._limit, longest, self._runner.feeds)
        return {"reason": None, "profile": found.to_json(), "note": note}

    @property
    def _limit(self) -> int:
        """The largest batch worth trying: of the pinned ones where there are any; 1 where the batch axis is fixed."""
        if not isinstance(self._task.model.signature.batch, str):
            return 1
        pinned = self._pinned.get("max_batch")
        return profile.LIMIT if pinned is None else max(pinned) if isinstance(pinned, list) else int(pinned)

    # --- load

    def _try(self, choice: Choice) -> bool:
        """One short start; whether the loads were held."""
        return self._settle(choice, [self._test(choice, LEVELS[0], 0)], LEVELS[0].stage)

    def _claim(self, tried: Sequence[Choice], usual: Choice | None) -> None:
        """Measures the best again to the end and the untouched model beside them: in turn, in a new order each time."""
        best = sorted((c for c in tried if c is not usual), key=self._rank)[:CLAIMED]
        beside, plan = [c for c in tried if c is usual], LEVELS[1]
        while len(best) > 1 and self._left() < _FEWEST * self._round([*best, *beside], plan):
            best.pop()
        claimed = [*best, *beside]
        if self._left() < _FEWEST * self._round(claimed, plan):
            plan = replace(plan, queries=max(plan.queries, LEVELS[0].queries), starts=1)
        records: dict[str, list[dict[str, Any]]] = {c.candidate.key: [] for c in claimed}
        rng = np.random.default_rng(self._task.seed)
        for start in range(plan.starts):
            if start and self._left() < self._round(claimed, plan):
                self._say(f"no time for more than {start} of {plan.starts} starts")
                break
            for place in rng.permutation(len(claimed)):
                choice = claimed[int(place)]
                records[choice.candidate.key].append(self._test(choice, plan, start))
        for choice in claimed:
            self._settle(choice, records[choice.candidate.key], plan.stage)

    def _rank(self, choice: Choice) -> tuple[Any, ...]:
        metrics = self._runner.trials[choice.candidate.key].metrics
        return self._goals.shortfall(metrics), self._goals.costs(metrics)

    def _test(self, choice: Choice, plan: Level, start: int) -> dict[str, Any]:
        """Serves one choice, puts the loads on it, or finds in the ledger how that went."""
        loads = self._loads(choice, plan, start)
        key = digest(
            [self._runner.question(choice.candidate, "loaded"), [repr(load) for load in loads], plan.stage, start]
        )

        def work() -> dict[str, Any]:
            self._say(f"under load: {words_of(choice)}, start {start + 1} of {plan.starts}")
            begin, compiled = time.monotonic(), self._runner.compiled(choice.candidate)
            source = source_of(choice.serving, choice.profile, compiled, self._task.model.name)
            with measuring():
                test = put_under_load(source, loads, self._task.samples.path, self._rows)
            return {"reason": None, "test": test.to_json(), "seconds": round(time.monotonic() - begin, 3)}

        return self._kept("loaded", key, work)

    def _kept(self, kind: str, key: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `work` found, or why it failed, now or in an earlier run."""
        kept = self._ledger.latest(kind, key)
        if kept is not None and (not kept["reason"] or holds(kept)):
            return kept
        try:
            kept, again = once_more(work), False
        except (UsageError, DiskFull, NoResult, NoBackend):
            raise
        except PortolanError as error:
            kept, again = told(error), not lasting(error)
        if not again:
            self._ledger.append(kind, key, kept)
        return kept

    @property
    def _rows(self) -> list[int]:
        return list(self._task.samples.evaluation[:64])

    def _settle(self, choice: Choice, records: Sequence[Mapping[str, Any]], stage: str) -> bool:
        """Adds what was measured to the choice's trial; whether the loads were held."""
        candidate = choice.candidate
        trial = self._runner.trials.get(candidate.key) or self._begun(candidate)
        trial = replace(trial, seconds=trial.seconds + sum(kept.get("seconds", 0.0) for kept in records))
        failed = next((kept for kept in records if kept["reason"]), None)
        tests = [LoadResult.from_json(kept["test"]) for kept in records if not kept["reason"]]
        metrics = priced(measured(tests), self._task.price) if tests else {}
        reason = failed["reason"] if failed else unsustained(tests, self._goals)
        self.outcome.tests[candidate.key] = [run for test in tests for run in test.runs]
        if reason is None or candidate is self._task.live[0]:  # without a baseline there is nothing to compare with
            trial = trial.with_metrics(metrics, stage)
        else:
            trial = replace(trial, status="failed", reason=reason, metrics={}, log=(failed or {}).get("log", ""))
        shown = [f"{said(n)} {m.short}" for n, m in metrics.items() if n in self._goals.metrics]
        self._say("  ".join([f"#{trial.id} {words_of(choice)}", *shown, reason or self._verdict(trial)]))
        self._runner.add(candidate, trial)
        if reason is None:
            self._runner.usable(trial)
        return reason is None

    def _verdict(self, trial: Trial) -> str:
        return ", ".join(self._goals.unmet(trial.metrics)) or "met"

    def _begun(self, candidate: Candidate) -> Trial:
        """A new trial, with what is known of the same compiled model in one process."""
        unserved = self._runner.trials.get(alone(candidate).key)
        known = {} if unserved is None else everywhere(unserved.metrics)
        return replace(self._runner.new(candidate), metrics=known)

    def _loads(self, choice: Choice, plan: Level, start: int = 0) -> list[Load]:
        """What a start is to hold: the goals' loads, and once for each that is claimed MLPerf's other scenarios."""
        loads, seed = [], self._task.seed + start
        whole = plan.stage == LEVELS[-1].stage and start == 0
        for rate in self._goals.loads:
            longest = plan.longest
            queries = plan.queries if longest is None else max(20, min(plan.queries, round(rate * longest)))
            bound, share = asked_of(self._goals, rate)
            loads.append(Load("Server", queries, plan.seconds, rate, target=bound, percentile=share, seed=seed))
        if whole or {"throughput", "cost"} & set(self._goals.metrics):
            rate = choice.predicted["throughput"].value
            seconds = plan.seconds / OFFLINE
            loads += [Load("Offline", max(20, round(rate * seconds)), seconds, rate, seed=seed)] * OFFLINE
        if whole:
            one = choice.profile.seconds[1]
            loads.append(Load("SingleStream", *_STREAM, latency=one, seed=seed))
            loads.append(Load("MultiStream", *_STREAM, latency=one * STREAMS, seed=seed))
        return loads

    def _round(self, claimed: Sequence[Choice], plan: Level) -> float:
        """Seconds of one start of each."""
        return sum(self._estimate(choice, plan) for choice in claimed) / plan.starts

    def _estimate(self, choice: Choice, plan: Level) -> float:
        replicas = (choice.serving.replicas or (1, 1))[1]
        known = self._runner.trials.get(alone(choice.candidate).key)
        cold = known.metrics["cold_start"].value / 1e3 if known and "cold_start" in known.metrics else 1.0
        loads = [load for start in range(plan.starts) for load in self._loads(choice, plan, start)]
        return plan.starts * (_SETUP + cold * replicas) + sum(load.expected for load in loads)

    def _seconds(self, plan: Level, count: int) -> float:
        """About what `count` measurements take, judged by the baseline."""
        usual = self._usual(self._task.live[0]) if self.outcome.profiles else None
        if usual is None:
            return count * plan.starts * (_SETUP + 1.0 + plan.seconds)
        return count * self._estimate(usual, plan)
