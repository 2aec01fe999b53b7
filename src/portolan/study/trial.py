"""A trial: one recipe, and everything that became known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from portolan.core.labels import label
from portolan.core.measurement import Measurement, Metrics
from portolan.core.plain import html_table
from portolan.core.recipe import Recipe

Status = Literal["ok", "failed", "refused"]


@dataclass(frozen=True)
class Trial:
    """One recipe and its result.

    Attributes:
        id: its number in the study.
        reason: why it failed, was refused, or does not meet the goals; None when there is nothing to say.
        pareto: no other trial is better in every metric that the goals name.
        met: every limit holds.
        stages: how far it came: `screened`, `raced`; served, `tried`, `loaded`.
        samples: milliseconds of each inference, per process start.
        log: the end of what its worker printed, when it failed.
    """

    id: int
    recipe: Recipe
    status: Status
    reason: str | None = None
    metrics: Metrics = field(default_factory=dict)
    pareto: bool = False
    met: bool = False
    seconds: float = 0.0
    stages: tuple[str, ...] = ()
    command: str | None = None
    samples: tuple[tuple[float, ...], ...] = ()
    log: str = ""

    def to_json(self) -> dict[str, Any]:
        """The TRIAL object of the contract."""
        return {
            "id": self.id,
            "recipe": self.recipe.to_json(),
            "label": label(self.recipe),
            "status": self.status,
            "reason": self.reason,
            "metrics": {name: m.to_json() for name, m in self.metrics.items()},
            "pareto": self.pareto,
            "met": self.met,
            "seconds": round(self.seconds, 3),
            "stages": list(self.stages),
            "command": self.command,
            "log": self.log or None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        """Reads what `to_json` wrote."""
        return cls(
            id=data["id"],
            recipe=Recipe.from_json(data["recipe"]),
            status=data["status"],
            reason=data["reason"],
            # A null says that nobody can measure it there.
            metrics={name: Measurement(**m) for name, m in data["metrics"].items() if m["value"] is not None},
            pareto=data["pareto"],
            met=data["met"],
            seconds=data["seconds"],
            stages=tuple(data["stages"]),
            command=data["command"],
            log=data.get("log") or "",
        )

    def with_metrics(self, metrics: Metrics, stage: str) -> Trial:
        """The trial with newer metrics over older ones."""
        stages = self.stages if stage in self.stages else (*self.stages, stage)
        return replace(self, metrics={**self.metrics, **metrics}, stages=stages)

    def _repr_html_(self) -> str:
        rows = {"recipe": self.recipe, "backend": self.recipe.backend, "status": self.status}
        why = {"reason": self.reason} if self.reason else {}
        measured = {name: f"{metric} {metric.kind}" for name, metric in self.metrics.items()}
        return html_table(f"Trial {self.id}", {**rows, **why, **measured})

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={self.metrics[name]}" for name in ("latency_p50", "size") if name in self.metrics)
        return f"Trial({self.id}, {self.recipe}, {self.recipe.backend}, {self.status}{', ' if shown else ''}{shown})"
