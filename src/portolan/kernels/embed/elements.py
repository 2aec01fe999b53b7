"""The element functions of the language as ONNX operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from portolan.kernels.embed.nodes import Graph, Value
from portolan.kernels.functions import INT_HIGHEST, INT_LOWEST
from portolan.kernels.tree import Kind

_DIRECT: Mapping[str, str] = {
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "floor": "Floor",
    "ceil": "Ceil",
    "abs": "Abs",
    "minimum": "Min",
    "maximum": "Max",
    "where": "Where",
    "neg": "Neg",
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "pow": "Pow",
    "bitand": "BitwiseAnd",
    "bitor": "BitwiseOr",
    "bitxor": "BitwiseXor",
    "invert": "BitwiseNot",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "eq": "Equal",
    "and": "And",
    "or": "Or",
    "not": "Not",
}
#: The largest float32 below 2^31.
_NEAR_TOP = 2147483520.0


def element(g: Graph, name: str, args: Sequence[Value], kind: Kind) -> Value:
    """An element function of values; `kind` is its result's."""
    if name in _SPECIAL:
        return _SPECIAL[name](g, args)
    return g.call(_DIRECT[name], args, kind)


def _float(g: Graph, args: Sequence[Value]) -> Value:
    return g.cast(args[0], "f")


def _int(g: Graph, args: Sequence[Value]) -> Value:
    """Toward zero; what no int32 can hold becomes the nearest that it can, NaN 0."""
    (x,) = args
    if x.kind != "f":
        return g.cast(x, "i")
    number = g.call("Where", [g.call("IsNaN", [x], "b"), g.number(0.0, "f"), x], "f")
    low, high = g.number(float(INT_LOWEST), "f"), g.number(_NEAR_TOP, "f")
    kept = g.cast(g.call("Min", [g.call("Max", [number, low], "f"), high], "f"), "i")
    over = g.call("Greater", [number, high], "b")
    return g.call("Where", [over, g.number(INT_HIGHEST, "i"), kept], "i")


def _ne(g: Graph, args: Sequence[Value]) -> Value:
    return g.call("Not", [g.call("Equal", args, "b")], "b")


def _divided(g: Graph, args: Sequence[Value]) -> tuple[Value, Value, Value, Value]:
    """Whether the divisor is 0, a divisor that is not, and the remainder with the divisor's sign."""
    a, b = args
    none = g.call("Equal", [b, g.number(0, "i")], "b")
    safe = g.call("Where", [none, g.number(1, "i"), b], "i")
    return none, safe, g.call("Mod", [a, safe], "i"), a


def _floordiv(g: Graph, args: Sequence[Value]) -> Value:
    none, safe, rest, a = _divided(g, args)
    whole = g.call("Div", [g.call("Sub", [a, rest], "i"), safe], "i")
    return g.call("Where", [none, g.number(0, "i"), whole], "i")


def _mod(g: Graph, args: Sequence[Value]) -> Value:
    none, _, rest, _ = _divided(g, args)
    return g.call("Where", [none, g.number(0, "i"), rest], "i")


def _power(g: Graph, places: Value) -> Value:
    return g.call("Pow", [g.number(2, "i"), places], "i")


def _shl(g: Graph, args: Sequence[Value]) -> Value:
    return g.call("Mul", [args[0], _power(g, args[1])], "i")


def _shr(g: Graph, args: Sequence[Value]) -> Value:
    return _floordiv(g, [args[0], _power(g, args[1])])


_SPECIAL: Mapping[str, Callable[[Graph, Sequence[Value]], Value]] = {
    "float": _float,
    "int": _int,
    "ne": _ne,
    "floordiv": _floordiv,
    "mod": _mod,
    "shl": _shl,
    "shr": _shr,
}
