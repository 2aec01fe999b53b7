"""The derivatives of element functions, by their arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from portolan.kernels.build_tree import op
from portolan.kernels.tree import Expr, Num, Op

#: 2 / sqrt(pi)
_ERF_SLOPE = 1.1283791670955126
ONE, ZERO = Num(1.0, "f"), Num(0.0, "f")

#: A factor for each argument, None where the derivative is 0; from the arguments and the value itself.
Rule = Callable[[Sequence[Expr], Expr], Sequence[Expr | None]]


def _negated(e: Expr) -> Expr:
    return op("neg", e)


def _square(e: Expr) -> Expr:
    return op("mul", e, e)


def _power(args: Sequence[Expr], value: Expr) -> Sequence[Expr | None]:
    base, power = args
    lower = op("mul", power, op("pow", base, op("sub", power, ONE)))
    # log of what is not positive only ever meets a power that does not change.
    positive = op("gt", base, ZERO)
    log = op("log", op("where", positive, base, ONE))
    return lower, None if isinstance(power, Num) else op("where", positive, op("mul", value, log), ZERO)


RULES: Mapping[str, Rule] = {
    "exp": lambda a, y: (y,),
    "log": lambda a, y: (op("div", ONE, a[0]),),
    "sqrt": lambda a, y: (op("div", Num(0.5, "f"), y),),
    "tanh": lambda a, y: (op("sub", ONE, _square(y)),),
    "sigmoid": lambda a, y: (op("mul", y, op("sub", ONE, y)),),
    "erf": lambda a, y: (op("mul", Num(_ERF_SLOPE, "f"), op("exp", _negated(_square(a[0])))),),
    "sin": lambda a, y: (op("cos", a[0]),),
    "cos": lambda a, y: (_negated(op("sin", a[0])),),
    "floor": lambda a, y: (None,),
    "ceil": lambda a, y: (None,),
    "float": lambda a, y: (None,),
    "abs": lambda a, y: (op("where", op("lt", a[0], ZERO), Num(-1.0, "f"), ONE),),
    "neg": lambda a, y: (Num(-1.0, "f"),),
    "add": lambda a, y: (ONE, ONE),
    "sub": lambda a, y: (ONE, Num(-1.0, "f")),
    "mul": lambda a, y: (a[1], a[0]),
    "div": lambda a, y: (op("div", ONE, a[1]), _negated(op("div", y, a[1]))),
    "pow": _power,
}
"""Functions of floats with a derivative that is a factor. Choices (`where`, `minimum`, `maximum`) are conditions."""

_OPPOSITE = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}


def opposite(condition: Expr) -> Expr:
    """A condition that holds where the other does not (and no number is NaN)."""
    if isinstance(condition, Op) and condition.name in _OPPOSITE:
        return Op(_OPPOSITE[condition.name], condition.args, "b")
    return op("not", condition)


def choices(e: Op) -> list[tuple[Expr, Expr]]:
    """For a function that is one of its arguments: each of them, with the condition under which it is."""
    if e.name == "where":
        condition, yes, no = e.args
        return [(yes, condition), (no, opposite(condition))]
    a, b = e.args
    first = op("le" if e.name == "minimum" else "ge", a, b)
    return [(a, first), (b, opposite(first))]


CHOICES = frozenset(("where", "minimum", "maximum"))
