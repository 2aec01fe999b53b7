"""The signature is the schema: a function's annotated keywords give its flags, TOML keys, checks and search space.

def compile(self, model, target, *,
            precision: Annotated[Literal["f32", "bf16"], Knob(needs={"bf16": ("avx512_bf16",)})] = "f32",
            threads: Annotated[int, Knob(values=cores)] = 0): ...
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
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
        when: other keywords with the values at which this one means something; elsewhere the search leaves it alone.
        help: one line for `--help` and the reference.
    """

    values: tuple[Any, ...] | Callable[[Target], tuple[Any, ...]] = ()
    needs: Mapping[Any, tuple[str, ...]] = field(default_factory=dict)
    search: bool = True
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
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
        """The values that a Literal or bool annotation allows; empty when any value of the type will do."""
        listed = [_choices(kind) for kind in self._kinds]
        return tuple(itertools.chain(*listed)) if all(listed) else ()

    @property
    def _kinds(self) -> tuple[Any, ...]:
        """The alternatives of the annotation: one, unless it is a union."""
        union = typing.get_origin(self.type) in (typing.Union, types.UnionType)
        return typing.get_args(self.type) if union else (self.type,)

    def values(self, target: Target) -> tuple[Any, ...]:
        """What the search tries on `target`, the default first."""
        knob = self.knob
        if not knob.search:
            return (self.default,)
        listed = knob.values(target) if callable(knob.values) else knob.values or self.choices or (self.default,)
        allowed = [v for v in listed if target.has(*knob.needs.get(v, ()))]
        first = [v for v in allowed if v == self.default]
        return tuple(dict.fromkeys(first + allowed))

    def matters(self, options: Mapping[str, Any]) -> bool:
        """Whether the keyword means something beside these others, see `Knob.when`."""
        return all(options.get(name) in values for name, values in self.knob.when.items())

    def check(self, value: Any, owner: str, where: str | None = None) -> Any:
        """`value` if it fits the annotation (numbers in text are read).

        Raises:
            UsageError: it does not.
        """
        for read in _exact, _from_text:
            for kind in self._kinds:
                found = read(value, kind)
                if found is not _NO:
                    return found
        if self.choices:
            listed = ", ".join(f"`{_said(c)}`" for c in self.choices)
            raise UsageError(f"`{self.name}` of `{owner}` cannot be `{value}`", hint=f"use {listed}", where=where)
        names = " or ".join(" or ".join(f"`{_said(c)}`" for c in _choices(k)) or k.__name__ for k in self._kinds)
        raise UsageError(f"`{self.name}` of `{owner}` expects {names}, got `{value!r}`", where=where)


#: What a reader gives for a value that does not fit; None is a value.
_NO: Any = object()


def _choices(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    return (False, True) if kind is bool else (None,) if kind is type(None) else ()


def _said(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _exact(value: Any, kind: Any) -> Any:
    """`value` if it is one of that kind: an int is a float too, but a bool is no int, and NaN is no number."""
    if choices := _choices(kind):
        return next((c for c in choices if type(c) is type(value) and c == value), _NO)
    if kind is float and type(value) is int:
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return _NO
    return _NO if isinstance(value, float) and not math.isfinite(value) else value


def _from_text(value: Any, kind: Any) -> Any:
    """What `value` says as text, as on a command line: `8`, `0.5`, `true`, `none`, `BF16`."""
    if not isinstance(value, str):
        return _NO
    if choices := _choices(kind):
        return next((c for c in choices if _said(c).lower() == value.lower()), _NO)
    try:
        return _exact(kind(value), kind) if kind in (int, float) else _NO
    except ValueError:
        return _NO


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
        self._known(given, where)
        return {
            name: p.check(given[name], self.owner, where) if name in given else p.default
            for name, p in self.parameters.items()
        }

    def _known(self, given: Iterable[str], where: str | None = None) -> None:
        for name in given:
            if name not in self.parameters:
                raise UnknownName(f"option of `{self.owner}`", name, self.parameters, where=where)

    def space(self, target: Target, fixed: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """Every combination the search may try, the defaults first; `fixed` pins keywords (a list pins a range).

        Raises:
            UnknownName: `fixed` names a keyword that does not exist.
            UsageError: a value of `fixed` does not fit, or a range is empty.
        """
        fixed = fixed or {}
        self._known(fixed)
        columns = []
        for name, p in self.parameters.items():
            if name not in fixed:
                columns.append(p.values(target))
            elif isinstance(fixed[name], (list, tuple)):
                if not fixed[name]:
                    raise UsageError(f"the range of `{name}` of `{self.owner}` is empty", hint="name a value")
                columns.append(tuple(dict.fromkeys(p.check(v, self.owner) for v in fixed[name])))
            else:
                columns.append((p.check(fixed[name], self.owner),))
        for values in itertools.product(*columns):
            options = dict(zip(self.parameters, values, strict=True))
            usual = {name for name, p in self.parameters.items() if options[name] == p.default}
            if all(name in usual or name in fixed or p.matters(options) for name, p in self.parameters.items()):
                yield options

    def others(self, target: Target) -> Iterator[dict[str, Any]]:
        """The choices that the search leaves out, one at a time, beside defaults with which they mean something."""
        usual = {name: p.default for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            beside = {other: values[0] for other, values in p.knob.when.items()}
            for value in p.choices:
                if value not in p.values(target) and target.has(*p.knob.needs.get(value, ())):
                    yield {**usual, **beside, name: value}

    def chosen(self, options: Mapping[str, Any], target: Target) -> set[str]:
        """The keywords that somebody chose: those without their default, and those that the search had a choice in."""
        return {
            name
            for name, p in self.parameters.items()
            if options[name] != p.default or (p.matters(options) and len(p.values(target)) > 1)
        }


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
