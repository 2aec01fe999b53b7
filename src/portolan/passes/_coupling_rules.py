"""What each operator says about channels: which positions of its inputs and outputs are the same, and which must stay.

A rule takes the coupling, the graph and the node, and gives False where it does not understand the node: then all of
it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from portolan.passes._coupling import Coupling, Fix, Use
from portolan.passes._coupling_reshape import reshape, stays
from portolan.passes._surgery import attribute

if TYPE_CHECKING:
    import onnx

Rule = Callable[[Coupling, "onnx.ModelProto", "onnx.NodeProto"], bool]


def _through(c: Coupling, source: str, target: str, axes: Sequence[tuple[int, int]]) -> None:
    """These axes of one tensor are those of another."""
    for a, b in axes:
        c.same(c.axis(source, a), c.axis(target, b))


def _elementwise(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    del proto
    for output in filter(None, node.output):
        rank = len(c.sizes[output])
        for name in filter(None, node.input):
            shift = rank - len(c.sizes[name])
            if shift < 0:
                return False
            for axis, size in enumerate(c.sizes[name]):
                if size != 1:  # a single value goes to all positions
                    c.same(c.axis(name, axis), c.axis(output, axis + shift))
    return True


def _convolution(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    del proto
    x, w, y = node.input[0], node.input[1], node.output[0]
    groups = attribute(node, "group", 1)
    outputs = c.axis(w, 0)
    c.same(outputs, c.axis(y, 1))
    if len(node.input) > 2 and node.input[2]:
        c.same(c.axis(node.input[2], 0), outputs)
    c.convolved.add((w, 0))
    window = range(2, len(c.sizes[x]))
    _through(c, x, y, [(0, 0)])
    stays(c, x, window)
    stays(c, y, window)
    stays(c, w, window)
    if groups == 1:
        c.same(c.axis(x, 1), c.axis(w, 1))
        if w in c.constants:
            c.uses.append(Use((w, 1), (x, 1), True))
        return True
    return _grouped(c, node, groups)


def _grouped(c: Coupling, node: onnx.NodeProto, groups: int) -> bool:
    """A group of channels goes whole, with what it gives: depthwise convolutions have one channel per group."""
    import numpy as np

    x, w = node.input[:2]
    inputs, outputs = c.axis(x, 1), c.axis(w, 0)
    if inputs is None or outputs is None:
        return False
    c.keep(c.axis(w, 1))
    leaders = np.repeat(inputs[:: len(inputs) // groups], len(inputs) // groups)
    c.same(leaders, inputs)
    c.same(np.repeat(inputs[:: len(inputs) // groups], len(outputs) // groups), outputs)
    c.fixes.append(Fix(node.output[0], -1, 0, (x, 1), len(inputs) // groups))
    return True


def _transposed_convolution(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    del proto
    x, w, y = node.input[0], node.input[1], node.output[0]
    if attribute(node, "group", 1) != 1:
        return False
    c.same(c.axis(x, 1), c.axis(w, 0))
    c.same(c.axis(w, 1), c.axis(y, 1))
    if len(node.input) > 2 and node.input[2]:
        c.same(c.axis(node.input[2], 0), c.axis(y, 1))
    _through(c, x, y, [(0, 0)])
    for name in (x, y, w):
        stays(c, name, range(2, len(c.sizes[name])))
    c.convolved.add((w, 1))
    if w in c.constants:
        c.uses.append(Use((w, 0), (x, 1), True))
    return True


def _product(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    del proto
    (a, b), y = node.input, node.output[0]
    ranks = [len(c.sizes[name]) for name in (a, b, y)]
    if min(ranks) < 2:
        return False
    c.same(c.axis(a, -1), c.axis(b, -2))
    c.same(c.axis(a, -2), c.axis(y, -2))
    c.same(c.axis(b, -1), c.axis(y, -1))
    for name, rank in zip((a, b), ranks, strict=False):
        for axis in range(rank - 2):
            if c.sizes[name][axis] != 1:
                c.same(c.axis(name, axis), c.axis(y, axis + ranks[2] - rank))
    if b in c.constants and ranks[1] == 2:
        c.uses.append(Use((b, 0), (a, ranks[0] - 1), False))
    if a not in c.constants and b not in c.constants:
        c.crossed.update((y, axis) for axis in range(ranks[2] - 2))
    return True


def _gemm(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    del proto
    (a, b), y = node.input[:2], node.output[0]
    if attribute(node, "transA", 0):
        return False
    summed, column = (1, 0) if attribute(node, "transB", 0) else (0, 1)
    c.same(c.axis(a, 1), c.axis(b, summed))
    c.same(c.axis(a, 0), c.axis(y, 0))
    c.same(c.axis(b, column), c.axis(y, 1))
    if len(node.input) > 2 and node.input[2]:
        bias = node.input[2]
        for axis, size in enumerate(c.sizes[bias]):
            if size != 1:
                c.same(c.axis(bias, axis), c.axis(y, axis + 2 - len(c.sizes[bias])))
    if b in c.constants:
        c.uses.append(Use((b, summed), (a, 1), False))
    return True


def _per_channel(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Normalisations with one scale, bias, mean and variance per channel."""
    del proto
    x, y = node.input[0], node.output[0]
    if len(node.output) > 1:  # in training mode
        return False
    for name in node.input[1:]:
        c.same(c.axis(name, 0), c.axis(x, 1))
    _through(c, x, y, [(axis, axis) for axis in range(len(c.sizes[x]))])
    return True


def _pool(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    del proto
    x, y = node.input[0], node.output[0]
    if len(node.output) > 1:
        return False
    _through(c, x, y, [(0, 0), (1, 1)])
    for name in (x, y):
        stays(c, name, range(2, len(c.sizes[name])))
    return True


def _along(first: int, *, rest: bool) -> Rule:
    """Operators that mix positions along one axis (`rest`: along it and all behind it); the others pass."""

    def rule(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
        x, y = node.input[0], node.output[0]
        rank = len(c.sizes[x])
        behind = rest or (node.op_type != "LayerNormalization" and _version(proto) < 13)
        axis = attribute(node, "axis", first if not behind or rest else 1) % rank
        mixed = range(axis, rank) if behind else [axis]
        for name in filter(None, (*node.input, *node.output)):
            if len(c.sizes[name]) != rank:  # scales and biases
                c.keep_tensor(name)
        for k in range(rank):
            if k in mixed:
                stays(c, x, [k])
                stays(c, y, [k])
            else:
                c.same(c.axis(x, k), c.axis(y, k))
        return True

    return rule


def _version(proto: onnx.ModelProto) -> int:
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)


def _reduction(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    del proto
    x, y = node.input[0], node.output[0]
    rank = len(c.sizes[x])
    listed = attribute(node, "axes")
    if listed is None and len(node.input) > 1 and node.input[1]:
        if node.input[1] not in c.constants:
            return False
        listed = c.constants[node.input[1]].tolist()
    gone = {axis % rank for axis in listed or ()} or set(range(rank))
    place = 0
    for axis in range(rank):
        if axis in gone:
            stays(c, x, [axis])
            place += bool(attribute(node, "keepdims", 1))
        else:
            c.same(c.axis(x, axis), c.axis(y, place))
            place += 1
    return True


def _transpose(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    del proto
    x, y = node.input[0], node.output[0]
    order = attribute(node, "perm", list(reversed(range(len(c.sizes[x])))))
    _through(c, x, y, [(axis, place) for place, axis in enumerate(order)])
    return True


def _concat(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    del proto
    y = node.output[0]
    axis = attribute(node, "axis", 0) % len(c.sizes[y])
    whole, start = c.axis(y, axis), 0
    for name in node.input:
        part = c.axis(name, axis)
        c.same(part, None if whole is None or part is None else whole[start : start + len(part)])
        start += 0 if part is None else len(part)
        _through(c, name, y, [(k, k) for k in range(len(c.sizes[y])) if k != axis])
    return True


def _split(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    del proto
    x = node.input[0]
    axis = attribute(node, "axis", 0) % len(c.sizes[x])
    whole, start = c.axis(x, axis), 0
    listed = len(node.input) > 1 and node.input[1] in c.constants
    if (
        whole is None
        or (not listed and attribute(node, "num_outputs") is None)
        or any(not name for name in node.output)
    ):
        return False
    for i, name in enumerate(node.output):
        part = c.axis(name, axis)
        if part is None:
            return False
        c.same(part, whole[start : start + len(part)])
        if listed:
            c.fixes.append(Fix(node.output[0], 1, i, (name, axis)))
        elif i:  # equal parts stay equal
            c.same(part, c.axis(node.output[0], axis))
        start += len(part)
        _through(c, x, name, [(k, k) for k in range(len(c.sizes[x])) if k != axis])
    return True


def _gather(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    del proto
    x, indices, y = node.input[0], node.input[1], node.output[0]
    axis = attribute(node, "axis", 0) % len(c.sizes[x])
    more = len(c.sizes[indices])
    c.keep_tensor(indices)
    stays(c, x, [axis])
    stays(c, y, range(axis, axis + more))
    _through(c, x, y, [(k, k if k < axis else k - 1 + more) for k in range(len(c.sizes[x])) if k != axis])
    return True


def _slice(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    del proto
    x, y = node.input[0], node.output[0]
    rank = len(c.sizes[x])
    axes = attribute(node, "axes")
    if len(node.input) > 3 and node.input[3]:
        if node.input[3] not in c.constants:
            return False
        axes = c.constants[node.input[3]].tolist()
    cut = {axis % rank for axis in axes} if axes is not None else set(range(rank))
    for axis in range(rank):
        if axis in cut:
            stays(c, x, [axis])
            stays(c, y, [axis])
        else:
            c.same(c.axis(x, axis), c.axis(y, axis))
    return True


def _pad(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    del proto
    x, y = node.input[0], node.output[0]
    rank = len(c.sizes[x])
    amounts = attribute(node, "pads")
    if amounts is None and len(node.input) > 1 and node.input[1] in c.constants:
        amounts = c.constants[node.input[1]].tolist()
    if amounts is None or len(amounts) != 2 * rank or (len(node.input) > 3 and node.input[3]):
        return False
    for axis in range(rank):
        if amounts[axis] or amounts[axis + rank]:
            stays(c, x, [axis])
            stays(c, y, [axis])
        else:
            c.same(c.axis(x, axis), c.axis(y, axis))
    return True


def _resize(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """By factors only: sizes would name the channels too."""
    if node.op_type == "Resize" and (len(node.input) > 3 or attribute(node, "axes") is not None):
        return False
    return _pool(c, proto, node)


def _shape(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """What reads single sizes ties those only."""
    x, rank = node.input[0], len(c.sizes[node.input[0]])
    if attribute(node, "start") is not None or attribute(node, "end") is not None:
        return False
    for reader in proto.graph.node:
        if node.output[0] not in reader.input:
            continue
        if reader.op_type != "Gather" or reader.input[0] != node.output[0] or reader.input[1] not in c.constants:
            return False
        stays(c, x, [int(i) % rank for i in c.constants[reader.input[1]].reshape(-1)])
    return True


_ELEMENTWISE = (
    "Abs", "Add", "Cast", "Celu", "Clip", "Cos", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Gelu", "Greater",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu",
    "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum",
    "Swish", "Tanh", "ThresholdedRelu", "Where",
)  # fmt: skip
_REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
)
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), reshape),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("LogSoftmax", "Softmax"), _along(-1, rest=False)),
    "BatchNormalization": _per_channel,
    "InstanceNormalization": _per_channel,
    "LayerNormalization": _along(-1, rest=True),
    "Concat": _concat,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _product,
    "Pad": _pad,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
}
