"""A tree as the text that means it: derivatives are read in the notation that kernels are written in."""

from __future__ import annotations

import re

from portolan.kernels.tree import (
    Binder,
    Carry,
    Expr,
    Ext,
    Extent,
    Idx,
    Load,
    Num,
    Op,
    Program,
    Ranked,
    Reduce,
    Scan,
    Tensor,
)

_INFIX = {
    "or": ("or", 1),
    "and": ("and", 2),
    "lt": ("<", 4),
    "le": ("<=", 4),
    "gt": (">", 4),
    "ge": (">=", 4),
    "eq": ("==", 4),
    "ne": ("!=", 4),
    "bitor": ("|", 5),
    "bitxor": ("^", 6),
    "bitand": ("&", 7),
    "shl": ("<<", 8),
    "shr": (">>", 8),
    "add": ("+", 9),
    "sub": ("-", 9),
    "mul": ("*", 10),
    "div": ("/", 10),
    "floordiv": ("//", 10),
    "mod": ("%", 10),
    "pow": ("**", 12),
}
_PREFIX = {"not": ("not ", 3), "neg": ("-", 11), "invert": ("~", 11)}
_RENAMED = {"minimum": "min", "maximum": "max"}
_ATOM = 20


def notation(program: Program) -> str:
    """The kernel as a decorated function. Programs with stages come from a user's own text and are not written."""
    inputs = ", ".join(f'{t.name}: "{_axes(t)}"' for t in program.inputs)
    outputs = [f'"{_axes(t, result=True)}"' for t in program.outputs]
    returned = outputs[0] if len(outputs) == 1 else f"({', '.join(outputs)})"
    values = [text(v) for v in program.values]
    if _is_pair(program.values):
        values = values[:1]  # a ranking gives its values and their places together
    body = values[0] if len(values) == 1 else "(\n        " + ",\n        ".join(values) + ",\n    )"
    return f"@kernel\ndef {program.name}({inputs}) -> {returned}:\n    return {body}\n"


def _is_pair(values: tuple[Expr, ...]) -> bool:
    match values:
        case (Ranked() as first, Ranked() as second):
            return (first.part, second.part) == ("value", "index") and first.body == second.body
        case _:
            return False


def _axes(tensor: Tensor, result: bool = False) -> str:
    axes = " ".join(map(str, tensor.axes))
    return f"{axes} : {tensor.dtype}" if tensor.dtype != "f32" or result else axes


def text(e: Expr) -> str:
    """An expression."""
    return _text(e)[0]


def _text(e: Expr) -> tuple[str, int]:
    """An expression and how tightly it binds."""
    match e:
        case Num(value=value, kind=kind):
            shown = repr(float(value)) if kind == "f" else repr(value)
            return shown, _ATOM if not shown.startswith("-") else _PREFIX["neg"][1]
        case Idx(name=name):
            return name, _ATOM
        case Ext(symbol=symbol):
            return symbol.upper(), _ATOM
        case Carry(name=name):
            return _carry(name), _ATOM
        case Load(tensor=name, index=index):
            return (f"{name}[{', '.join(text(i) for i in index)}]" if index else name), _ATOM
        case Op():
            return _op(e)
        case Reduce():
            parts = ", ".join(text(b) for b in e.body)
            body = f"({parts})" if len(e.body) > 1 else parts
            return f"{e.monoid}({body}{_generator(e.binders, e.where)})", _ATOM
        case Ranked():
            name = "largest" if e.largest else "smallest"
            return f"{name}({e.n}, ({text(e.body)}{_generator((e.binder,), e.where)}), {e.rank})", _ATOM
        case Scan():
            return f"scan(lambda {_carry(e.carry)}: {text(e.step)}, {e.axis})", _ATOM


def _op(e: Op) -> tuple[str, int]:
    if e.name in _PREFIX:
        sign, level = _PREFIX[e.name]
        return f"{sign}{_under(e.args[0], level)}", level
    if e.name in _INFIX:
        sign, level = _INFIX[e.name]
        left, right = e.args
        return f"{_under(left, level + (level in (4, 12)))} {sign} {_under(right, level + 1)}", level
    name = _RENAMED.get(e.name, e.name)
    return f"{name}({', '.join(text(a) for a in e.args)})", _ATOM


def _under(e: Expr, level: int) -> str:
    shown, own = _text(e)
    return shown if own >= level else f"({shown})"


def _generator(binders: tuple[Binder, ...], where: Expr | None) -> str:
    loops = "".join(f" for {b.index} in {_extent(b.extent)}" for b in binders)
    return loops + ("" if where is None else f" if {text(where)}")


def _extent(extent: Extent) -> str:
    return f"range({extent})" if isinstance(extent, int) else extent.upper()


def _carry(name: str) -> str:
    """The reader makes carries' names unique by where they stand."""
    return re.sub(r"\W.*", "", name) + "_" * name.count("'")
