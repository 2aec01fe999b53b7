"""The element functions of the language: their kinds, and what they are in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Function:
    """An element function.

    Attributes:
        arity: number of arguments.
        result: `f`, `i` or `b`; `same` is the wider kind of the arguments.
        takes: the kinds of the arguments: `f` (integers are converted), `i` (integers only), `b`, or `n` (any number).
        numpy: what the oracle calls.
        dear: whether it costs many instructions, so that it is computed once for many uses where that is possible.
    """

    arity: int
    result: str
    takes: str
    numpy: Callable[..., Any]
    dear: bool = False


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _erf(x: Array) -> Array:
    from scipy.special import erf

    return np.asarray(erf(x))


def _div(a: Array, b: Array) -> Array:
    return np.asarray(np.divide(a, b))


def _safe(function: Callable[..., Any]) -> Callable[..., Any]:
    """Integer division by zero gives 0, on every target."""

    def call(a: Array, b: Array) -> Array:
        return np.asarray(np.where(b == 0, 0, function(a, np.where(b == 0, 1, b))))

    return call


def _whole(x: Array) -> Array:
    """Toward zero; what no int32 can hold becomes the nearest that it can, NaN 0."""
    return np.asarray(np.clip(np.nan_to_num(np.trunc(x), nan=0.0), -(2**31), 2**31 - 1), np.int64)


FUNCTIONS: Mapping[str, Function] = {
    "exp": Function(1, "f", "f", np.exp, True),
    "log": Function(1, "f", "f", np.log, True),
    "sqrt": Function(1, "f", "f", np.sqrt),
    "tanh": Function(1, "f", "f", np.tanh, True),
    "sigmoid": Function(1, "f", "f", _sigmoid, True),
    "erf": Function(1, "f", "f", _erf, True),
    "sin": Function(1, "f", "f", np.sin, True),
    "cos": Function(1, "f", "f", np.cos, True),
    "floor": Function(1, "f", "f", np.floor),
    "ceil": Function(1, "f", "f", np.ceil),
    "abs": Function(1, "same", "n", np.abs),
    "minimum": Function(2, "same", "n", np.minimum),
    "maximum": Function(2, "same", "n", np.maximum),
    "where": Function(3, "same", "bnn", np.where),
    "float": Function(1, "f", "n", lambda x: np.asarray(x, np.float64)),
    "int": Function(1, "i", "n", lambda x: _whole(x) if np.asarray(x).dtype.kind == "f" else x),
}
"""What can be called by name."""

OPS: Mapping[str, Function] = {
    **FUNCTIONS,
    "neg": Function(1, "same", "n", np.negative),
    "add": Function(2, "same", "n", np.add),
    "sub": Function(2, "same", "n", np.subtract),
    "mul": Function(2, "same", "n", np.multiply),
    "div": Function(2, "f", "f", _div),
    "pow": Function(2, "f", "f", np.power, True),
    "floordiv": Function(2, "i", "i", _safe(np.floor_divide)),
    "mod": Function(2, "i", "i", _safe(np.mod)),
    "shl": Function(2, "i", "i", np.left_shift),
    "shr": Function(2, "i", "i", np.right_shift),
    "bitand": Function(2, "i", "i", np.bitwise_and),
    "bitor": Function(2, "i", "i", np.bitwise_or),
    "bitxor": Function(2, "i", "i", np.bitwise_xor),
    "invert": Function(1, "i", "i", np.invert),
    "lt": Function(2, "b", "n", np.less),
    "le": Function(2, "b", "n", np.less_equal),
    "gt": Function(2, "b", "n", np.greater),
    "ge": Function(2, "b", "n", np.greater_equal),
    "eq": Function(2, "b", "n", np.equal),
    "ne": Function(2, "b", "n", np.not_equal),
    "and": Function(2, "b", "b", np.logical_and),
    "or": Function(2, "b", "b", np.logical_or),
    "not": Function(1, "b", "b", np.logical_not),
}
"""Also what has a sign of its own."""

MONOIDS: Mapping[str, str] = {
    "sum": "adds; 0 over nothing",
    "prod": "multiplies; 1 over nothing",
    "max": "the largest, NaN left out; -inf over nothing",
    "min": "the smallest, NaN left out; +inf over nothing",
    "any": "whether one holds; False over nothing",
    "all": "whether all hold; True over nothing",
    "argmax": "where the first largest is, NaN left out; -1 over nothing",
    "argmin": "where the first smallest is, NaN left out; -1 over nothing",
    "logsumexp": "log of the sum of exponentials; -inf over nothing",
    "softmean": "the mean of values weighted by the exponentials of scores; 0 over nothing",
}
"""Reductions over a generator, and what they give over nothing."""

INT_LOWEST, INT_HIGHEST = -(2**31), 2**31 - 1


def identity(monoid: str, kind: str) -> float | int | bool:
    """What `monoid` gives over nothing."""
    table: dict[str, float | int | bool] = {
        "sum": 0,
        "prod": 1,
        "any": False,
        "all": True,
        "max": -np.inf if kind == "f" else INT_LOWEST,
        "min": np.inf if kind == "f" else INT_HIGHEST,
        "argmax": -1,
        "argmin": -1,
        "logsumexp": -np.inf,
        "softmean": 0.0,
    }
    return table[monoid]
