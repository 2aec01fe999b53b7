"""Element functions on typed expressions: operands brought to one type, numbers folded."""

from __future__ import annotations

from collections.abc import Sequence

from portolan.kernels.functions import OPS
from portolan.kernels.ir import FLAG, Do, Lit, Type, X, add, mul, sub

KEPT = "kept"
"""An index moved to the nearest end of its extent, the second argument."""
_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
_PLACES = {"add": add, "mul": mul, "sub": sub}


def splat(value: X, type: Type) -> X:
    """`value` in every lane of `type`."""
    if value.type == type:
        return value
    return Do("splat", (value,), type)


def _joined(values: Sequence[X]) -> Sequence[X]:
    """Operands with as many lanes as the widest."""
    lanes = max(v.type.lanes for v in values)
    return [splat(v, Type(v.type.base, lanes)) for v in values]


def element(name: str, values: Sequence[X], kind: str) -> X:
    """An element function of values of the right kinds."""
    base = {"f": "f", "i": "i", "b": "m"}[kind]
    if name == "where":
        if isinstance(values[0], Lit):
            return values[1] if values[0].value else values[2]
        return select(*values)
    if name in _COMPARISONS and all(isinstance(v, Lit) for v in values):
        return Lit(int(bool(OPS[name].numpy(*(v.value for v in values if isinstance(v, Lit))))), FLAG)
    lanes = max(v.type.lanes for v in values)
    if name == KEPT:
        place, size = _joined(values)
        top = Do("sub", (size, splat(Lit(1), size.type)), size.type)
        return call("maximum", call("minimum", place, top), Lit(0))
    result = Type(base, lanes)  # type: ignore[arg-type]
    if name in ("float", "int") and isinstance(values[0], Lit) and base == "f":
        return Lit(float(values[0].value), Type("f"))
    if lanes == 1 and base == "i" and name in _PLACES:
        return _PLACES[name](*values)
    return Do(name, tuple(_joined(values)), result)


def select(condition: X, yes: X, no: X) -> X:
    """`yes` where the condition holds, else `no`."""
    yes, no = _joined([yes, no]) if condition.type.lanes == 1 else _joined([condition, yes, no])[1:]
    return Do("select", (condition, yes, no), yes.type)


def compare(name: str, a: X, b: X) -> X:
    """A comparison."""
    a, b = _joined([a, b])
    return Do(name, (a, b), Type("m", a.type.lanes))


def both(a: X | None, b: X) -> X:
    """Both hold; None for what always holds."""
    if a is None:
        return b
    a, b = _joined([a, b])
    return Do("and", (a, b), a.type)


def call(name: str, *values: X) -> X:
    """An operation whose result has its operands' type."""
    joined = _joined(values)
    return Do(name, tuple(joined), joined[0].type)


def flag(name: str, a: X, b: X) -> X:
    """A comparison of two places."""
    return Do(name, (a, b), FLAG)
