"""Matrix products, convolutions and pooling."""

from __future__ import annotations

import math
from typing import Any

from portolan.errors import UnsupportedOperator
from portolan.importers.operators import shapes
from portolan.importers.operators.call import Call, Operator

Pads = list[tuple[int, int]]


def _gemm(call: Call, a: Any, b: Any, c: Any = None) -> Any:
    a = call.xp.transpose(a, [1, 0]) if call.get("transA", 0) else a
    b = call.xp.transpose(b, [1, 0]) if call.get("transB", 0) else b
    found = _times(call.xp.matmul(a, b), call.get("alpha", 1.0))
    return found if c is None else found + _times(c, call.get("beta", 1.0))


def _times(x: Any, factor: float) -> Any:
    return x if factor == 1 else x * factor


def _fused_matmul(call: Call, a: Any, b: Any) -> Any:
    if call.get("transBatchA", 0) or call.get("transBatchB", 0):
        raise UnsupportedOperator("`FusedMatMul` with transposed batches is not supported", hint="export it unfused")
    a = call.xp.transpose(a, _swapped(a)) if call.get("transA", 0) else a
    b = call.xp.transpose(b, _swapped(b)) if call.get("transB", 0) else b
    return _times(call.xp.matmul(a, b), call.get("alpha", 1.0))


def _swapped(x: Any) -> list[int]:
    rank = len(x.shape)
    return [*range(rank - 2), rank - 1, rank - 2]


def _einsum(call: Call, *inputs: Any) -> Any:
    return call.xp.einsum(call.get("equation"), *inputs)


def _window(call: Call, x: Any, kernel: list[int], strides: list[int], dilations: list[int]) -> Pads:
    """The padding of each axis, which some models name by a rule."""
    rule, rank = call.get("auto_pad", "NOTSET"), len(kernel)
    if rule == "NOTSET":
        pads = call.get("pads", [0] * 2 * rank)
        return list(zip(pads[:rank], pads[rank:], strict=True))
    if rule == "VALID":
        return [(0, 0)] * rank
    found = []
    for size, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size, 0)
        found.append((total // 2, total - total // 2) if rule == "SAME_UPPER" else (total - total // 2, total // 2))
    return found


def conv(call: Call, x: Any, weight: Any, bias: Any = None) -> Any:
    """A convolution; its padding may be named by a rule."""
    kernel = list(weight.shape[2:])
    strides, dilations = call.get("strides", [1] * len(kernel)), call.get("dilations", [1] * len(kernel))
    pads = _window(call, x, kernel, strides, dilations)
    return call.xp.conv(x, weight, bias, strides, pads, dilations, call.get("group", 1))


def _conv_transpose(call: Call, x: Any, weight: Any, bias: Any = None) -> Any:
    kernel = list(weight.shape[2:])
    rank = len(kernel)
    strides, dilations = call.get("strides", [1] * rank), call.get("dilations", [1] * rank)
    extra = list(call.get("output_padding", [0] * rank))
    if call.get("output_shape") or call.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        pads, extra = _transposed_pads(call, x, kernel, strides, dilations, extra)
    else:
        pads = _window(call, x, kernel, strides, dilations)
    return call.xp.conv_transpose(x, weight, bias, strides, pads, extra, dilations, call.get("group", 1))


def _transposed_pads(
    call: Call, x: Any, kernel: list[int], strides: list[int], dilations: list[int], extra: list[int]
) -> tuple[Pads, list[int]]:
    rule, found = call.get("auto_pad", "NOTSET"), []
    wanted = call.get("output_shape") or [s * n for s, n in zip(x.shape[2:], strides, strict=True)]
    for i, (size, k) in enumerate(zip(x.shape[2:], kernel, strict=True)):
        total = strides[i] * (size - 1) + extra[i] + (k - 1) * dilations[i] + 1 - wanted[-len(kernel) :][i]
        if total < 0:
            total, extra[i] = 0, extra[i] - total
        found.append((total // 2, total - total // 2) if rule == "SAME_UPPER" else (total - total // 2, total // 2))
    return found, extra


def _pooled(call: Call, x: Any) -> tuple[list[int], list[int], list[int], Pads]:
    kernel = list(call.get("kernel_shape"))
    strides, dilations = call.get("strides", [1] * len(kernel)), call.get("dilations", [1] * len(kernel))
    pads = _window(call, x, kernel, strides, dilations)
    if call.get("ceil_mode", 0):
        # What is missing for a last, partial window is padded at the end, unless it would begin in the padding.
        for i, (before, after) in enumerate(pads):
            size, span = x.shape[2 + i] + before + after, dilations[i] * (kernel[i] - 1) + 1
            count = math.ceil((size - span) / strides[i]) + 1
            if (count - 1) * strides[i] >= x.shape[2 + i] + before:
                count -= 1
            pads[i] = (before, after + max((count - 1) * strides[i] + span - size, 0))
    return kernel, list(strides), list(dilations), pads


def _max_pool(call: Call, x: Any) -> Any:
    if call.outputs > 1:
        raise UnsupportedOperator("`MaxPool` with indices is not supported", hint="export it with one output")
    return call.xp.max_pool(x, *_pooled(call, x))


def _average_pool(call: Call, x: Any) -> Any:
    kernel, strides, dilations, pads = _pooled(call, x)
    whole = math.prod(kernel)
    given = _window(call, x, kernel, strides, dilations)
    counted: Any = whole
    inside = given if call.get("count_include_pad", 0) else [(0, 0)] * len(kernel)
    if any(pair != known for pair, known in zip(pads, inside, strict=True)):
        # A window at the edge holds fewer elements: as many as a pool over ones finds.
        ones = call.xp.ones_like(x[:1, :1])
        for axis, (before, after) in enumerate(inside):
            ones = shapes.padded(call, ones, 2 + axis, before, after, "constant", 1.0)
        rest = [(a - c, b - d) for (a, b), (c, d) in zip(pads, inside, strict=True)]
        counted = call.xp.average_pool(ones, kernel, strides, dilations, rest, 1)
    return call.xp.average_pool(x, kernel, strides, dilations, pads, counted)


def _lp_pool(call: Call, x: Any) -> Any:
    kernel, strides, dilations, pads = _pooled(call, x)
    p = call.get("p", 2)
    powers = call.xp.average_pool(call.xp.pow(call.xp.abs(x), p), kernel, strides, dilations, pads, 1)
    return call.xp.pow(powers, 1 / p)


def _global_lp_pool(call: Call, x: Any) -> Any:
    p = call.get("p", 2)
    powers = call.xp.reduce("sum", call.xp.pow(call.xp.abs(x), p), tuple(range(2, len(x.shape))), True)
    return call.xp.pow(powers, 1 / p)


def _global(name: str) -> Any:
    def function(call: Call, x: Any) -> Any:
        return call.xp.reduce(name, x, tuple(range(2, len(x.shape))), True)

    return function


def _lrn(call: Call, x: Any) -> Any:
    size = call.get("size")
    before = (size - 1) // 2
    squares = call.xp.concat([x[:, :1] * 0] * before + [x * x] + [x[:, :1] * 0] * (size - 1 - before), 1)
    total: Any = sum(squares[:, i : i + x.shape[1]] for i in range(size))
    return x / (call.get("bias", 1.0) + call.get("alpha", 1e-4) / size * total) ** call.get("beta", 0.75)


OPERATORS: dict[str, Operator] = {
    "AveragePool": Operator(_average_pool, folds=False),
    "Conv": Operator(conv, folds=False),
    "ConvTranspose": Operator(_conv_transpose, folds=False),
    "Det": Operator(lambda call, x: call.xp.linalg.det(x), folds=False),
    "Einsum": Operator(_einsum),
    "Gemm": Operator(_gemm),
    "GlobalAveragePool": Operator(_global("mean")),
    "GlobalLpPool": Operator(_global_lp_pool, folds=False),
    "GlobalMaxPool": Operator(_global("max")),
    "LRN": Operator(_lrn),
    "LpPool": Operator(_lp_pool, folds=False),
    "MatMul": Operator(lambda call, a, b: call.xp.matmul(a, b)),
    "MaxPool": Operator(_max_pool, folds=False),
    "com.microsoft.FusedMatMul": Operator(_fused_matmul),
}
