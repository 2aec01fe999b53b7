"""What a study says of serving, read and checked: profiles, predictions, runs under load."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from portolan.core.measurement import Measurement
from portolan.core.recipe import Recipe
from portolan.errors import UsageError
from portolan.reports.checked import HINT, clean, end, measurement, number, recipe, want


@dataclass(frozen=True)
class Batch:
    """One size of a profile: seconds of a batch."""

    size: int
    seconds: Measurement


@dataclass(frozen=True)
class Choice:
    """A way to serve, with what was predicted of it; `trial` is the number of the trial that it became."""

    trial: int | None
    recipe: Recipe
    predicted: Mapping[str, Measurement]


@dataclass(frozen=True)
class Run:
    """One start of one load. Rates are per second, quantiles in ms by their share; `valid` is LoadGen's word."""

    trial: int
    scenario: str
    asked: float | None
    calls: int
    answered: int
    rate: float
    late: float
    valid: bool
    why: tuple[str, ...]
    quantiles: Mapping[str, float]


@dataclass(frozen=True)
class Serving:
    """Everything that a study says of serving."""

    profiles: Mapping[str, tuple[Batch, ...]] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()
    runs: tuple[Run, ...] = ()


def key(recipe: Recipe) -> str:
    """What a profile belongs to: the recipe without a way to serve it."""
    return Recipe(recipe.passes, recipe.backend, recipe.options, recipe.target).key


def read_serving(data: Mapping[str, Any] | None, where: str) -> Serving | None:
    """The `serving` of a study; None where nothing was served.

    Raises:
        UsageError: it is not what `optimize` writes, with the path of what does not fit.
    """
    if data is None:
        return None
    profiles = {}
    for i, item in enumerate(want(data, "profiles", list, where, [])):
        place = f"{where}.profiles[{i}]"
        batches = want(want(_table(item, place), "profile", Mapping, place, {}), "batches", Mapping, place, {})
        found = [Batch(_size(size, place), measurement(m, f"{place}.{clean(size)}")) for size, m in batches.items()]
        profiles[key(recipe(item.get("recipe"), place))] = tuple(sorted(found, key=lambda b: b.size))
    choices = [_choice(c, f"{where}.choices[{i}]") for i, c in enumerate(want(data, "choices", list, where, []))]
    runs = [_run(r, f"{where}.runs[{i}]") for i, r in enumerate(want(data, "runs", list, where, []))]
    return Serving(profiles, tuple(choices), tuple(runs))


def _table(data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise UsageError("a part of the study's serving is no table", where=where, hint=HINT)
    return data


def _size(text: Any, where: str) -> int:
    if not (isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 6 and int(text)):
        raise UsageError("a size of a profile is no whole number", where=where, hint=HINT)
    return int(text)


def _choice(data: Any, where: str) -> Choice:
    predicted = want(_table(data, where), "predicted", Mapping, where, {})
    trial = data.get("trial")
    return Choice(
        trial=trial if type(trial) is int else None,
        recipe=recipe(data.get("recipe"), where),
        predicted={clean(name): measurement(m, f"{where}.predicted.{clean(name)}") for name, m in predicted.items()},
    )


def _run(data: Any, where: str) -> Run:
    quantiles = want(_table(data, where), "quantiles", Mapping, where, {})
    values = {clean(share): number(value) for share, value in quantiles.items()}
    counts = [want(data, name, int, where, 0) for name in ("trial", "calls", "answered")]
    return Run(
        trial=counts[0],
        scenario=clean(data.get("scenario", "")),
        asked=end(data.get("asked")),
        calls=counts[1],
        answered=counts[2],
        rate=number(data.get("rate")),
        late=number(data.get("late")),
        valid=data.get("valid") is True,
        why=tuple(clean(word) for word in want(data, "why", list, where, [])),
        quantiles={share: value for share, value in values.items() if math.isfinite(value)},
    )
