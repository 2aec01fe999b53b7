"""Where kernels come from: a decorated function, or a file that is read and not run."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portolan.errors import UsageError, nearest
from portolan.kernels.parse import parse
from portolan.kernels.tree import Program
from portolan.kernels.trouble import KernelError

MARK = "kernel"
SHAPES = "shapes"


@dataclass(frozen=True)
class Found:
    """A kernel of a file, and the sizes that lines beside it name."""

    program: Program
    sizes: tuple[Mapping[str, int], ...] = ()


def from_function(function: Callable[..., Any]) -> Program:
    """The program of a live function, read from its source.

    Raises:
        KernelError: it is no kernel, or its source is not to be had.
    """
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError) as error:
        name = getattr(function, "__name__", str(function))
        raise KernelError(
            f"kernel `{name}`: its source cannot be read", hint="define it in a file: kernels are read, not run"
        ) from error
    text = textwrap.dedent("".join(lines))
    node = ast.parse(text).body[0]
    path = inspect.getsourcefile(function) or "?"
    if not isinstance(node, ast.FunctionDef):
        raise KernelError(
            "a kernel is a function with `def`", hint="write `@kernel` above `def`", where=f"{path}:{first}"
        )
    ast.increment_lineno(node, first - 1)
    outside = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
    return parse(node, path, _numbers(outside), text)


def _numbers(names: Mapping[str, Any]) -> dict[str, float | int]:
    return {k: v for k, v in names.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def read_file(path: Path) -> list[Found]:
    """The kernels of a file, in order. Its code is not run: only functions under `@kernel`, `shapes(...)` and numbers
    given a name at its top are looked at.

    Raises:
        KernelError: a kernel that means nothing, or a `shapes` line that fits none.
        UsageError: no file, no Python, or no kernel in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"`{path}` cannot be read: {reason}", hint="name a Python file that holds kernels") from error
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        where = f"{path}:{getattr(error, 'lineno', None) or 1}"
        raise UsageError(f"`{path}` is no Python: {getattr(error, 'msg', error)}", where=where) from error
    constants = _constants(module)
    nodes = [n for n in module.body if isinstance(n, ast.FunctionDef) and any(map(_marked, n.decorator_list))]
    if not nodes:
        raise UsageError(
            f"`{path}` holds no kernel", hint="write `@kernel` above a function (`from portolan import kernel`)"
        )
    programs = {n.name: parse(n, str(path), constants, ast.get_source_segment(text, n) or "") for n in nodes}
    sizes: dict[str, list[Mapping[str, int]]] = {name: [] for name in programs}
    for call in _shape_lines(module):
        name, given = _shapes(call, programs, str(path))
        sizes[name].append(given)
    return [Found(program, tuple(sizes[name])) for name, program in programs.items()]


def _marked(decorator: ast.expr) -> bool:
    match decorator:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name == MARK
    return False


def _constants(module: ast.Module) -> dict[str, float | int]:
    found: dict[str, float | int] = {}
    for node in module.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                try:
                    number = ast.literal_eval(value)
                except ValueError:
                    continue
                if isinstance(number, (int, float)) and not isinstance(number, bool):
                    found[name] = number
    return found


def _shape_lines(module: ast.Module) -> list[ast.Call]:
    calls = [n.value for n in module.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    return [
        c
        for c in calls
        if (isinstance(c.func, ast.Name) and c.func.id == SHAPES)
        or (isinstance(c.func, ast.Attribute) and c.func.attr == SHAPES)
    ]


def _shapes(call: ast.Call, programs: Mapping[str, Program], path: str) -> tuple[str, dict[str, int]]:
    where = f"{path}:{call.lineno}"
    form = "write `shapes(tropical, i=512, k=512, j=512)`"
    if len(call.args) != 1 or not isinstance(call.args[0], ast.Name):
        raise KernelError("`shapes` takes a kernel and sizes by axis", hint=form, where=where)
    name = call.args[0].id
    if name not in programs:
        raise KernelError(f"no kernel named `{name}` in this file", hint=nearest(name, programs), where=where)
    given: dict[str, int] = {}
    for keyword in call.keywords:
        if not (isinstance(keyword.value, ast.Constant) and type(keyword.value.value) is int and keyword.arg):
            raise KernelError("a size is a whole number", hint=form, where=where)
        given[keyword.arg] = keyword.value.value
    return name, complete(programs[name], given, where)


def complete(program: Program, given: Mapping[str, int], where: str | None = None) -> dict[str, int]:
    """`given`, checked: a size from 1 for every symbol of the kernel and for nothing else.

    Raises:
        KernelError: one is missing, unknown or out of range.
    """
    for name in given:
        if name not in program.symbols:
            hint = nearest(name, program.symbols)
            raise KernelError(f"kernel `{program.name}` has no axis `{name}`", hint=hint, where=where)
    missing = [s for s in program.symbols if s not in given]
    if missing:
        raise KernelError(
            f"kernel `{program.name}`: no size for the axis `{missing[0]}`",
            hint=f"add `{missing[0]}=256`",
            where=where,
        )
    for name, size in given.items():
        if not 1 <= size < 2**31:
            raise KernelError(f"the size {name}={size} is not from 1 to 2147483647", where=where)
    return dict(given)
