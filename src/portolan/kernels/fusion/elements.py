"""Standard operators as expressions of the kernels' tree: element functions, and what works along the last axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from portolan.kernels.ir import Names
from portolan.kernels.tree import Binder, Expr, Ext, Num, Op, Reduce, renamed

if TYPE_CHECKING:
    import onnx


@dataclass
class Writer:
    """What the operators of one chain are written with.

    Attributes:
        last: the index of the last axis, and the symbol of its extent; None where the chain has no reduction.
        numbers: constants of one element, by name.
    """

    last: tuple[str, str] | None
    numbers: Mapping[str, float]
    names: Names = field(default_factory=Names)

    def reduced(self, monoid: str, value: Expr) -> Expr:
        """A reduction of `value` along the last axis."""
        if self.last is None:
            raise LookupError("the chain has no axis to reduce")
        index, symbol = self.last
        name = self.names.new("e")
        return Reduce(monoid, (Binder(name, symbol),), None, (renamed(value, index, name),), "f")

    def mean(self, value: Expr) -> Expr:
        """The mean of `value` along the last axis."""
        if self.last is None:
            raise LookupError("the chain has no axis to reduce")
        return _op("div", self.reduced("sum", value), _op("float", Ext(self.last[1])))


Make = Callable[[Writer, "onnx.NodeProto", Sequence[Expr]], Expr]


def _op(name: str, *args: Expr) -> Expr:
    return Op(name, args, "f")


def _number(value: float) -> Num:
    return Num(float(value), "f")


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    import onnx

    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _direct(name: str) -> Make:
    return lambda writer, node, args: _op(name, *args)


def _folded(name: str) -> Make:
    def make(writer: Writer, node: onnx.NodeProto, args: Sequence[Expr]) -> Expr:
        value = args[0]
        for other in args[1:]:
            value = _op(name, value, other)
        return value

    return make


def _power(writer: Writer, node: onnx.NodeProto, args: Sequence[Expr]) -> Expr:
    base, exponent = args
    match exponent:
        case Num(value=2.0):
            return _op("mul", base, base)
        case Num(value=3.0):
            return _op("mul", _op("mul", base, base), base)
        case Num(value=0.5):
            return _op("sqrt", base)
        case Num(value=-0.5):
            return _op("div", _number(1), _op("sqrt", base))
        case _:
            return _op("pow", base, exponent)


def _clip(writer: Writer, node: onnx.NodeProto, args: Sequence[Expr]) -> Expr:
    value = args[0]
    # A bound that is left out has an empty name, and no expression.
    given = [how for name, how in zip(node.input[1:], ("maximum", "minimum"), strict=False) if name]
    for how, bound in zip(given, args[1:], strict=True):
        value = _op(how, value, bound)
    return value


def _relu(writer: Writer, node: onnx.NodeProto, args: Sequence[Expr]) -> Expr:
    return _op("maximum", args[0], _number(0))


def _leaky(writer: Writer, node: onnx.NodeProto, args: Sequence[Expr]) -> Expr:
    slope = _number(_attribute(node, "alpha", 0.01))
    return Op("where", (Op("lt", (args[0], _number(0)), "b"), _op("mul", args[0], slope), args[0]), "f")


def _hard_sigmoid(writer: Writer, node: onnx.NodeProto, args: Sequence[Expr]) -> Expr:
    return _hard(args[0], _attribute(node, "alpha", 0.2), _attribute(node, "beta", 0.5))


def _hard(x: Expr, alpha: float, beta: float) -> Expr:
    line = _op("add", _op("mul", x, _number(alpha)), _number(beta))
    return _op("minimum", _op("maximum", line, _number(0)), _number(1))


def _hard_swish(writer: Writer, node: onnx.NodeProto, args: Sequence[Expr]) -> Expr:
    return _op("mul", args[0], _hard(args[0], 1 / 6, 0.5))


def _softplus(x: Expr) -> Expr:
    small = _op("log", _op("add", _number(1), _op("exp", _op("neg", _op("abs", x)))))
    return _op("add", _op("maximum", x, _number(0)), small)


def _mish(writer: Writer, node: onnx.NodeProto, args: Sequence[Expr]) -> Expr:
    return _op("mul", args[0], _op("tanh", _softplus(args[0])))


def _gelu(writer: Writer, node: onnx.NodeProto, args: Sequence[Expr]) -> Expr:
    (x,) = args
    if _attribute(node, "approximate", b"none") == b"tanh":
        cube = _op("mul", _op("mul", _op("mul", x, x), x), _number(0.044715))
        inner = _op("tanh", _op("mul", _op("add", x, cube), _number(math.sqrt(2 / math.pi))))
    else:
        inner = _op("erf", _op("mul", x, _number(math.sqrt(0.5))))
    return _op("mul", _op("mul", x, _number(0.5)), _op("add", inner, _number(1)))


def _softmax(writer: Writer, node: onnx.NodeProto, args: Sequence[Expr]) -> Expr:
    weight = _op("exp", _op("sub", args[0], writer.reduced("max", args[0])))
    return _op("mul", weight, _op("div", _number(1), writer.reduced("sum", weight)))


def _log_softmax(writer: Writer, node: onnx.NodeProto, args: Sequence[Expr]) -> Expr:
    apart = _op("sub", args[0], writer.reduced("max", args[0]))
    return _op("sub", apart, _op("log", writer.reduced("sum", _op("exp", apart))))


def _layer_norm(writer: Writer, node: onnx.NodeProto, args: Sequence[Expr]) -> Expr:
    x, scale, *bias = args
    centred = _op("sub", x, writer.mean(x))
    spread = _op(
        "sqrt", _op("add", writer.mean(_op("mul", centred, centred)), _number(_attribute(node, "epsilon", 1e-5)))
    )
    value = _op("mul", _op("mul", centred, _op("div", _number(1), spread)), scale)
    return _op("add", value, bias[0]) if bias else value


def _rms_norm(writer: Writer, node: onnx.NodeProto, args: Sequence[Expr]) -> Expr:
    x, scale = args
    spread = _op("sqrt", _op("add", writer.mean(_op("mul", x, x)), _number(_attribute(node, "epsilon", 1e-5))))
    return _op("mul", _op("mul", x, _op("div", _number(1), spread)), scale)


def _reduction(monoid: str) -> Make:
    def make(writer: Writer, node: onnx.NodeProto, args: Sequence[Expr]) -> Expr:
        return writer.mean(args[0]) if monoid == "mean" else writer.reduced(monoid, args[0])

    return make


ELEMENTWISE: Mapping[str, Make] = {
    **{name: _direct(name.lower()) for name in ("Add", "Sub", "Mul", "Div", "Exp", "Log", "Sqrt", "Tanh", "Sigmoid")},
    **{name: _direct(name.lower()) for name in ("Erf", "Abs", "Neg", "Floor", "Ceil", "Sin", "Cos")},
    "Max": _folded("maximum"),
    "Min": _folded("minimum"),
    "Sum": _folded("add"),
    "Pow": _power,
    "Clip": _clip,
    "Relu": _relu,
    "LeakyRelu": _leaky,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Softplus": lambda writer, node, args: _softplus(args[0]),
    "Mish": _mish,
    "Gelu": _gelu,
    "Reciprocal": lambda writer, node, args: _op("div", _number(1), args[0]),
    "Identity": lambda writer, node, args: args[0],
}
"""Operators that work on each element by itself."""

DEAR = ("Exp", "Log", "Sqrt", "Tanh", "Sigmoid", "Erf", "Sin", "Cos", "Pow", "Softplus", "Mish", "Gelu", "HardSwish")
"""Those of them that cost more than the memory they read; runtimes add the rest to convolutions and products."""

ALONG: Mapping[str, Make] = {
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "ReduceMean": _reduction("mean"),
    "ReduceSum": _reduction("sum"),
    "ReduceMax": _reduction("max"),
    "ReduceMin": _reduction("min"),
}
"""Operators that work along the last axis."""
