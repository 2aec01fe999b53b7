"""Floating point operations per operator, from shapes. A multiply-add is two; what is not counted is named in a note.

Source of the conventions: a convolution or product costs 2 x (outputs) x (inputs per output), as in the usual tables
(ResNet-50 at 224x224: 8.2 GFLOP); everything else that computes costs one operation per element it computes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portolan.core import protos

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Count:
    """Operations of one inference, None where the sizes of a product or convolution are unknown, and what to know."""

    flops: int | None
    notes: tuple[str, ...]


#: Operators that move, select or convert data and compute nothing.
_FREE = frozenset(
    (
        "Cast", "CastLike", "Compress", "Concat", "ConcatFromSequence", "Constant", "ConstantOfShape",
        "DepthToSpace", "Dropout", "EyeLike", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
        "Identity", "Loop", "If", "Scan", "NonZero", "OneHot", "Optional", "OptionalGetElement",
        "OptionalHasElement", "Pad", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
        "Range", "Reshape", "ReverseSequence", "ScatterElements", "ScatterND", "Scatter", "SequenceAt",
        "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
        "SequenceMap", "Shape", "Size", "Slice", "SpaceToDepth", "Split", "SplitToSequence", "Squeeze",
        "TensorScatter", "Tile", "Transpose", "Trilu", "Unique", "Unsqueeze", "Upsample",
        "ArrayFeatureExtractor", "CastMap", "DictVectorizer", "FeatureVectorizer", "LabelEncoder", "ZipMap",
        "StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer",
        "CategoryMapper", "BitCast",
    )
)  # fmt: skip
#: Operators whose work is per element of what they read, not of what they give.
_PER_INPUT = frozenset(
    (
        "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "ReduceL1", "ReduceL2", "ReduceLogSum",
        "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
        "ArgMax", "ArgMin", "TopK", "CumSum", "CumProd",
    )
)  # fmt: skip
_PRODUCTS = {
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "com.microsoft.FusedMatMul": (0, 1),
    "com.microsoft.MatMulIntegerToFloat": (0, 1),
    "com.microsoft.DynamicQuantizeMatMul": (0, 1),
}


def count(model: onnx.ModelProto, shapes: Shapes) -> Count:
    """Adds up the nodes of a graph without local functions whose shapes were inferred."""
    total, heavy, light, strange = 0, Counter[str](), Counter[str](), Counter[str]()
    notes: list[str] = []
    for node in protos.walk(model.graph.node):
        name = node.op_type if protos.domain(node.domain) in protos.STANDARD else f"{node.domain}.{node.op_type}"
        rule = _RULES.get(name)
        if name.startswith("TreeEnsemble"):
            strange[name] += 1
            continue
        if rule is None and "." in name:
            strange[name] += 1
            continue
        try:
            total += int((rule or _elementwise)(node, shapes))
        except (KeyError, IndexError, ValueError, ZeroDivisionError):  # an unknown or impossible shape
            (heavy if rule else light)[name] += 1
    if strange:
        notes.append(f"flops leave out {_listed(strange)}: their cost is not known")
    if light:
        notes.append(f"flops leave out {_listed(light)}: their shapes are not known before a run")
    if heavy:
        notes.append(f"no flops: the shapes of {_listed(heavy)} are not known before a run")
    if any(node.op_type in ("Loop", "Scan", "If") for node in protos.walk(model.graph.node)):
        notes.append("the body of each loop and every branch is counted once")
    return Count(None if heavy else total, tuple(notes))


def _listed(names: Counter[str]) -> str:
    return ", ".join(f"{times} `{name}`" for name, times in sorted(names.items()))


def _elementwise(node: onnx.NodeProto, shapes: Shapes) -> int:
    if node.op_type in _FREE:
        return 0
    if node.op_type in _PER_INPUT:
        return math.prod(shapes[node.input[0]])
    return math.prod(shapes[node.output[0]])


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    import onnx

    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _has(node: onnx.NodeProto, place: int) -> bool:
    return len(node.input) > place and bool(node.input[place])


def _product(node: onnx.NodeProto, shapes: Shapes) -> int:
    name = node.op_type if not node.domain else f"{node.domain}.{node.op_type}"
    left, _ = _PRODUCTS.get(name, (0, 1))
    inner = shapes[node.input[left]][-2 if _attribute(node, "transA", 0) else -1]
    return 2 * math.prod(shapes[node.output[0]]) * inner


def _gemm(node: onnx.NodeProto, shapes: Shapes) -> int:
    outputs = math.prod(shapes[node.output[0]])
    inner = shapes[node.input[0]][0 if _attribute(node, "transA", 0) else 1]
    return 2 * outputs * inner + (outputs if _has(node, 2) else 0)


def _conv(node: onnx.NodeProto, shapes: Shapes) -> int:
    quantized = node.op_type == "QLinearConv"
    outputs = math.prod(shapes[node.output[0]])
    kernel = shapes[node.input[3 if quantized else 1]]  # (outputs, inputs / groups, *window)
    bias = _has(node, 8 if quantized else 2) and node.op_type != "ConvInteger"
    return 2 * outputs * math.prod(kernel[1:]) + (outputs if bias else 0)


def _deform_conv(node: onnx.NodeProto, shapes: Shapes) -> int:
    outputs = math.prod(shapes[node.output[0]])
    return 2 * outputs * math.prod(shapes[node.input[1]][1:]) + (outputs if _has(node, 3) else 0)


def _conv_transpose(node: onnx.NodeProto, shapes: Shapes) -> int:
    kernel = shapes[node.input[1]]  # (inputs, outputs / groups, *window)
    bias = math.prod(shapes[node.output[0]]) if _has(node, 2) else 0
    return 2 * math.prod(shapes[node.input[0]]) * math.prod(kernel[1:]) + bias


def _recurrent(gates: int) -> Callable[[onnx.NodeProto, Shapes], int]:
    def rule(node: onnx.NodeProto, shapes: Shapes) -> int:
        steps, batch, _ = shapes[node.input[0]]
        directions, rows, features = shapes[node.input[1]]  # W: (directions, gates * hidden, inputs)
        hidden = rows // gates
        if _attribute(node, "layout", 0):
            steps, batch = batch, steps
        products = 2 * rows * (features + hidden)
        pointwise = rows * 2 + hidden * (4 if gates == 4 else 3)  # biases and activations, then the state's update
        return steps * batch * directions * (products + pointwise)

    return rule


def _pool(node: onnx.NodeProto, shapes: Shapes) -> int:
    window: Sequence[int] = _attribute(node, "kernel_shape", (1,))
    return math.prod(shapes[node.output[0]]) * math.prod(window)


def _einsum(node: onnx.NodeProto, shapes: Shapes) -> int:
    left = _attribute(node, "equation", b"").decode().replace(" ", "").split("->")[0]
    sizes: dict[str, int] = {}
    for term, name in zip(left.split(","), node.input, strict=True):
        shape = shapes[name]
        if "." in term:
            raise ValueError("an ellipsis")
        sizes.update(zip(term, shape, strict=True))
    return len(node.input) * math.prod(sizes.values())


def _attention(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Both products of standard attention: queries with keys, weights with values (ONNX opset 23)."""
    query, key, value = (shapes[name] for name in node.input[:3])
    if len(query) == 3:
        heads = _attribute(node, "q_num_heads", 1)
        batch, length, width = query[0], query[1], query[2]
        sources = key[1]
        depth = value[2] // _attribute(node, "kv_num_heads", heads) * heads
    else:
        batch, heads, length = query[:3]
        width, sources, depth = heads * query[3], key[2], heads * value[3]
    if _has(node, 4):
        sources += shapes[node.input[4]][2]
    return int(batch * length * sources * (2 * width + 2 * depth + 3 * heads))  # 3: softmax and scale


def _nbits(node: onnx.NodeProto, shapes: Shapes) -> int:
    return 2 * math.prod(shapes[node.output[0]]) * int(_attribute(node, "K", 0))


def _same(names: Iterable[str], rule: Callable[[onnx.NodeProto, Shapes], int]) -> dict[str, Any]:
    return dict.fromkeys(names, rule)


def _rules(*tables: Mapping[str, Any]) -> dict[str, Callable[[onnx.NodeProto, Shapes], int]]:
    return {name: rule for table in tables for name, rule in table.items()}


_POOLS: Sequence[str] = ("MaxPool", "AveragePool", "LpPool")
_RULES = _rules(
    _same(_PRODUCTS, _product),
    _same(("Conv", "ConvInteger", "QLinearConv"), _conv),
    _same(_POOLS, _pool),
    {
        "Gemm": _gemm,
        "DeformConv": _deform_conv,
        "ConvTranspose": _conv_transpose,
        "LSTM": _recurrent(4),
        "GRU": _recurrent(3),
        "RNN": _recurrent(1),
        "Einsum": _einsum,
        "Attention": _attention,
        "com.microsoft.MatMulNBits": _nbits,
    },
)
#: Operators that do a model's arithmetic, by name and, where it is not ONNX's own, domain.
COUNTED = frozenset(_RULES)
