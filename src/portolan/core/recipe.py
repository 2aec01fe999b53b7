"""Recipe: one choice at each layer of the stack, as plain data: hashed, JSON in results, TOML on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from portolan.core.plain import call_text
from portolan.core.serving import Serving
from portolan.errors import UsageError, nearest

_KEYS: Mapping[str, tuple[type, str]] = {
    "passes": (list, "a list of tables"),
    "backend": (str, "a name"),
    "options": (Mapping, "a table"),
    "target": (str, "a name"),
    "serving": (Mapping, "a table"),
}


@dataclass(frozen=True)
class Step:
    """One pass of a recipe with its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return call_text(self.name, self.options)


@dataclass(frozen=True)
class Recipe:
    """Passes, backend, options, target and serving. An empty `passes` is the untouched model."""

    passes: tuple[Step, ...] = ()
    backend: str = "onnxruntime"
    options: Mapping[str, Any] = field(default_factory=dict)
    target: str = "local"
    serving: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The RECIPE object of the contract; as TOML the same data is a recipe file."""
        return {
            "passes": [{"name": step.name, **step.options} for step in self.passes],
            "backend": self.backend,
            "options": dict(self.options),
            "target": self.target,
            "serving": dict(self.serving),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str | None = None) -> Recipe:
        """Reads what `to_json` wrote.

        Raises:
            UsageError: a key that does not exist or a value of the wrong type, with its path.
        """
        place = where or "recipe"
        if not isinstance(data, Mapping):
            raise UsageError("a recipe must be a table", where=f"{place}: $")
        for key, value in data.items():
            if key not in _KEYS:
                raise UsageError(f"a recipe has no key `{key}`", hint=nearest(str(key), _KEYS), where=where)
            kind, said = _KEYS[key]
            if not isinstance(value, kind):
                raise UsageError(f"`{key}` of a recipe must be {said}, got `{value!r}`", where=f"{place}: $.{key}")
        Serving.of(data.get("serving", {}), where)
        steps = []
        for i, item in enumerate(data.get("passes", [])):
            if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
                raise UsageError(
                    "a pass of a recipe needs a `name`",
                    hint='write for example `{ name = "quantize", mode = "dynamic" }`',
                    where=f"{place}: $.passes[{i}]",
                )
            steps.append(Step(item["name"], {k: v for k, v in item.items() if k != "name"}))
        rest = {k: v for k, v in data.items() if k != "passes"}
        return cls(passes=tuple(steps), **rest)

    @property
    def served(self) -> Serving:
        """How it is served, checked."""
        return Serving.of(self.serving)

    @property
    def key(self) -> str:
        """Hash of everything in the recipe."""
        return digest(self.to_json())

    @property
    def chain(self) -> str:
        """Hash of the passes alone: recipes with the same chain share one artefact."""
        return digest(self.to_json()["passes"])

    def __str__(self) -> str:
        return " + ".join(map(str, self.passes)) or "-"


def digest(data: Any) -> str:
    """A short stable hash of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]
