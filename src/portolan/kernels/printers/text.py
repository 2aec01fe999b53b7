"""Loops for people: what `print(kernel)` shows."""

from __future__ import annotations

from collections.abc import Sequence

from portolan.kernels.ir import (
    Acc,
    Alloc,
    Barrier,
    Do,
    Fetch,
    For,
    If,
    Let,
    Lit,
    Loops,
    Rank,
    Read,
    Ref,
    Statement,
    Turn,
    Type,
    Update,
    Variant,
    Write,
    X,
)
from portolan.kernels.printers.signs import INFIX

_SIGNS = {**INFIX, "floordiv": "//", "mod": "%", "and": "and", "or": "or"}


def text(loops: Loops) -> str:
    """The first variant of every nest; the others are for sizes below a tile."""
    lines = [f"kernel {loops.name}({', '.join((*(a.name for a in loops.inputs), *loops.sizes))})"]
    for nest in loops.nests:
        lines += _variant(nest.variants[0])
    return "\n".join(lines)


def _variant(variant: Variant) -> list[str]:
    when = f"  when {_x(variant.when)}" if variant.when is not None else ""
    return [f"  parallel for task in 0 .. {_x(variant.tasks)}:{when}", *_block(variant.body, 2)]


def _block(body: Sequence[Statement], depth: int) -> list[str]:
    return [f"{'  ' * depth}{line}" if own else line for s in body for own, line in _statement(s, depth)]


def _statement(s: Statement, depth: int) -> list[tuple[bool, str]]:
    match s:
        case Let(name=name, value=value):
            return [(True, f"{name}{_lanes(value.type)} = {_x(value)}")]
        case Acc(name=name, value=value):
            return [(True, f"acc {name}{_lanes(value.type)} = {_x(value)}")]
        case Update(name=name, value=value):
            return [(True, f"{name} <- {_x(value)}")]
        case Write(array=array, offset=offset, value=value, stride=stride):
            step = "" if stride is None else f" by {_x(stride)}"
            return [(True, f"{array}[{_x(offset)}{step}] = {_x(value)}")]
        case Barrier():
            return [(True, "wait for the group")]
        case Fetch(array=array, offset=offset):
            return [(True, f"fetch {array}[{_x(offset)}]")]
        case Alloc(name=name, size=size, space=space):
            return [(True, f"buffer {name}[{_x(size)}] in the {space}")]
        case Rank(best=best, n=n, scores=scores, start=start, count=count):
            return [(True, f"rank {_x(count)} of {scores}[{_x(start)}] into the {n} of {best}")]
        case Turn(to=to, source=source, rows=rows, columns=columns):
            return [(True, f"turn {_x(rows)} rows of {_x(columns)} of {source}[{_x(s.source_offset)}] into {to}")]
        case For(var=var, start=start, stop=stop, step=step, body=body, note=note):
            by = f" by {step}" if step > 1 else ""
            said = f"  # {note}" if note else ""
            head = f"for {var} in {_x(start)} .. {_x(stop)}{by}:{said}"
            return [(True, head), *((False, line) for line in _block(body, depth + 1))]
        case If(condition=condition, body=body, other=other):
            lines = [(True, f"if {_x(condition)}:"), *((False, line) for line in _block(body, depth + 1))]
            if other:
                lines += [(True, "else:"), *((False, line) for line in _block(other, depth + 1))]
            return lines


def _lanes(type: Type) -> str:
    return f"<{type.lanes}>" if type.lanes > 1 else ""


def _x(x: X) -> str:
    match x:
        case Lit(value=value):
            return f"{value:g}" if isinstance(value, float) else str(value)
        case Ref(name=name):
            return name
        case Read(array=array, offset=offset, mode=mode, args=args):
            more = "" if mode == "plain" else f" {mode} {', '.join(map(_x, args))}"
            return f"{array}[{_x(offset)}{more}]"
        case Do(op="splat", args=(value,)):
            return _x(value)
        case Do(op="select", args=(condition, yes, no)):
            return f"({_x(yes)} if {_x(condition)} else {_x(no)})"
        case Do(op=op, args=(a, b)) if op in _SIGNS:
            return f"({_x(a)} {_SIGNS[op]} {_x(b)})"
        case Do(op=op, args=args):
            return f"{op}({', '.join(map(_x, args))})"
