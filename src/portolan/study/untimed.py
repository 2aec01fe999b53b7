"""A search on a target where nothing is timed: what is right and small is found there, not what is fast.

Every trial's outputs come from the target; they are compared with the untouched model's on this machine, so that what
the target's own arithmetic changes shows too. There is no race, since there is nothing to race for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from portolan.core.backend import Backend
from portolan.core.goal import Goals, parse_goal
from portolan.core.measurement import Measurement, Metrics, unloaded
from portolan.core.model import Model
from portolan.core.target import Target
from portolan.errors import UsageError
from portolan.passes._overflow import overflow
from portolan.passes._steps import WIDE_SUMS
from portolan.search.space import Candidate
from portolan.study import elsewhere
from portolan.study.budget import Spending
from portolan.study.builder import Compiled
from portolan.study.runner import Progress, Runner
from portolan.study.task import Task
from portolan.study.trial import Trial
from portolan.study.wanted import checked_goals
from portolan.study.workspace import Workspace

#: What ranks where nothing was said.
_USUAL = "min size"
#: Times that a trial has none of, shown as such.
_SHOWN = ("latency_p50", "latency_p95")


def goals_for(texts: Sequence[str], target: Target) -> Goals:
    """The goals, on a target that may have no time of its own.

    Raises:
        UsageError: as `checked_goals`; or a goal is about what cannot be measured there.
    """
    if target.timed:
        return checked_goals(texts)
    named = [parse_goal(text).metric for text in texts]
    if bad := next((name for name in named if unloaded(name) in elsewhere.UNTIMED), None):
        raise UsageError(
            f"`{unloaded(bad)}` is not measured on `{target.id}`: it is {target.kind}",
            hint="goals there are about outputs and size, such as `agreement >= 99%` or `min size`",
        )
    ranked = any(text.split()[:1] in (["min"], ["max"]) for text in texts)
    return checked_goals([*texts, *([] if ranked else [_USUAL])])


def only_what_differs(
    space: Sequence[Candidate], backends: Mapping[str, Backend], target: Target, fixed: Mapping[str, Any]
) -> list[Candidate]:
    """The space without options that only time tells apart; pinned ones stay."""
    if target.timed or fixed.get("options"):
        return list(space)
    usual = {name: backend.schema.check({}) for name, backend in backends.items()}
    return [
        c
        for c in space
        if c.refused is not None
        or c.recipe.options == usual[c.recipe.backend]
        or not backends[c.recipe.backend].exact(c.recipe.options)
    ]


class Untimed(Runner):
    """Runs a search on a target where nothing is timed."""

    def __init__(self, task: Task, workspace: Workspace, spending: Spending, progress: Progress) -> None:
        super().__init__(task, workspace, spending, progress)
        self._here = elsewhere.Here(workspace, task.model, task.samples, progress)

    def try_(self, candidate: Candidate, level: int) -> Trial:
        """Screens the candidate once: asking again would give the same answers."""
        del level
        return super().try_(candidate, 0)

    def _measure(self, candidate: Candidate, compiled: Compiled, level: int) -> Metrics:
        del candidate, level
        signature = self.task.model.signature
        return {
            "size": Measurement.of("size", compiled.size),
            "resident": Measurement.of("resident", compiled.resident),
            **elsewhere.judged(compiled, self._here, self.task.samples, signature, self.task.metric),
        }

    def _answers(self, candidate: Candidate, kept: Mapping[str, Any]) -> bool:
        return kept["reason"] is None or super()._answers(candidate, kept)

    def _known_ceilings(self) -> Mapping[str, Any]:
        return {}


def runner(task: Task, workspace: Workspace, spending: Spending, progress: Progress) -> Runner:
    """What runs the search on the task's target."""
    return (Runner if task.target.timed else Untimed)(task, workspace, spending, progress)


def told(result: dict[str, Any], target: Target) -> dict[str, Any]:
    """The result with a null for each time that was not measured, and a note that says why."""
    if target.timed:
        return result
    for trial in (*result["trials"], *(result[role] for role in ("baseline", "best", "closest") if result[role])):
        if trial["status"] == "ok":
            trial["metrics"] = elsewhere.absent(trial["metrics"], _SHOWN)
    return result | {"notes": [*result.get("notes", ()), elsewhere.reason(target)]}


def hazards(model: Model, target: Target) -> list[str]:
    """What to know of a model before it is shipped to other machines than `target`, where it was tried."""
    if target.arch == "x86_64" and not target.has(*WIDE_SUMS):
        return []  # where it could overflow, it was measured
    found = overflow(model)
    return [f"{found}: `portolan pack STUDY -t NAME` asks one that was added"] if found.wide else []
