"""Where 8-bit products can give other sums on x86 processors without VNNI than everywhere else.

Those add pairs of products of an unsigned activation and a signed weight in 16 bits (vpmaddubsw), which saturates:
2 * 255 * 127 does not fit. Nothing overflows while no weight is larger than 64. See `_steps.kind_for`, by which
`quantize` itself avoids it on processors that it knows to be narrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portolan.core.model import Model
from portolan.passes._graphs import open_graph, quantized

if TYPE_CHECKING:
    import onnx

#: The largest weight with which two products fit 16 bits: 2 * 255 * 64 is 32,640.
WIDEST = 64
#: Operators that multiply 8-bit numbers, with the input that is the weight; products of floats have a step in front.
_INTEGER = {
    "ConvInteger": 1, "MatMulInteger": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1, "QAttention": 1,
    "QGemm": 3, "QLinearConv": 3, "QLinearMatMul": 3,
}  # fmt: skip
_FLOAT = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Overflow:
    """How many products have 8-bit signed constant weights, and which of them can overflow 16 bits."""

    products: int
    wide: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.wide)} of {self.products} int8 products can overflow on x86 processors without VNNI, where "
            "answers may then change"
        )


def overflow(model: Model) -> Overflow:
    """Looks at the graph alone: what is wide may overflow with some inputs, and need not with those that occur."""
    if not quantized(model):
        return Overflow(0, ())
    proto = open_graph(model)
    makers = {name: n for n in proto.graph.node for name in n.output if n.op_type == "DequantizeLinear"}
    weights = {node.name: weight for node in proto.graph.node if (weight := _weight(node, makers)) is not None}
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    signed = {name: stored[w] for name, w in weights.items() if w in stored and _signed(stored[w])}
    return Overflow(len(signed), tuple(name for name, tensor in signed.items() if _largest(tensor) > WIDEST))


def _weight(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> str | None:
    """The constant codes that a product of 8-bit numbers multiplies with; None for any other node."""
    place = _INTEGER.get(node.op_type)
    if place is not None:
        return node.input[place] if len(node.input) > place else None
    if node.op_type not in _FLOAT:
        return None
    sides = [makers.get(name) for name in node.input[:2]]
    # With floats on one side the other is unpacked, and nothing is added in integers.
    return None if sides[0] is None or sides[1] is None else sides[1].input[0]


def _signed(tensor: onnx.TensorProto) -> bool:
    import onnx

    return bool(tensor.data_type == onnx.TensorProto.INT8)


def _largest(tensor: onnx.TensorProto) -> int:
    import numpy as np
    from onnx import numpy_helper

    return int(np.abs(numpy_helper.to_array(tensor).astype(np.int16)).max(initial=0))
