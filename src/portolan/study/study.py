"""Study: what a search under goals found. Frozen; the ledger holds the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portolan.errors import GoalsNotMet, NoResult
from portolan.study.trial import Trial


@dataclass(frozen=True)
class Study:
    """The result of `optimize`.

    Attributes:
        folder: where the ledger, the artefacts and the compiled recipes lie.
        data: the object of the contract, with everything the report shows.
    """

    folder: Path
    data: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.data["name"])

    @property
    def goals(self) -> list[str]:
        """The goals as texts."""
        return list(self.data["goals"])

    @property
    def met(self) -> bool:
        """Whether a trial met every limit."""
        return bool(self.data["met"])

    @property
    def trials(self) -> list[Trial]:
        """Every trial, refused ones included."""
        return [Trial.from_json(t) for t in self.data["trials"]]

    @property
    def baseline(self) -> Trial:
        """The untouched model on the default runtime."""
        return Trial.from_json(self.data["baseline"])

    @property
    def best(self) -> Trial:
        """The best trial that meets every limit.

        Raises:
            GoalsNotMet: none does; the error carries the closest one.
            NoResult: none gave a valid result.
        """
        if self.data["best"] is not None:
            return Trial.from_json(self.data["best"])
        if self.closest is None:
            raise NoResult("no trial gave a valid result", hint="give it more time: --budget")
        raise GoalsNotMet(
            f"no trial met {' and '.join(f'`{g}`' for g in self.goals)}",
            closest=self.closest,
            hint=f"closest: trial {self.closest.id} ({self.closest.reason}); loosen a limit, or add time with --budget",
        )

    @property
    def closest(self) -> Trial | None:
        """The trial nearest to the goals when none met them."""
        closest = self.data["closest"]
        return None if closest is None else Trial.from_json(closest)

    def to_json(self) -> dict[str, Any]:
        """The object of the contract."""
        return dict(self.data)

    def __repr__(self) -> str:
        verdict = f"best {self.best!r}" if self.met else "goals not met"
        return f"Study({self.name!r}, {len(self.data['trials'])} trials, {verdict})"

    def _repr_html_(self) -> str:
        from html import escape

        rows = []
        for trial in self.trials:
            if trial.status != "ok":
                continue
            star = "★" if self.met and trial.id == self.data["best"]["id"] else ""
            cells = [star, str(trial.id), str(trial.recipe), trial.recipe.backend]
            cells += [str(trial.metrics[m]) if m in trial.metrics else "-" for m in ("latency_p50", "size")]
            rows.append("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>")
        head = "<tr><th></th><th>#</th><th>recipe</th><th>backend</th><th>latency p50</th><th>size</th></tr>"
        return f"<table><caption>{escape(repr(self))}</caption>{head}{''.join(rows)}</table>"
