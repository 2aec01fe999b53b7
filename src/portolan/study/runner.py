"""The runner: carries out what the search proposes, writes every result down, races the finalists, and decides.

Each result lies in the ledger under the hash of what produced it, so a repeated or resumed command asks the search the
same questions and finds the answers already there.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from portolan.core import registry
from portolan.core.backend import on_processor
from portolan.core.data import timed
from portolan.core.measurement import METRICS, Measurement, Metrics
from portolan.core.model import Model
from portolan.core.recipe import digest
from portolan.errors import CannotHelp, DiskFull, NoResult, PortolanError, UsageError
from portolan.measure import roofline
from portolan.measure.lock import measuring
from portolan.measure.result import Race
from portolan.measure.result import Samples as Readings
from portolan.passes._graphs import quantized
from portolan.search.searcher import Searcher
from portolan.search.space import Candidate
from portolan.study import ceilings, finals
from portolan.study.ahead import build_ahead
from portolan.study.budget import BudgetOver, Spending
from portolan.study.builder import Builder, Compiled, holds, once_more, told, versions_of_passes
from portolan.study.pace import BaselineLost, Pace, baseline_may_die
from portolan.study.probe import Outputs, Session, broken, judge, reference
from portolan.study.reserve import Reserve
from portolan.study.task import Task
from portolan.study.trial import Trial
from portolan.study.words import brief, described, reproduce
from portolan.study.workspace import Workspace

Progress = Callable[[str], None]
Result = TypeVar("Result")
#: Seconds of timed blocks per fidelity level, and process starts.
LEVELS = ((0.4, 1), (0.8, 2))
#: Samples on which outputs are compared with those of the same numerics.
_FEW = 4


class Runner:
    """Runs one search to its end. `finish` may be called at any time after `prepare`.

    Args:
        task: what to do.
        workspace: where results go.
        spending: the budget.
        progress: told one line at a time.
    """

    def __init__(self, task: Task, workspace: Workspace, spending: Spending, progress: Progress) -> None:
        self.task, self._workspace, self.spending, self.say = task, workspace, spending, progress
        self.ledger = workspace.ledger
        self._builder = Builder(workspace, task.model, task.target, task.backends, task.samples)
        self.feeds = timed(task.samples.data, task.samples.evaluation, task.model.signature)
        self._searcher = Searcher(task.candidates, task.unserved, seed=task.seed, prior=task.prior)
        self._quality: dict[str, Metrics] = {}
        self._reference: tuple[tuple[int, ...], Outputs] | None = None
        self._pace: Pace | None = None
        self._race: Race | None = None
        self._first: float | None = None
        self.trials: dict[str, Trial] = {}
        self._reserve = Reserve(spending, self._searcher, self.trials, self._entrants if task.raced else None)
        self._ceilings = self._known_ceilings()

    # --- the search

    def prepare(self) -> None:
        """Builds and measures the baseline.

        Raises:
            NoResult: the untouched model does not run on the default runtime, so there is nothing to compare with.
        """
        trial = self.try_(self.task.live[0], 0)
        self.say(f"baseline  {brief(trial.metrics)}")

    def build_ahead(self, jobs: int) -> None:
        """Builds what the search is sure to ask for soon in `jobs` processes, before anything else is timed."""
        if jobs > 1:
            self.close()
            build_ahead(self._builder, self.task.live, jobs, lambda: self.spending.search_over, self.say)

    def _no_baseline(self, reason: str | None) -> NoResult:
        return NoResult(
            f"the untouched model does not run on `{self.task.live[0].recipe.backend}`: {reason}",
            hint="portolan inspect MODEL shows what it needs; portolan doctor what this machine has",
        )

    def search(self) -> None:
        """Tries what the search proposes until it stops or the budget is spent."""
        while not self.spending.search_over and not self._reserve.due:
            proposal = self._searcher.ask(closing=self.spending.closing)
            if proposal is None:
                break
            self.spending.count()
            before = self.trials[proposal.candidate.key].seconds if proposal.candidate.key in self.trials else 0.0
            try:
                with self._reserve.kept(proposal.candidate), self._builder.within(self._reserve.left):
                    trial = self.try_(proposal.candidate, proposal.level)
            except BudgetOver:
                break
            failure = trial.reason if trial.status == "failed" else None
            metrics = None if failure else trial.metrics
            self._searcher.tell(proposal.candidate, proposal.level, metrics, trial.seconds - before, failure)
            if failure and (dead := self._builder.failing(proposal.candidate.recipe.passes)):
                self._searcher.rule_out(dead, failure)
            self._tell(trial)
        self.close()

    def race(self) -> None:
        """Races the finalists, the baseline and every exact default, in fresh processes."""
        if not self.task.raced:
            return
        chosen = self._entrants()
        while len(chosen) > 2 and finals.seconds(chosen, self.trials) > self.spending.left:
            chosen.pop()  # the least promising: fewer starts than five could claim nothing
        key = digest([self.question(c, "race") for c in chosen])
        kept = self.ledger.latest("race", key)
        if kept is None:
            kept = self._once_more(lambda: self._run_race(chosen))
            self.ledger.append("race", key, kept)
        self._race, more = finals.read(kept)
        for candidate in chosen:
            trial = finals.settled(self.trials[candidate.key], self._race, more.get(candidate.key, {}))
            if reason := self._unbelievable(candidate, trial.metrics):
                trial = replace(trial, status="failed", reason=reason, metrics={})
            self.add(candidate, trial)

    def _run_race(self, chosen: Sequence[Candidate]) -> dict[str, Any]:
        least = 23 if "latency_p99" in self.task.goals.metrics else 1
        race = finals.Finals(self.compiled, self.feeds, least, self.say)
        with baseline_may_die():  # the others' failures are the race's results
            return race.run(chosen, self.trials, self.spending, self.task.seed, self.task.target.cores)

    def finalists(self, most: int) -> list[Candidate]:
        """The most promising candidates so far."""
        return self._searcher.finalists(most)

    def _entrants(self) -> list[Candidate]:
        return finals.entrants(self.task.live, self.finalists(finals.FINALISTS), self.trials)

    def close(self) -> None:
        """Ends the process that sets the pace."""
        if self._pace is not None:
            self._pace.close()
            self._pace = None

    @property
    def skipped(self) -> dict[str, int]:
        """How many recipes were not tried because of what was learnt of others, by reason."""
        return dict(Counter(c.refused for c in self._searcher.skipped() if c.refused is not None))

    @property
    def untried(self) -> list[dict[str, Any]]:
        """The recipe of each trial that was cut short and of each backend whose turn did not come, with the reason."""
        return self._reserve.untried

    @property
    def first_seconds(self) -> float | None:
        """Seconds until the first trial that met every limit."""
        return None if self._first is None else round(self._first, 2)

    @property
    def outcome(self) -> Race | None:
        """The final race, once it was run."""
        return self._race

    # --- one trial

    def try_(self, candidate: Candidate, level: int) -> Trial:
        """Screens the candidate, or finds in the ledger how that went before."""
        key = self.question(candidate, level)
        kept = self.ledger.latest("screened", key)
        if kept is None or not self._answers(candidate, kept):
            kept = self._screen(candidate, level)
            # A baseline that failed is asked again by the next run: without it there is nothing else to keep.
            if kept["reason"] is None or candidate is not self.task.live[0]:
                self.ledger.append("screened", key, kept)
        trial = self.trials.get(candidate.key) or self.new(candidate)
        metrics = {name: Measurement(**m) for name, m in kept["metrics"].items()}
        quality = {n: m for n, m in metrics.items() if METRICS[n].quality}
        if quality and not broken(quality, candidate.exact):
            self._quality.setdefault(candidate.numerics, quality)
        trial = trial.with_metrics(metrics, "screened")
        if reason := kept["reason"] or broken(metrics, candidate.exact) or self._unbelievable(candidate, metrics):
            trial = replace(trial, status="failed", reason=reason, metrics={}, log=kept.get("log", ""))
        # The seconds it took when it ran: the search weighs cost, and a resumed one must weigh the same.
        trial = replace(trial, seconds=trial.seconds + kept["seconds"])
        return self.add(candidate, trial)

    def add(self, candidate: Candidate, trial: Trial) -> Trial:
        """Puts the trial on the list; without a baseline nothing can be said of the others."""
        if trial.status == "failed" and candidate is self.task.live[0]:
            raise self._no_baseline(trial.reason)
        self.trials[candidate.key] = trial
        return trial

    def new(self, candidate: Candidate) -> Trial:
        """A trial of which nothing is known yet, with its number."""
        number = self.ledger.number("trial", candidate.key, {"recipe": candidate.recipe.to_json()})
        return Trial(number, candidate.recipe, "ok", command=reproduce(self.task, candidate))

    def _screen(self, candidate: Candidate, level: int) -> dict[str, Any]:
        begin = time.monotonic()
        metrics: Metrics = {}
        failure: dict[str, Any] = {"reason": None}
        try:
            metrics = self._once_more(lambda: self._measure(candidate, self.compiled(candidate), level))
        except CannotHelp as error:
            failure = told(error)
        except (UsageError, DiskFull, NoResult):
            raise
        except PortolanError as error:
            failure = told(error)
        return {
            "metrics": {name: m.to_json() for name, m in metrics.items()},
            **failure,
            "seconds": round(time.monotonic() - begin, 3),
        }

    def _answers(self, candidate: Candidate, kept: Mapping[str, Any]) -> bool:
        """Whether what was kept answers today's question: the limits still stand, and it was timed if it may matter.

        Under other goals its outputs may have missed a limit, so that it was not timed.
        """
        metrics = {name: Measurement(**m) for name, m in kept["metrics"].items()}
        if kept["reason"] is not None:
            return holds(kept)
        return "latency_p50" in metrics or self._pointless(candidate, metrics)

    def _once_more(self, work: Callable[[], Result]) -> Result:
        """Does `work`; a second time if a process of the baseline died under it, or a process was killed from outside.

        Raises:
            NoResult: the baseline died twice.
        """
        try:
            return once_more(work)
        except BaselineLost:
            self.close()
        try:
            return work()
        except BaselineLost as lost:
            self.close()
            raise self._no_baseline(str(lost)) from lost

    def _measure(self, candidate: Candidate, compiled: Compiled, level: int) -> Metrics:
        seconds, starts = LEVELS[min(level, len(LEVELS) - 1)]
        metrics: Metrics = {
            "size": Measurement.of("size", compiled.size),
            "resident": Measurement.of("resident", compiled.resident),
            "compile_time": Measurement.of("compile_time", compiled.seconds * 1e3, n=1),
        }
        blocks: list[np.ndarray] = []
        for start in range(starts):
            least = 20 if "latency_p95" in self.task.goals.metrics else 1
            session = Session(compiled, self.feeds, least=least, left=self._reserve.left)
            try:
                if start == 0:
                    metrics["cold_start"] = Measurement.of("cold_start", session.cold_start_ms, n=1)
                    metrics |= self._judged(candidate, session)
                    if self._pointless(candidate, metrics):
                        return metrics
                pace = None if candidate is self.task.live[0] else self._pacemaker()
                with measuring():
                    blocks.append(session.block(seconds) if pace is None else pace.against(session, seconds))
                    if start == 0 and "throughput" in self.task.goals.metrics:
                        one = float(np.median(blocks[0])) / 1e3
                        metrics["throughput"] = session.throughput(self.task.target.cores, one)
                metrics["memory"] = Measurement.of("memory", session.peak_memory(), n=1)
            finally:
                session.close()
        return metrics | Readings([[block] for block in blocks]).metrics()

    def _judged(self, candidate: Candidate, session: Session) -> Metrics:
        """Quality of the candidate's numerics: judged once, on the first candidate that has them.

        The others answer a few rows, so that a runtime that is wrong under some options only is found out. So does the
        baseline: the outputs that the others are compared with are its own.
        """
        known = self._quality.get(candidate.numerics)
        if known is None and candidate is self.task.live[0]:
            known = self._compared(*self._original())
        if known is not None and not self._differs(session, known):
            self._quality.setdefault(candidate.numerics, known)
            return known
        mine = self._judge(session)
        if known is None and not broken(mine, candidate.exact):
            self._quality[candidate.numerics] = mine
        return mine

    def _differs(self, session: Session, known: Metrics) -> bool:
        """Whether a few outputs are further from the original's than what is known of the same numerics."""
        rows, outputs = self._original()
        few = rows[:_FEW]
        wanted = {n: a[: len(few)] if len(a) == len(rows) else a for n, a in outputs.items()}
        found = judge(session.outputs(self.task.samples, few, self.task.model.signature), wanted, None, None, None)
        return not found["max_rel_error"].value <= 2 * known["max_rel_error"].value + 1e-5

    def _pointless(self, candidate: Candidate, metrics: Metrics) -> bool:
        """Whether the outputs are wrong, or miss a limit: then how fast they come is nobody's question.

        The baseline is always timed: the others are compared with it.
        """
        if broken(metrics, candidate.exact):
            return True
        limits = [limit for limit in self.task.unserved.limits if METRICS[limit.metric].quality]
        missed = any(limit.metric in metrics and not limit.holds(metrics[limit.metric]) for limit in limits)
        return missed and candidate is not self.task.live[0]

    def _judge(self, session: Session) -> Metrics:
        rows, _ = self._original()
        return self._compared(rows, session.outputs(self.task.samples, rows, self.task.model.signature))

    def _compared(self, rows: Sequence[int], outputs: Outputs) -> Metrics:
        """How outputs for these rows, which are the original's, compare with its own and with labels."""
        wanted = self._original()[1]
        labels = self.task.samples.data.labels
        chosen = None if labels is None else labels[list(rows)]
        return judge(outputs, wanted, chosen, self.task.metric, self.task.model.signature.outputs)

    def _original(self) -> tuple[tuple[int, ...], Outputs]:
        """The evaluation rows and the untouched model's outputs on the default runtime."""
        if self._reference is None:
            with baseline_may_die():
                session = Session(self.compiled(self.task.live[0]), self.feeds)
                try:
                    self._reference = reference(session, self.task.samples, self.task.model.signature, self.say)
                finally:
                    session.close()
        return self._reference

    def _pacemaker(self) -> Pace:
        if self._pace is None:
            with baseline_may_die():
                self._pace = Pace(Session(self.compiled(self.task.live[0]), self.feeds))
        return self._pace

    def compiled(self, candidate: Candidate) -> Compiled:
        """What a candidate's processes load."""
        return self._builder.compiled(candidate.recipe)

    def artefact(self, trial: Trial) -> Model:
        """The model that a trial's passes gave."""
        return self._builder.artefact(trial.recipe.passes)

    def question(self, candidate: Candidate, level: int | str) -> str:
        """Hash of everything that decides the answer to "how does this candidate do"."""
        backend = self.task.backends[candidate.recipe.backend]
        task = self.task
        return digest(
            [
                task.model.sha256, task.samples.data.sha256, task.target.fingerprint, candidate.key, level,
                backend.versions(), versions_of_passes(candidate.recipe.passes), getattr(task.metric, "sha256", None),
                sorted({"throughput", "latency_p95"} & set(task.goals.metrics)),
            ]
        )  # fmt: skip

    # --- belief

    def _known_ceilings(self) -> Mapping[str, Any]:
        return ceilings.known(self.task.target, self.ledger)

    def _unbelievable(self, candidate: Candidate, metrics: Metrics) -> str | None:
        if self.task.flops is None or "latency_p50" not in metrics or not on_processor(candidate.recipe.options):
            return None
        model, features = self.task.model, self.task.target.features
        integers = quantized(replace(model, features=(*model.features, *candidate.features)))
        ms = metrics["latency_p50"].value
        return roofline.believable(ms, self._work(candidate), self._ceilings, features, integers=integers)

    def _work(self, candidate: Candidate) -> float:
        """The operations of an inference at least, by what its passes leave of the model's."""
        model, steps = self.task.model, candidate.recipe.passes
        left = (registry.pass_(step.name).left(step.options, model, self.feeds) for step in steps)
        return (self.task.flops or 0.0) * math.prod(left)

    # --- words

    def usable(self, trial: Trial) -> None:
        """Says when the first trial met every limit."""
        if self._first is None and not self.task.goals.unmet(trial.metrics):
            self._first = self.spending.seconds
            self.say(f"first usable answer after {self._first:.1f} s: trial {trial.id}, {brief(trial.metrics)}")

    def _tell(self, trial: Trial) -> None:
        unmet = self.task.unserved.unmet(trial.metrics) if trial.status == "ok" else [trial.reason or "failed"]
        if not unmet and not self.task.served:
            self.usable(trial)
        self.say(described(trial, unmet, self.task.served))
