"""Operators that treat each element alone, broadcast over their inputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from portolan.errors import UnsupportedOperator
from portolan.importers import numpy_
from portolan.importers.operators.call import Call, Operator

Function = Callable[..., Any]
#: ONNX's numbers for element types, by NumPy's names.
TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip


def _plain(name: str) -> Function:
    """A function that the namespaces share."""
    return lambda call, *inputs: getattr(call.xp, name)(*inputs)


def _folded(name: str) -> Function:
    """A function of two inputs, over any number of them."""
    return lambda call, *inputs: functools.reduce(getattr(call.xp, name), inputs)


def _divide(call: Call, x: Any, y: Any) -> Any:
    if call.xp.kind(x) == "f":
        return x / y
    # Whole numbers are cut towards zero; sizes are positive, so their symbols need no signs.
    if str(x.dtype) == "object" or str(y.dtype) == "object":
        return x // y
    magnitude = call.xp.floor_divide(call.xp.abs(x), call.xp.abs(y))
    return call.xp.astype(magnitude * call.xp.sign(x) * call.xp.sign(y), call.xp.dtype(x))


def _power(call: Call, x: Any, y: Any) -> Any:
    return call.xp.astype(call.xp.pow(x, y), call.xp.dtype(x))


def _modulo(call: Call, x: Any, y: Any) -> Any:
    return call.xp.fmod(x, y) if call.get("fmod", 0) else call.xp.remainder(x, y)


def _mean(call: Call, *inputs: Any) -> Any:
    return functools.reduce(call.xp.add, inputs) / len(inputs)


def _cast(call: Call, x: Any) -> Any:
    return call.xp.astype(x, TYPES.get(call.get("to"), f"number {call.get('to')}"))


def _cast_like(call: Call, x: Any, like: Any) -> Any:
    """Only the other's element type matters, so what is known stays known."""
    kind = (numpy_.NumPy() if numpy_.holds(like) else call.traced).dtype(like)
    return (numpy_.NumPy() if numpy_.holds(x) else call.traced).astype(x, kind)


def _clip(call: Call, x: Any, low: Any = None, high: Any = None) -> Any:
    if call.version < 11:
        low, high = (None if (v := call.get(k)) is None else call.xp.full_like(x, v) for k in ("min", "max"))
    if low is not None:
        x = call.xp.maximum(x, low)
    return x if high is None else call.xp.minimum(x, high)


def _dropout(call: Call, x: Any, ratio: Any = None, training: Any = None) -> tuple[Any, Any]:
    del ratio
    if training is not None and bool(training.any()):
        raise UnsupportedOperator("`Dropout` in training mode is not supported", hint="export the model with `eval()`")
    return x, call.xp.ones_like(x) > 0


def _relu(call: Call, x: Any) -> Any:
    return call.xp.relu(x)


def _negative(call: Call, x: Any, y: Any) -> Any:
    """`y` where `x` is below zero, `x` elsewhere."""
    return call.xp.where(x < 0, y, x)


def _elu(call: Call, x: Any) -> Any:
    return _negative(call, x, call.get("alpha", 1.0) * (call.xp.exp(call.xp.minimum(x, 0 * x)) - 1))


def _celu(call: Call, x: Any) -> Any:
    alpha = call.get("alpha", 1.0)
    return _negative(call, x, alpha * (call.xp.exp(call.xp.minimum(x, 0 * x) / alpha) - 1))


def _selu(call: Call, x: Any) -> Any:
    alpha, gamma = call.get("alpha", 1.6732632423543772), call.get("gamma", 1.0507009873554805)
    return gamma * _negative(call, x, alpha * (call.xp.exp(call.xp.minimum(x, 0 * x)) - 1))


def _leaky(call: Call, x: Any) -> Any:
    return _negative(call, x, call.get("alpha", 0.01) * x)


def _thresholded(call: Call, x: Any) -> Any:
    return call.xp.where(x > call.get("alpha", 1.0), x, 0 * x)


def _hard_sigmoid(call: Call, x: Any) -> Any:
    return call.xp.clip(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0.0, 1.0)


def _hard_swish(call: Call, x: Any) -> Any:
    return x * call.xp.clip(x / 6 + 0.5, 0.0, 1.0)


def _softplus(call: Call, x: Any) -> Any:
    """Without overflow: log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)."""
    return call.xp.relu(x) + call.xp.log1p(call.xp.exp(-call.xp.abs(x)))


def _mish(call: Call, x: Any) -> Any:
    return x * call.xp.tanh(_softplus(call, x))


def _swish(call: Call, x: Any) -> Any:
    return x * call.xp.sigmoid(call.get("alpha", 1.0) * x)


def _quick_gelu(call: Call, x: Any) -> Any:
    return x * call.xp.sigmoid(call.get("alpha", 1.702) * x)


def _erf_gelu(call: Call, x: Any, bias: Any = None) -> Any:
    x = x if bias is None else x + bias
    return 0.5 * x * (1 + call.xp.erf(x * math.sqrt(0.5)))


def _tanh_gelu(call: Call, x: Any, bias: Any = None) -> Any:
    x = x if bias is None else x + bias
    return 0.5 * x * (1 + call.xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _gelu(call: Call, x: Any) -> Any:
    return (_tanh_gelu if call.get("approximate", "none") == "tanh" else _erf_gelu)(call, x)


def _infinite(call: Call, x: Any) -> Any:
    found = call.xp.isinf(x)
    if not call.get("detect_positive", 1):
        found = call.xp.logical_and(found, x < 0)
    return found if call.get("detect_negative", 1) else call.xp.logical_and(found, x > 0)


def _shift(call: Call, x: Any, count: Any) -> Any:
    return call.xp.shift(x, count, call.get("direction") == "LEFT")


def _bits(call: Call, x: Any) -> Any:
    return call.xp.bitcast(x, TYPES.get(call.get("to"), f"number {call.get('to')}"))


def _shrink(call: Call, x: Any) -> Any:
    bound, bias = call.get("lambd", 0.5), call.get("bias", 0.0)
    return call.xp.where(x < -bound, x + bias, call.xp.where(x > bound, x - bias, 0 * x))


#: Names that NumPy, PyTorch and JAX have in common.
_SHARED = {
    "Abs": "abs", "Acos": "arccos", "Acosh": "arccosh", "And": "logical_and", "Asin": "arcsin", "Asinh": "arcsinh",
    "Atan": "arctan", "Atanh": "arctanh", "BitwiseAnd": "bitwise_and", "BitwiseNot": "bitwise_not",
    "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor", "Ceil": "ceil", "Cos": "cos", "Cosh": "cosh",
    "Equal": "equal", "Exp": "exp", "Floor": "floor", "Greater": "greater", "GreaterOrEqual": "greater_equal",
    "IsNaN": "isnan", "Less": "less", "LessOrEqual": "less_equal", "Log": "log", "Neg": "negative",
    "Not": "logical_not", "Or": "logical_or", "Round": "round", "Sign": "sign", "Sin": "sin", "Sinh": "sinh",
    "Sqrt": "sqrt", "Tan": "tan", "Tanh": "tanh", "Where": "where", "Xor": "logical_xor", "Add": "add",
    "Sub": "subtract", "Mul": "multiply",
}  # fmt: skip
_OWN: dict[str, Function] = {
    "BitCast": _bits,
    "BitShift": _shift,
    "Cast": _cast,
    "Clip": _clip,
    "Div": _divide,
    "Identity": lambda call, x: x,
    "IsInf": _infinite,
    "Max": _folded("maximum"),
    "Mean": _mean,
    "Min": _folded("minimum"),
    "Mod": _modulo,
    "Pow": _power,
    "Reciprocal": lambda call, x: 1 / x,
    "Sum": _folded("add"),
}
#: What NumPy would need SciPy for, or what occurs in activations only.
_SMOOTH: dict[str, Function] = {
    "Celu": _celu,
    "Elu": _elu,
    "Erf": _plain("erf"),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky,
    "Mish": _mish,
    "PRelu": lambda call, x, slope: _negative(call, x, slope * x),
    "Relu": _relu,
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _plain("sigmoid"),
    "Softplus": _softplus,
    "Softsign": lambda call, x: x / (1 + call.xp.abs(x)),
    "Swish": _swish,
    "ThresholdedRelu": _thresholded,
    "com.microsoft.BiasGelu": _erf_gelu,
    "com.microsoft.FastGelu": _tanh_gelu,
    "com.microsoft.Gelu": _erf_gelu,
    "com.microsoft.QuickGelu": _quick_gelu,
}

OPERATORS: dict[str, Operator] = (
    {name: Operator(_plain(shared)) for name, shared in _SHARED.items()}
    | {name: Operator(function) for name, function in _OWN.items()}
    | {"CastLike": Operator(_cast_like, folds=False, raw=True)}
    | {"Dropout": Operator(_dropout, static=(2,))}
    | {name: Operator(function, folds=False) for name, function in _SMOOTH.items()}
)
