"""Where each operator lets a length through; see `_lengths`.

A rule is asked only where the length comes in. It says which axes of the outputs hold one entry per position, what has
to be cut or set for that, and raises `Stuck` where it cannot be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from portolan.passes._coupling_reshape import regrouped
from portolan.passes._lengths import Lengths, Size, Stuck, named
from portolan.passes._surgery import attribute

if TYPE_CHECKING:
    import onnx

Rule = Callable[[Lengths, "onnx.NodeProto"], None]


def _elementwise(s: Lengths, node: onnx.NodeProto) -> None:
    """Inputs are aligned at their last axes."""
    y = node.output[0]
    rank = s.rank(y)
    shifts = [rank - s.rank(name) if name else 0 for name in node.input]
    axes = {axis + shift for name, shift in zip(node.input, shifts, strict=True) for axis in s.at(name)}
    axes |= s.wanted.get(y, frozenset())
    for place, (name, shift) in enumerate(zip(node.input, shifts, strict=True)):
        for axis in axes if name else ():
            if axis >= shift:
                s.meet(node, place, axis - shift)
    s.put(y, axes)


def _same(s: Lengths, node: onnx.NodeProto) -> None:
    """The first output has the axes of the first input, and nothing else has a length."""
    _alone(s, node)
    s.put(node.output[0], s.at(node.input[0]))


def _alone(s: Lengths, node: onnx.NodeProto) -> None:
    if any(s.at(name) for name in node.input[1:]):
        raise Stuck(f"{named(node)} takes more than its first input from it")


def _product(s: Lengths, node: onnx.NodeProto) -> None:
    a, b, y = node.input[0], node.input[1], node.output[0]
    ranks = s.rank(a), s.rank(b), s.rank(y)
    if min(ranks) < 2:
        raise Stuck(f"{named(node)} multiplies a vector")
    if ranks[0] - 1 in s.at(a) or ranks[1] - 2 in s.at(b):  # summed over
        s.meet(node, 0, ranks[0] - 1)
        s.meet(node, 1, ranks[1] - 2)
    axes = {axis + ranks[2] - ranks[0] for axis in s.at(a) if axis != ranks[0] - 1}
    axes |= {axis + ranks[2] - ranks[1] for axis in s.at(b) if axis != ranks[1] - 2}
    for place in range(2):
        for axis in axes:
            own = axis - ranks[2] + ranks[place]
            if 0 <= own < ranks[place] - 2:
                s.meet(node, place, own)
    s.put(y, axes)


def _gemm(s: Lengths, node: onnx.NodeProto) -> None:
    a, b, y = node.input[0], node.input[1], node.output[0]
    row, summed = (1, 0) if attribute(node, "transA", 0) else (0, 1)
    over, column = (1, 0) if attribute(node, "transB", 0) else (0, 1)
    if summed in s.at(a) or over in s.at(b):
        s.meet(node, 0, summed)
        s.meet(node, 1, over)
    axes = {0} if row in s.at(a) else set()
    axes |= {1} if column in s.at(b) else set()
    for axis in axes if len(node.input) > 2 and node.input[2] else ():
        if axis + s.rank(node.input[2]) >= 2:
            s.meet(node, 2, axis + s.rank(node.input[2]) - 2)
    s.put(y, axes)


def _normalisation(s: Lengths, node: onnx.NodeProto) -> None:
    _alone(s, node)
    first = attribute(node, "axis", -1) % s.rank(node.input[0])
    if any(axis >= first for axis in s.at(node.input[0])):
        raise Stuck(f"{named(node)} normalises over all positions, padding included")
    s.put(node.output[0], s.at(node.input[0]))


def _softmax(s: Lengths, node: onnx.NodeProto) -> None:
    rank = s.rank(node.input[0])
    if s.version < 13 and attribute(node, "axis", 1) % rank != rank - 1:
        raise Stuck(f"{named(node)} takes several axes as one")
    _same(s, node)


def _reduction(s: Lengths, node: onnx.NodeProto) -> None:
    """Sums and maxima over positions may leave padding out: whether they do is seen by running them."""
    x, rank = node.input[0], s.rank(node.input[0])
    listed = attribute(node, "axes")
    if listed is None and len(node.input) > 1 and node.input[1]:
        if node.input[1] not in s.constants:
            raise Stuck(f"the axes of {named(node)} are computed")
        listed = s.constants[node.input[1]].tolist()
    if node.op_type.startswith("Arg"):
        listed = [attribute(node, "axis", 0)]
    if not listed and attribute(node, "noop_with_empty_axes", 0):
        s.put(node.output[0], s.at(x))
        return
    gone = {axis % rank for axis in listed or range(rank)}
    if gone & s.at(x) and node.op_type == "ReduceMean":
        raise Stuck(f"{named(node)} takes the mean over all positions, padding included")
    keeps = attribute(node, "keepdims", 1)
    left = [axis for axis in range(rank) if keeps or axis not in gone]
    s.put(node.output[0], [place for place, axis in enumerate(left) if axis in s.at(x) and axis not in gone])


def _transpose(s: Lengths, node: onnx.NodeProto) -> None:
    x = node.input[0]
    order = attribute(node, "perm", list(reversed(range(s.rank(x)))))
    s.put(node.output[0], [place for place, axis in enumerate(order) if axis in s.at(x)])


def _reshape(s: Lengths, node: onnx.NodeProto) -> None:
    """Each axis of positions has to come out as one axis again: the same size with as much behind it."""
    _alone(s, node)
    x, y = node.input[0], node.output[0]
    before, after, found = s.shape(x), s.shape(y), set()
    for axis in s.at(x):
        parts = next((part for part in regrouped(before, after) if axis in part[0]), ([], []))
        behind = _product_of(before, [k for k in parts[0] if k > axis])
        fits = [
            j for j in parts[1] if after[j] == s.full and _product_of(after, [k for k in parts[1] if k > j]) == behind
        ]
        if not fits:
            raise Stuck(f"{named(node)} puts positions on one axis with something else")
        found.add(fits[0])
        if node.op_type == "Reshape":
            s.sizes.append(Size(y, fits[0]))
    s.put(y, found)


def _product_of(shape: Sequence[int | None], axes: Sequence[int]) -> int | None:
    sizes = [shape[axis] for axis in axes]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def _expand(s: Lengths, node: onnx.NodeProto) -> None:
    """What it repeats to the full length is taken for positions too: a mask, once for every query."""
    _alone(s, node)
    x, y = node.input[0], node.output[0]
    shift = s.rank(y) - s.rank(x)
    axes = {axis + shift for axis in s.at(x)}
    for axis, size in enumerate(s.shape(y)):
        own = axis - shift
        if size == s.full and axis not in axes and (own < 0 or s.shape(x)[own] == 1):
            axes.add(axis)
    inner = s.rank(y)
    listed = s.shape(node.input[1])[0] or inner
    s.sizes.extend(Size(y, axis - (inner - listed)) for axis in axes if axis >= inner - listed)
    s.put(y, axes)


def _concat(s: Lengths, node: onnx.NodeProto) -> None:
    y = node.output[0]
    along = attribute(node, "axis", 0) % s.rank(y)
    axes = frozenset().union(*(s.at(name) for name in node.input))
    if along in axes:
        raise Stuck(f"{named(node)} puts something before or behind the positions")
    for place in range(len(node.input)):
        for axis in axes:
            s.meet(node, place, axis)
    s.put(y, axes)


def _split(s: Lengths, node: onnx.NodeProto) -> None:
    x = node.input[0]
    if attribute(node, "axis", 0) % s.rank(x) in s.at(x):
        raise Stuck(f"{named(node)} splits the positions")
    for name in filter(None, node.output):
        s.put(name, s.at(x))


def _slice(s: Lengths, node: onnx.NodeProto) -> None:
    """The first position alone is there at any length; other ranges of positions are not."""
    x, y, rank = node.input[0], node.output[0], s.rank(node.input[0])
    listed = [attribute(node, "starts"), attribute(node, "ends"), attribute(node, "axes"), None]
    for place, name in enumerate(node.input[1:]):
        if name and name not in s.constants:
            raise Stuck(f"the range of {named(node)} is computed")
        listed[place] = s.constants[name].tolist() if name else None
    starts, ends = listed[0] or [], listed[1] or []
    axes = [axis % rank for axis in listed[2] or range(len(starts))]
    gone = set()
    for start, end, axis in zip(starts, ends, axes, strict=True):
        if axis not in s.at(x) or (start == 0 and end >= s.full and listed[3] in (None, [1] * len(starts))):
            continue
        if (start, end) != (0, 1):
            raise Stuck(f"{named(node)} takes other positions than the first")
        gone.add(axis)
    s.put(y, s.at(x) - gone)


def _gather(s: Lengths, node: onnx.NodeProto) -> None:
    x, indices, y = node.input[0], node.input[1], node.output[0]
    axis, more = attribute(node, "axis", 0) % s.rank(x), s.rank(indices)
    if axis in s.at(x) and (indices not in s.constants or s.constants[indices].any()):
        raise Stuck(f"{named(node)} takes other positions than the first")
    found = {k if k < axis else k - 1 + more for k in s.at(x) if k != axis}
    s.put(y, found | {axis + k for k in s.at(indices)})


def _gather_elements(s: Lengths, node: onnx.NodeProto) -> None:
    x, indices = node.input
    axis = attribute(node, "axis", 0) % s.rank(x)
    if axis in s.at(x):
        raise Stuck(f"{named(node)} takes positions by number")
    for k in s.at(x):
        s.meet(node, 1, k)
    s.put(node.output[0], s.at(indices) | s.at(x))


def _gather_nd(s: Lengths, node: onnx.NodeProto) -> None:
    """Positions in their order, as an exporter writes a mask that is indexed: the table of indices is cut."""
    import numpy as np

    x, indices = node.input
    if attribute(node, "batch_dims", 0) or indices not in s.constants or len(s.at(x)) != 1:
        raise Stuck(f"{named(node)} takes positions by number")
    table, (axis,) = s.constants[indices], tuple(s.at(x))
    depth = table.shape[-1]
    if axis >= depth:
        s.put(node.output[0], [table.ndim - 1 + axis - depth])
        return
    for k in range(table.ndim - 1):
        order = np.arange(table.shape[k]).reshape(-1, *[1] * (table.ndim - 2 - k))
        if table.shape[k] == s.full and (table[..., axis] == order).all():
            s.meet(node, 1, k)
            s.put(node.output[0], [k])
            return
    raise Stuck(f"{named(node)} takes positions by number")


def _attention(s: Lengths, node: onnx.NodeProto) -> None:
    """Queries, keys and values of [rows, heads, positions, size], or with the heads in the last of three axes."""
    q, k, v, mask, *others = [*node.input, "", "", ""][: max(6, len(node.input))]
    axis = s.rank(q) - 2
    if any(others) or any(s.at(name) - {axis} for name in (q, k, v)):
        raise Stuck(f"{named(node)} has other positions than those of its own tensors")
    if s.at(k) or s.at(v):
        s.meet(node, 1, axis)
        s.meet(node, 2, axis)
    for name, behind in ((q, 2), (k, 1)) if mask else ():
        if s.at(name) and s.rank(mask) >= behind:
            s.meet(node, 3, s.rank(mask) - behind)
    s.put(node.output[0], s.at(q))
    for place, name in enumerate(node.output[1:3], 1):
        if name:
            raise Stuck(f"{named(node)} gives its output {place}, which grows with the positions")
    if len(node.output) > 3:
        s.put(node.output[3], {2 for _ in s.at(q)} | {3 for _ in s.at(k)})


def _rotation(s: Lengths, node: onnx.NodeProto) -> None:
    """What is turned by its place; the tables of angles have a row per position where no places are given."""
    x, tables, places = node.input[0], (1, 2), len(node.input) > 3 and node.input[3]
    if s.at(x) - {s.rank(x) - 2}:
        raise Stuck(f"{named(node)} has other positions than those of its own tensor")
    for place in (3,) if places else tables:
        s.meet(node, place, 1)
    s.put(node.output[0], s.at(x))


def _nothing(s: Lengths, node: onnx.NodeProto) -> None:
    """Sizes are read where they are, so they are those of what was cut."""
    del s, node


_ELEMENTWISE = (
    "Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp",
    "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum",
    "Swish", "Tanh", "ThresholdedRelu", "Where", "Xor",
)  # fmt: skip
_REDUCTIONS = (
    "ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("LogSoftmax", "Softmax"), _softmax),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _normalisation),
    **dict.fromkeys(("CumSum", "Dropout", "Trilu"), _same),
    "Attention": _attention,
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "MatMul": _product,
    "RotaryEmbedding": _rotation,
    "Shape": _nothing,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
}
