"""Plain data of a study as typed, checked, display-safe values. Names in a study are hostile input."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from portolan.core.measurement import MARKS, Measurement
from portolan.core.recipe import Recipe, Step
from portolan.errors import UsageError

# Control characters break HTML parsers, bidirectional overrides make a name read as another one, and a lone surrogate
# cannot be written as UTF-8.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: Any) -> str:
    """`text` with characters that could damage or disguise it replaced by U+FFFD."""
    return _UNSAFE.sub("\ufffd", str(text))


def want(data: Any, key: str, kind: type | tuple[type, ...], where: str, default: Any = None) -> Any:
    """The value of `key`, or the default where it is missing or null.

    Raises:
        UsageError: it is of another kind.
    """
    value = data.get(key, default)
    if value is None:
        value = default
    if value is not None and not isinstance(value, kind):
        raise UsageError(f"`{key}` of the study has the wrong type", where=f"{where}.{key}", hint=HINT)
    return value


HINT = "give what `portolan optimize --json` printed"


def number(value: Any) -> float:
    """A number; NaN for anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def end(value: Any) -> float | None:
    """A finite number; None for anything else."""
    found = number(value)
    return found if math.isfinite(found) else None


def measurement(data: Any, where: str) -> Measurement:
    """A metric object of the contract.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(data, Mapping) or data.get("kind", "measured") not in MARKS:
        raise UsageError("a metric of the study cannot be read", where=where, hint=HINT)
    n = data.get("n")
    return Measurement(
        value=number(data.get("value")),
        unit=clean(data.get("unit") or ""),
        lo=end(data.get("lo")),
        hi=end(data.get("hi")),
        n=n if isinstance(n, int) else None,
        kind=data.get("kind", "measured"),
    )


def recipe(data: Any, where: str) -> Recipe:
    """A RECIPE object of the contract, without options that are None.

    Raises:
        UsageError: it is none.
    """
    found = Recipe.from_json(data if isinstance(data, Mapping) else {}, where=where)
    # None has no spelling in TOML and says the same as an absent option.
    kept = {k: v for k, v in found.options.items() if v is not None}
    steps = tuple(Step(s.name, {k: v for k, v in s.options.items() if v is not None}) for s in found.passes)
    return Recipe(steps, found.backend, kept, found.target, found.serving)
