"""The flags that commands share: same flag, same meaning everywhere."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.shell_completion import CompletionItem

from portolan.cli.config import NO_KEYS, Flag, settings, split
from portolan.cli.console import Console
from portolan.cli.failure import place
from portolan.errors import PortolanError, UnknownName, UsageError

if TYPE_CHECKING:
    ParamType = click.ParamType[Any, Any]
else:
    ParamType = click.ParamType  # not generic before click 8.4

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]


Named = Literal["backends", "passes", "platforms"]


def known(group: Named) -> list[str]:
    """The names of backends, passes or platforms, found without importing them."""
    from portolan.core.registry import Registry

    return Registry(group).names()


class Names(ParamType):
    """A comma list of backends, passes or platforms, or `one`; with `call`, one with options: `quantize(bits=8)`."""

    def __init__(self, group: Named, kind: str, *, one: bool = False, call: bool = False) -> None:
        self.group, self.kind, self.one, self.call = group, kind, one or call, call
        self.name = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """The items of the list, their names checked."""
        where = place(ctx, param)
        items = split(str(value))
        if not items or (self.one and len(items) > 1):
            raise UsageError(
                f"`{value}` is not one {self.kind}",
                hint="repeat the flag to chain several" if self.call else None,
                where=where,
            )
        for item in items:
            name = item.partition("(")[0].strip()
            if item.count("(") != item.count(")"):
                raise UsageError(f"`{item}` has a bracket without its partner", where=where)
            if name not in (names := known(self.group)):
                raise UnknownName(self.kind, name, names, where=where)
            if "(" in item and not self.call:
                hint = f"give `{name}` alone; `--recipe` pins options"
                raise UsageError(f"`{item}` has options, which this flag does not take", hint=hint, where=where)
        return items

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Completes the last item of the list."""
        head, comma, last = incomplete.rpartition(",")
        return [CompletionItem(head + comma + name) for name in known(self.group) if name.startswith(last)]


class Goal(ParamType):
    """A goal; its text is checked here so that a slip costs nothing."""

    name = "goal"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The goal's text."""
        from portolan.core.goal import parse_goal

        try:
            parse_goal(str(value))
        except PortolanError as error:
            error.where = error.where or place(ctx, param)
            raise
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Completes the metric's name, also after `min` or `max`."""
        from portolan.core.measurement import METRICS

        head, space, last = incomplete.rpartition(" ")
        starts = [
            CompletionItem(head + space + name, help=metric.about)
            for name, metric in METRICS.items()
            if name.startswith(last)
        ]
        return starts + [CompletionItem(word) for word in ("min", "max") if not head and word.startswith(incomplete)]


#: A size, or a name without an `x` in it, which leaves that axis free.
_DIM = r"([1-9]\d*|[A-Za-wyz_][A-Za-wyz0-9_]*)"


class Shape(ParamType):
    """`name:1x3x224x224` or `name:batchx3x224x224`, several by commas."""

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[tuple[str, tuple[int | str, ...]]]:
        """Pairs of an input's name and its sizes; a free axis has a name in place of a size."""
        shapes = []
        for item in split(str(value)):
            name, colon, sizes = item.rpartition(":")
            if not colon or not name or not re.fullmatch(f"{_DIM}(x{_DIM})*", sizes):
                raise UsageError(f"`{item}` is not a shape", hint="write `name:1x3x224x224`", where=place(ctx, param))
            shapes.append((name, tuple(int(d) if d.isdigit() else d for d in sizes.split("x"))))
        return shapes


class Whole(ParamType):
    """A whole number that is not below `least`."""

    name = "integer"

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        if not re.fullmatch(r"-?\d+", str(value)) or int(value) < self.least:
            raise UsageError(f"`{value}` is not a whole number from {self.least} up", where=place(ctx, param))
        return int(value)


class Replicas(ParamType):
    """`2`, or `MIN..MAX`."""

    name = "replicas"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Least and most."""
        found = re.fullmatch(r"(\d{1,4})(?:\.\.(\d{1,4}))?", str(value).strip())
        least = int(found[1]) if found else 0
        most = int(found[2] or least) if found else 0
        if not found or most < max(least, 1):
            raise UsageError(
                f"`{value}` is not a number of replicas",
                hint="write `2`, or least and most: `1..4`",
                where=place(ctx, param),
            )
        return least, most


def flat(ctx: click.Context, param: click.Parameter, value: Iterable[Iterable[Any]]) -> list[Any]:
    """The items of a flag that may be repeated and whose values are lists."""
    del ctx, param
    return [item for part in value for item in part]


def _shapes(ctx: click.Context, param: click.Parameter, value: Iterable[Iterable[Any]]) -> dict[str, Any] | None:
    pairs = flat(ctx, param, value)
    for name, _ in pairs:
        if sum(other == name for other, _ in pairs) > 1:
            raise UsageError(f"the shape of `{name}` is given twice", where=place(ctx, param))
    return dict(pairs) or None


def _load_config(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Puts what the environment and the files set where click looks for defaults."""
    del param
    if ctx.resilient_parsing:
        return
    explicit = Path(value) if value else None
    found = settings(ctx.command.name or "", verbs(ctx), cwd=Path.cwd(), env=os.environ, explicit=explicit)
    names = {max(p.opts, key=len).lstrip("-"): p.name for p in ctx.command.params if p.name}
    ctx.default_map = {names[flag]: setting.value for flag, setting in found.items()}
    ctx.meta["portolan.origins"] = {names[flag]: setting.where for flag, setting in found.items()}


def verbs(ctx: click.Context) -> dict[str, dict[str, Flag]]:
    """The flags of every command that configuration can set."""
    from portolan.cli.app import VERBS, app

    commands = {verb: app.get_command(ctx, verb) for verb in VERBS}
    return {verb: _keys(command) for verb, command in commands.items() if command}


def _keys(command: click.Command) -> dict[str, Flag]:
    flags = {}
    for param in command.params:
        if isinstance(param, click.Option) or param.name == "target":
            name = max(param.opts, key=len).lstrip("-")
            if name not in NO_KEYS:
                flags[name] = Flag(name, param.multiple)
    return flags


def _set_console(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if isinstance(ctx.obj, Console) and param.name:
        setattr(ctx.obj, param.name, value)


def _switch(*names: str, help: str, **rest: Any) -> Decorator:
    return click.option(*names, is_flag=True, default=False, help=help, **rest)


def common(function: Function) -> Function:
    """The flags that every command has."""
    quiet: dict[str, Any] = {"is_eager": True, "expose_value": False, "callback": _set_console}
    for option in (
        _switch("--json", help="Print one JSON object on stdout and nothing else there.", **quiet),
        _switch("-q", "--quiet", help="No progress and no notes.", **quiet),
        click.option("-v", "--verbose", count=True, help="Say more; twice for tracebacks.", **quiet),
        click.option(
            "--config",
            type=click.Path(dir_okay=False),
            metavar="FILE",
            is_eager=True,
            expose_value=False,
            callback=_load_config,
            help="Read this TOML file in place of the project's `portolan.toml`.",
        ),
    ):
        function = option(function)
    return function


def replicas(function: Function) -> Function:
    """`--replicas`."""
    text = "Replicas of each model, fewest and most; 0 as MIN lets the last one go.  [default: the recipe's, else 1]"
    return click.option("--replicas", type=Replicas(), metavar="MIN..MAX", help=text)(function)


def target(function: Function) -> Function:
    """`-t/--target`."""
    return click.option("-t", "--target", default="local", metavar="TARGET", help="Where the model is to run.")(
        function
    )


def goal(function: Function) -> Function:
    """`-g/--goal`, repeatable."""
    return click.option(
        "-g",
        "--goal",
        "goals",
        multiple=True,
        type=Goal(),
        metavar="GOAL",
        help='A limit ("latency_p95 < 8ms") or an objective ("min size"); repeat for more.',
    )(function)


def backend(function: Function) -> Function:
    """`--backend`, a comma list."""
    return click.option(
        "--backend",
        multiple=True,
        type=Names("backends", "backend"),
        callback=flat,
        metavar="NAME[,NAME...]",
        help="Only these backends.",
    )(function)


def passes(function: Function) -> Function:
    """`--passes`, a comma list that bounds a search."""
    return click.option(
        "--passes",
        multiple=True,
        type=Names("passes", "pass"),
        callback=flat,
        metavar="NAME[,NAME...]",
        help="Only these passes; `--recipe` pins their options.",
    )(function)


def chain(function: Function) -> Function:
    """`--pass`, repeated to make a chain."""
    return click.option(
        "--pass",
        "passes",
        multiple=True,
        required=True,
        type=Names("passes", "pass", call=True),
        callback=flat,
        metavar="PASS",
        help="A pass to apply, such as `quantize(bits=8, mode=static)`; repeat for a chain.",
    )(function)


def data(function: Function) -> Function:
    """`--data`."""
    return click.option(
        "--data",
        type=click.Path(),
        metavar="PATH",
        help="Samples: a `.npz`, a folder of `.npz` or `.npy`, or `file.py:function`.",
    )(function)


def shapes(function: Function) -> Function:
    """`--shapes`, one per input."""
    return click.option(
        "--shapes",
        multiple=True,
        type=Shape(),
        callback=_shapes,
        metavar="NAME:1x3x224x224",
        help="Sizes of an input, for free dimensions and torch modules; a name leaves one free. Repeat for more.",
    )(function)


def budget(function: Function) -> Function:
    """`--budget`."""
    text = 'At most this much: "90s", for a search also "40 trials" or "5min, 40 trials".  [default: 5min]'
    return click.option("--budget", metavar="BUDGET", help=text)(function)


def seed(function: Function) -> Function:
    """`--seed`."""
    return click.option(
        "--seed", type=Whole(0), default=0, metavar="N", help="Seed of everything random.  [default: 0]"
    )(function)


def native(function: Function) -> Function:
    """`--native`."""
    text = "Run the compiled code that a bundle holds: it has your rights, so trust who made it."
    return _switch("--native", help=text)(function)


def out(help: str) -> Decorator:
    """`-o/--out`."""
    return click.option("-o", "--out", type=click.Path(), metavar="PATH", help=help)


def dry_run(function: Function) -> Function:
    """`--dry-run`."""
    return _switch("--dry-run", help="Say what would be done and write nothing.")(function)


def writes(function: Function) -> Function:
    """`--dry-run` and `--force`, for what writes a file that may be there."""
    return dry_run(_switch("--force", help="Overwrite what is there.")(function))
