"""The task of one search: everything that is decided before it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from portolan.core.backend import Backend
from portolan.core.goal import DEFAULT_OBJECTIVES, Goals
from portolan.core.measurement import load_of
from portolan.core.model import Model
from portolan.core.target import Target
from portolan.search.space import Candidate
from portolan.study.builder import Samples

#: Metrics of one process that a race decides, by their first word.
_RACED = ("latency", "cold_start")
#: Metrics without a load that serving decides: one process says little about them.
_SERVED = ("memory", "throughput", "cost")


@dataclass(frozen=True)
class Task:
    """What is to be done: everything a runner needs and does not decide.

    Attributes:
        served: whether the goals are about the model as it is served, so that serving is searched too.
        serving: the `serving` of the recipe file: what is pinned of it, or a range.
        price: USD that an hour of the target costs.
    """

    model: Model
    target: Target
    goals: Goals
    samples: Samples
    backends: Mapping[str, Backend]
    candidates: Sequence[Candidate]
    prior: Mapping[str, Mapping[str, float]]
    metric: Any
    flops: float | None
    seed: int
    command: str
    served: bool = False
    serving: Mapping[str, Any] = field(default_factory=dict)
    price: float | None = None

    @property
    def live(self) -> list[Candidate]:
        """What may be tried; the baseline first."""
        return [c for c in self.candidates if c.refused is None]

    @property
    def unserved(self) -> Goals:
        """What the search for recipes is to reach: where serving comes after it, what serving does not decide."""
        if not self.served:
            return self.goals
        goals = self.goals.unloaded
        limits = tuple(x for x in goals.limits if x.metric not in _SERVED)
        objectives = tuple(o for o in goals.objectives if o.metric != "cost")
        return Goals(limits, objectives or DEFAULT_OBJECTIVES)

    @property
    def raced(self) -> bool:
        """Whether the finalists race alone: not where only served models are compared, since load decides there, nor
        where nothing is timed.
        """
        if not self.target.timed:
            return False
        alone = [name for name in self.goals.metrics if load_of(name) is None]
        return not self.served or any(name.startswith(_RACED) for name in alone)
