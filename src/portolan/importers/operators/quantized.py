"""Whole numbers that stand for floats: scales, zero points, products of codes."""

from __future__ import annotations

from typing import Any

from portolan.importers.operators import products
from portolan.importers.operators.call import Call, Operator
from portolan.importers.operators.elementwise import TYPES

#: The codes that each element type holds.
_RANGES = {
    "uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767),
    "int32": (-(2**31), 2**31 - 1),
}  # fmt: skip


def _spread(call: Call, values: Any, x: Any) -> Any:
    """A scale or zero point as it applies to `x`: for all, along an axis, or for blocks along it."""
    rank, axis = len(x.shape), call.get("axis", 1)
    if len(values.shape) == 0 or (len(values.shape) == 1 and values.shape[0] == 1 and rank != 1):
        return call.xp.reshape(values, [])
    axis %= rank
    if len(values.shape) == 1:
        return call.xp.reshape(values, [-1 if i == axis else 1 for i in range(rank)])
    size = call.get("block_size", 0) or -(-x.shape[axis] // values.shape[axis])
    lead = list(values.shape)
    blocks = call.xp.reshape(values, [*lead[: axis + 1], 1, *lead[axis + 1 :]])
    blocks = call.xp.broadcast_to(blocks, [*lead[: axis + 1], size, *lead[axis + 1 :]])
    whole = call.xp.reshape(blocks, [*lead[:axis], lead[axis] * size, *lead[axis + 1 :]])
    return whole[(*(slice(None) for _ in range(axis)), slice(0, x.shape[axis]))]


def _dequantize(call: Call, x: Any, scale: Any, zero: Any = None) -> Any:
    kind = call.xp.dtype(scale)
    value = call.xp.astype(x, "int32" if call.xp.kind(x) == "i" else kind)
    if zero is not None:
        value = value - call.xp.astype(_spread(call, zero, x), call.xp.dtype(value))
    found = call.xp.astype(value, kind) * _spread(call, scale, x)
    return call.xp.astype(found, TYPES[call.get("output_dtype", 0)]) if call.get("output_dtype", 0) else found


def _codes(call: Call, x: Any, kind: str) -> Any:
    low, high = _RANGES[kind]
    return call.xp.astype(call.xp.clip(x, low, high), kind)


def _quantize(call: Call, x: Any, scale: Any, zero: Any = None) -> Any:
    kind = call.xp.dtype(zero) if zero is not None else TYPES[call.get("output_dtype", 0) or 2]
    value = call.xp.round(call.xp.astype(x, "float32") / call.xp.astype(_spread(call, scale, x), "float32"))
    if zero is not None:
        value = value + call.xp.astype(_spread(call, zero, x), "float32")
    return _codes(call, value, kind)


def _moved(call: Call, x: Any, zero: Any, axis: int) -> Any:
    """Codes less their zero point, as floats that hold every product exactly."""
    x = call.xp.astype(x, "float64")
    if zero is None:
        return x
    zero = call.xp.astype(zero, "float64")
    if len(zero.shape) == 1 and zero.shape[0] > 1:
        zero = call.xp.reshape(zero, [-1 if i == axis % len(x.shape) else 1 for i in range(len(x.shape))])
    elif len(zero.shape) == 1:
        zero = call.xp.reshape(zero, [])
    return x - zero


def _matmul_integer(call: Call, a: Any, b: Any, zero_a: Any = None, zero_b: Any = None) -> Any:
    return call.xp.astype(_product(call, a, b, zero_a, zero_b), "int32")


def _product(call: Call, a: Any, b: Any, zero_a: Any, zero_b: Any) -> Any:
    return call.xp.matmul(_moved(call, a, zero_a, -2), _moved(call, b, zero_b, -1))


def _along(call: Call, scale: Any, axis: int, rank: int) -> Any:
    scale = call.xp.astype(scale, "float64")
    if len(scale.shape) == 1 and scale.shape[0] > 1:
        return call.xp.reshape(scale, [-1 if i == axis % rank else 1 for i in range(rank)])
    return scale if len(scale.shape) > 1 else call.xp.reshape(scale, [])


def _rescaled(call: Call, total: Any, factor: Any, zero: Any) -> Any:
    value = call.xp.round(total * factor) + call.xp.astype(zero, "float64")
    return _codes(call, value, call.xp.dtype(zero))


def _qlinear_matmul(call: Call, a: Any, scale_a: Any, zero_a: Any, b: Any, scale_b: Any, zero_b: Any, scale: Any,
                    zero: Any) -> Any:  # fmt: skip
    total = _product(call, a, b, zero_a, zero_b)
    rank = len(total.shape)
    factor = _along(call, scale_a, -2, rank) * _along(call, scale_b, -1, rank)
    return _rescaled(call, total, factor / call.xp.astype(call.xp.reshape(scale, []), "float64"), zero)


def _conv_integer(call: Call, x: Any, w: Any, zero_x: Any = None, zero_w: Any = None) -> Any:
    found = products.conv(call, _moved(call, x, zero_x, 1), _moved(call, w, zero_w, 0))
    return call.xp.astype(found, "int32")


def _qlinear_conv(call: Call, x: Any, scale_x: Any, zero_x: Any, w: Any, scale_w: Any, zero_w: Any, scale: Any,
                  zero: Any, bias: Any = None) -> Any:  # fmt: skip
    bias = None if bias is None else call.xp.astype(bias, "float64")
    total = products.conv(call, _moved(call, x, zero_x, 1), _moved(call, w, zero_w, 0), bias)
    rank = len(total.shape)
    factor = _along(call, scale_x, 1, rank) * _along(call, scale_w, 1, rank)
    return _rescaled(call, total, factor / call.xp.astype(call.xp.reshape(scale, []), "float64"), zero)


def _dynamic(call: Call, x: Any) -> tuple[Any, ...]:
    axes = tuple(range(len(x.shape)))
    nothing = 0 * call.xp.reduce("sum", x, axes, False)
    low = call.xp.minimum(call.xp.reduce("min", x, axes, False), nothing)
    high = call.xp.maximum(call.xp.reduce("max", x, axes, False), nothing)
    scale = (high - low) / 255
    zero = _codes(call, call.xp.round(-low / scale), "uint8")
    return _codes(call, call.xp.round(x / scale) + call.xp.astype(zero, "float32"), "uint8"), scale, zero


OPERATORS: dict[str, Operator] = {
    "ConvInteger": Operator(_conv_integer, folds=False),
    "DequantizeLinear": Operator(_dequantize),
    "DynamicQuantizeLinear": Operator(_dynamic),
    "MatMulInteger": Operator(_matmul_integer),
    "QLinearConv": Operator(_qlinear_conv, folds=False),
    "QLinearMatMul": Operator(_qlinear_matmul),
    "QuantizeLinear": Operator(_quantize),
}
