"""The signature is the schema: a function's annotated keywords give its flags, TOML keys, checks and search space.

def compile(self, model, target, *,
            precision: Annotated[Literal["f32", "bf16"], Knob(needs={"bf16": ("avx512_bf16",)})] = "f32",
            threads: Annotated[int, Knob(values=cores)] = 0): ...
"""

from __future__ import annotations

import functools
import inspect
import itertools
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from portolan.core.target import Target
from portolan.errors import UnknownName, UsageError


@dataclass(frozen=True)
class Knob:
    """How the search treats a keyword.

    Attributes:
        values: what the search tries, the default first; a function of the target where it depends on one. Empty
            with a Literal or bool annotation means all of its values; empty otherwise means the default only.
        needs: for a value, target features of which any one must be observed.
        search: False keeps the keyword out of the search: it is for users only.
        help: one line for `--help` and the reference.
    """

    values: tuple[Any, ...] | Callable[[Target], tuple[Any, ...]] = ()
    needs: Mapping[Any, tuple[str, ...]] = field(default_factory=dict)
    search: bool = True
    help: str = ""


def cores(target: Target) -> tuple[int, ...]:
    """Thread counts worth trying: 0, which means all cores, then half of them, then one."""
    return (0, *dict.fromkeys(n for n in (target.cores // 2, 1) if 0 < n < target.cores))


@dataclass(frozen=True)
class Parameter:
    """One keyword of a schema."""

    name: str
    type: Any
    default: Any
    knob: Knob

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values a Literal or bool annotation allows; empty when any value of the type will do."""
        if typing.get_origin(self.type) is Literal:
            return typing.get_args(self.type)
        return (False, True) if self.type is bool else ()

    def values(self, target: Target) -> tuple[Any, ...]:
        """What the search tries on `target`, the default first."""
        knob = self.knob
        if not knob.search:
            return (self.default,)
        listed = knob.values(target) if callable(knob.values) else knob.values or self.choices or (self.default,)
        allowed = [v for v in listed if target.has(*knob.needs.get(v, ()))]
        first = [v for v in allowed if v == self.default]
        return tuple(dict.fromkeys(first + allowed))

    def check(self, value: Any, owner: str, where: str | None = None) -> Any:
        """`value` if it fits the annotation (numbers in text are read).

        Raises:
            UsageError: it does not.
        """
        if self.choices:
            read = {str(c).lower(): c for c in self.choices}.get(str(value).lower())
            if read is None:
                listed = ", ".join(f"`{str(c).lower() if isinstance(c, bool) else c}`" for c in self.choices)
                raise UsageError(f"`{self.name}` of `{owner}` cannot be `{value}`", hint=f"use {listed}", where=where)
            return read
        options = typing.get_args(self.type) if isinstance(self.type, types.UnionType) else (self.type,)
        if value is None and type(None) in options:
            return None
        for kind in options:
            if kind is type(None):
                continue
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                return float(value)
            if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
                return value
            if isinstance(value, str) and kind in (int, float):
                try:
                    return kind(value)
                except ValueError:
                    continue
        names = " or ".join(getattr(k, "__name__", str(k)) for k in options)
        raise UsageError(f"`{self.name}` of `{owner}` expects {names}, got `{value!r}`", where=where)


@dataclass(frozen=True)
class Schema:
    """The keywords of one function."""

    owner: str
    parameters: dict[str, Parameter]

    @classmethod
    def of(cls, function: Callable[..., Any], owner: str) -> Schema:
        """Reads the keyword-only parameters of `function`."""
        return _schema(function, owner)

    def check(self, given: Mapping[str, Any], where: str | None = None) -> dict[str, Any]:
        """Every parameter with its value: the given one, checked, or the default.

        Raises:
            UnknownName: a keyword that does not exist.
            UsageError: a value that does not fit.
        """
        for name in given:
            if name not in self.parameters:
                raise UnknownName(f"option of `{self.owner}`", name, self.parameters, where=where)
        return {
            name: p.check(given[name], self.owner, where) if name in given else p.default
            for name, p in self.parameters.items()
        }

    def space(self, target: Target, fixed: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """Every combination the search may try, the defaults first; `fixed` pins keywords (a list pins a range)."""
        fixed = fixed or {}
        columns = []
        for name, p in self.parameters.items():
            if name not in fixed:
                columns.append(p.values(target))
            elif isinstance(fixed[name], (list, tuple)):
                columns.append(tuple(p.check(v, self.owner) for v in fixed[name]))
            else:
                columns.append((p.check(fixed[name], self.owner),))
        for values in itertools.product(*columns):
            yield dict(zip(self.parameters, values, strict=True))


@functools.cache
def _schema(function: Callable[..., Any], owner: str) -> Schema:
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = {}
    for name, p in inspect.signature(function).parameters.items():
        if p.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        kind, knob = hints[name], Knob()
        if typing.get_origin(kind) is typing.Annotated:
            kind, *extras = typing.get_args(kind)
            knob = next((e for e in extras if isinstance(e, Knob)), knob)
        parameters[name] = Parameter(name, kind, p.default, knob)
    return Schema(owner, parameters)
