"""Reads the study JSON of the contract into typed, checked, display-safe values. Names in a study are hostile input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from portolan.core.goal import Limit, Objective, parse_goal
from portolan.core.measurement import METRICS, Measurement
from portolan.core.recipe import Recipe
from portolan.errors import UsageError
from portolan.reports.checked import HINT, clean, end, measurement, number, recipe, want
from portolan.reports.served import Serving, read_serving

_STATUSES = ("ok", "failed", "refused")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A recipe, as shown."""

    recipe: Recipe
    label: tuple[str, str] | None = None

    @property
    def passes(self) -> str:
        """The chain of passes; `-` for the untouched model."""
        return clean(self.recipe if self.label is None else self.label[0])

    @property
    def backend(self) -> str:
        """The backend's name."""
        return clean(self.recipe.backend)

    @property
    def options(self) -> str:
        """The backend's options on one line, and how it is served; where the study says which are at their defaults,
        those are left out.
        """
        if self.label is not None:
            said = self.label[1].removeprefix(self.recipe.backend).strip("()")
        else:
            said = ", ".join(f"{k}={v}" for k, v in self.recipe.options.items())
        return clean("; ".join(filter(None, (said, str(self.recipe.served) if self.recipe.serving else ""))))

    @property
    def title(self) -> str:
        """The recipe in words, names in backticks."""
        passes = "the untouched model" if not self.recipe.passes else f"`{_plain(self.passes)}`"
        options = f" ({_plain(self.options)})" if self.options else ""
        return f"{passes} on `{_plain(self.backend)}`{options}"


@dataclass(frozen=True, kw_only=True)
class Trial(Choice):
    """One trial, as shown."""

    id: int
    status: str
    reason: str | None
    metrics: dict[str, Measurement]
    pareto: bool
    met: bool
    seconds: float | None = None
    command: str | None = None
    stages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Untried(Choice):
    """A recipe that the budget left no time for."""

    reason: str


@dataclass(frozen=True)
class Ratio:
    """Time of arm `a` over time of arm `b` from one interleaved race: below 1, `a` is faster."""

    a: str
    b: str
    metric: str
    ratio: float
    lo: float
    hi: float
    verdict: str


@dataclass(frozen=True)
class Noise:
    """The A/A arm: the ratio of two identical arms, and whether it allows claims."""

    aa_ratio: float
    lo: float
    hi: float
    ok: bool


@dataclass(frozen=True)
class Reading:
    """A study, checked. `shown` is the best trial, or the closest one when no trial met every limit."""

    name: str
    goals: tuple[Limit | Objective, ...]
    claims_met: bool
    trials: tuple[Trial, ...]
    baseline: Trial | None
    best: Trial | None
    closest: Trial | None
    ratios: tuple[Ratio, ...] = ()
    noise: Noise | None = None
    labels: bool = False
    synthetic: bool = False
    evaluation: int | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    command: str = ""
    created: str = ""
    seconds: float | None = None
    measurements: int | None = None
    serving: Serving | None = None
    untried: tuple[Untried, ...] = ()

    @property
    def shown(self) -> Trial | None:
        """What the verdict is about."""
        return self.best or self.closest

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The goals that are hard limits."""
        return tuple(g for g in self.goals if isinstance(g, Limit))

    @property
    def met(self) -> bool:
        """Whether the study says so and its own numbers show it."""
        return self.claims_met and self.best is not None and not self.unmet(self.best)

    def unmet(self, trial: Trial) -> list[str]:
        """A reason for each limit that the trial's numbers do not meet."""
        return [why for limit in self.limits if (why := limit.reason(trial.metrics.get(limit.metric))) is not None]

    @property
    def metric_names(self) -> list[str]:
        """Metrics that at least one trial has, in the contract's order; never accuracy where there are no labels."""
        present = {name for trial in self.trials for name in trial.metrics}
        return [n for n in METRICS if n in present] + sorted(present - METRICS.keys())


def _plain(text: str) -> str:
    return text.replace("`", "'")


def _stage(stage: Any) -> str:
    if not isinstance(stage, Mapping):
        return clean(stage)
    name = stage.get("name") or stage.get("stage") or ""
    rest = ", ".join(f"{k} {_compact(v)}" for k, v in stage.items() if k not in ("name", "stage"))
    return clean(f"{name}: {rest}" if name and rest else name or rest)


def _compact(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _trial(data: Any, where: str, labels: bool) -> Trial:
    if not isinstance(data, Mapping) or not isinstance(data.get("id"), int):
        raise UsageError("a trial of the study has no `id`", where=where, hint=HINT)
    if data.get("status") not in _STATUSES:
        raise UsageError(f"a trial's `status` is none of {', '.join(_STATUSES)}", where=f"{where}.status", hint=HINT)
    metrics = {
        clean(name): measurement(metric, f"{where}.metrics.{name}")
        for name, metric in want(data, "metrics", Mapping, where, {}).items()
        if labels or name not in ("accuracy", "accuracy_drop")
    }
    reason, command = data.get("reason"), data.get("command")
    return Trial(
        id=data["id"],
        recipe=recipe(data.get("recipe"), f"{where}.recipe"),
        status=data["status"],
        reason=None if reason is None else clean(reason),
        metrics=metrics,
        pareto=bool(data.get("pareto")),
        met=bool(data.get("met")),
        seconds=end(data.get("seconds")),
        command=None if command is None else clean(command),
        stages=tuple(_stage(stage) for stage in want(data, "stages", (list, tuple), where, ())),
        label=_label(want(data, "label", Mapping, where, {})),
    )


def _untried(data: Any, where: str) -> Untried:
    if not isinstance(data, Mapping) or not isinstance(data.get("reason"), str):
        raise UsageError("a recipe that was not tried has no `reason`", where=where, hint=HINT)
    return Untried(
        recipe=recipe(data.get("recipe"), f"{where}.recipe"),
        label=_label(want(data, "label", Mapping, where, {})),
        reason=clean(data["reason"]),
    )


def _label(data: Mapping[str, Any]) -> tuple[str, str] | None:
    passes, backend = data.get("passes"), data.get("backend")
    return (passes, backend) if isinstance(passes, str) and isinstance(backend, str) else None


def _goal(text: Any, where: str) -> Limit | Objective:
    if not isinstance(text, str):
        raise UsageError("a goal of the study is not text", where=where, hint=HINT)
    return parse_goal(text)


def _samples(data: Any, where: str) -> dict[str, list[list[float]]]:
    kept = {}
    for key, starts in data.items():
        if not isinstance(starts, list) or not all(isinstance(start, list) for start in starts):
            raise UsageError("samples are a list of numbers per start", where=f"{where}.{clean(key)}", hint=HINT)
        kept[str(key)] = [[v for x in start if math.isfinite(v := number(x))] for start in starts]
    return kept


def read(study: Any, where: str = "$") -> Reading:
    """Checks one study object and reads it.

    Args:
        study: the object that `optimize --json` prints.
        where: its place, for errors.

    Raises:
        UsageError: it is not a study, with the path of what does not fit.
    """
    if not isinstance(study, Mapping) or not isinstance(study.get("trials"), (list, tuple)):
        raise UsageError("this is not a study: it has no list of `trials`", where=where, hint=HINT)
    data = want(study, "data", Mapping, where, {})
    labels = bool(data.get("labels"))
    listed = tuple(_trial(trial, f"{where}.trials[{i}]", labels) for i, trial in enumerate(study["trials"]))
    named = {
        role: None if study.get(role) is None else _trial(study[role], f"{where}.{role}", labels)
        for role in ("baseline", "best", "closest")
    }
    # One entry per id, so that the table and the verdict can never show different numbers for the same trial.
    trials = {t.id: t for t in listed} | {t.id: t for t in named.values() if t is not None}
    noise, evaluation = study.get("noise"), data.get("evaluation")
    return Reading(
        name=clean(study.get("name") or study.get("study") or "study"),
        goals=tuple(_goal(g, f"{where}.goals[{i}]") for i, g in enumerate(want(study, "goals", list, where, []))),
        claims_met=bool(study.get("met")),
        trials=tuple(trials.values()),
        ratios=tuple(_ratio(r) for r in want(study, "ratios", list, where, []) if isinstance(r, Mapping)),
        noise=_noise(noise) if isinstance(noise, Mapping) else None,
        labels=labels,
        synthetic=bool(data.get("synthetic")),
        evaluation=evaluation if isinstance(evaluation, int) else None,
        model=want(study, "model", Mapping, where, {}),
        target=want(study, "target", Mapping, where, {}),
        environment=want(study, "environment", Mapping, where, {}),
        data=data,
        samples=_samples(want(study, "samples", Mapping, where, {}), f"{where}.samples"),
        command=clean(study.get("command") or ""),
        created=clean(study.get("created") or ""),
        seconds=end(study.get("seconds")),
        measurements=study["measurements"] if isinstance(study.get("measurements"), int) else None,
        serving=read_serving(want(study, "serving", Mapping, where), f"{where}.serving"),
        untried=tuple(
            _untried(u, f"{where}.untried[{i}]") for i, u in enumerate(want(study, "untried", list, where, []))
        ),
        **named,
    )


def _ratio(data: Any) -> Ratio:
    a, b, metric, verdict = (clean(data.get(key, "")) for key in ("a", "b", "metric", "verdict"))
    ratio, lo, hi = (number(data.get(key)) for key in ("ratio", "lo", "hi"))
    return Ratio(a, b, metric, ratio, lo, hi, verdict)


def _noise(data: Mapping[str, Any]) -> Noise:
    return Noise(number(data.get("aa_ratio")), number(data.get("lo")), number(data.get("hi")), bool(data.get("ok")))
