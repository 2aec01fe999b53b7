"""The fake backend's script: what each of its variants does, read from TOML or JSON."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from portolan.errors import UnknownName, UsageError

VARIABLE = "PORTOLAN_FAKE"
STAGES = ("compile", "load", "run", "time")
#: What a variant can do, and when it does it unless the script says otherwise.
BEHAVIOURS = {
    "ok": "run",
    "segfault": "run",
    "abort": "run",
    "exit": "run",
    "hang": "run",
    "leak": "run",
    "print": "run",
    "raise": "run",
    "wrong": "run",
    "nan": "run",
    "slow_load": "load",
    "fallback": "load",
}
#: Behaviours that mean something at some stages only.
_ONLY = {"wrong": ("run", "time"), "nan": ("run", "time"), "slow_load": ("load",), "fallback": ("load",)}


@dataclass(frozen=True)
class Variant:
    """One scripted runtime.

    Attributes:
        latency_ms: how long a call takes.
        row_ms: how much longer for each row of a batch after the first.
        jitter: spread of the latency: standard deviation of its logarithm.
        starts: a factor on the latency for each process start in turn, over and over.
        behaviour: one of BEHAVIOURS.
        when: the stage at which it misbehaves. `time` is a call with inputs it has seen: timing repeats them.
        error: noise on float outputs, as a share of their standard deviation; above 0 the variant is not exact.
        seconds: how long compiling takes, and loading with `slow_load`.
        size: bytes that its saved form is padded with.
        limit_mb: where `leak` gives up with a MemoryError, in case nobody stops it.
    """

    latency_ms: float = 1.0
    row_ms: float = 0.0
    jitter: float = 0.0
    starts: tuple[float, ...] = ()
    behaviour: str = "ok"
    when: str = "run"
    error: float = 0.0
    seconds: float = 0.0
    size: int = 0
    limit_mb: int = 10240


@dataclass(frozen=True)
class Script:
    """The variants by name, and what each produced feature does to their latency (a factor)."""

    variants: Mapping[str, Variant]
    speed: Mapping[str, float] = field(default_factory=dict)

    def variant(self, name: str) -> Variant:
        """The variant of that name.

        Raises:
            UnknownName: the script has none.
        """
        if name not in self.variants:
            raise UnknownName("variant of the fake backend", name, self.variants)
        return self.variants[name]


def script() -> Script | None:
    """The script that the environment names; None if it names none.

    Raises:
        UsageError: it cannot be read, or says what the fake cannot do.
    """
    place = os.environ.get(VARIABLE)
    if not place:
        return None
    path = Path(place)
    try:
        data = json.loads(path.read_text()) if path.suffix == ".json" else tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"the fake's script `{path}` cannot be read: {error}", where=VARIABLE) from error
    return parse(data, str(path))


def parse(data: Any, where: str) -> Script:
    """Checks a script.

    Raises:
        UsageError: with the key, where it is wrong.
    """
    if not isinstance(data, dict):
        raise UsageError("the fake's script is not a table", where=where)
    _known(data, ("variants", "speed"), "key of a script", where)
    variants = data.get("variants")
    if not isinstance(variants, dict) or "default" not in variants:
        raise UsageError("the fake's script needs a variant named `default`", where=f"{where}: $.variants")
    speed = data.get("speed", {})
    if not isinstance(speed, dict) or not all(_number(v) for v in speed.values()):
        raise UsageError("`speed` is not a table of numbers", where=f"{where}: $.speed")
    return Script(
        {name: _variant(value, f"{where}: $.variants.{name}") for name, value in variants.items()},
        {name: float(value) for name, value in speed.items()},
    )


def _variant(data: Any, where: str) -> Variant:
    if not isinstance(data, dict):
        raise UsageError("a variant is not a table", where=where)
    defaults = {f.name: f.default for f in fields(Variant)}
    _known(data, defaults, "key of a variant", where)
    values = {key: _value(key, value, defaults[key], where) for key, value in data.items()}
    behaviour = values.get("behaviour", "ok")
    _known((behaviour,), BEHAVIOURS, "behaviour", where)
    when = values.setdefault("when", BEHAVIOURS[behaviour])
    allowed = _ONLY.get(behaviour, STAGES)
    if when not in allowed:
        raise UsageError(f"`{behaviour}` cannot happen at `{when}`", hint=f"use {', '.join(allowed)}", where=where)
    return Variant(**values)


def _value(key: str, value: Any, default: Any, where: str) -> Any:
    if isinstance(default, tuple) and isinstance(value, list) and all(_number(v) for v in value):
        return tuple(float(v) for v in value)
    if isinstance(default, float) and _number(value):
        return float(value)
    if isinstance(default, (int, str)) and type(value) is type(default):
        return value
    expected = "a list of numbers" if isinstance(default, tuple) else type(default).__name__
    raise UsageError(f"`{key}` expects {expected}, got `{value!r}`", where=f"{where}.{key}")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _known(given: Any, known: Any, kind: str, where: str) -> None:
    for name in given:
        if name not in known:
            raise UnknownName(kind, name, known, where=where)
