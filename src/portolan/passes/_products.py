"""Where the multiplications of a graph are: products with constant weights, products of activations, embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portolan.core import protos

if TYPE_CHECKING:
    import onnx

PRODUCTS = ("Gemm", "MatMul")
WEIGHTED = ("Conv", "ConvTranspose", *PRODUCTS)
#: These hand values on as they are, so a tensor may as well be quantized in front of them.
_CARRIERS = frozenset({"Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
#: Element-wise functions that runtimes compute as part of the convolution in front of them.
_FUSED = frozenset({"Clip", "Relu"})
#: Smaller tables stay as they are: nothing would be won.
_TABLE = 2**14


@dataclass(frozen=True)
class Layer:
    """One product.

    Attributes:
        name: of its node.
        kind: the operator.
        inputs: the tensors that hold its activations, where they are quantized best: those in front of Reshape and
            the like.
        paths: for each of `inputs`, the nodes between it and the product, as (node, input index) pairs that read it;
            the last one is the product itself.
        output: what it gives.
        weight: the constant, None for a product of two activations.
        axis: of the weight's output channels.
        bias: a constant that the operator itself adds.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    paths: tuple[tuple[str, int], ...]
    output: str
    weight: str | None = None
    axis: int = 0
    bias: str | None = None


class Graph:
    """Who makes and who reads each tensor of an ONNX graph; nodes get names of their own."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        _name(proto)
        self.constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.nodes = {node.name: node for node in proto.graph.node}
        self.makers = {output: node for node in proto.graph.node for output in node.output}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in proto.graph.node:
            for i, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, i))
            for inner in protos.walk(n for body in protos.subgraphs(node) for n in body.node):
                for name in inner.input:
                    self.readers.setdefault(name, []).append((node, -1))
        self.outputs = {value.name for value in proto.graph.output}

    def layers(self) -> list[Layer]:
        """Every product that can be computed with 8-bit numbers, in the order of the graph."""
        found = (self._layer(node) for node in self.proto.graph.node)
        return [layer for layer in found if layer is not None]

    def _layer(self, node: onnx.NodeProto) -> Layer | None:
        if node.domain not in ("", "ai.onnx") or node.op_type not in WEIGHTED:
            return None
        fixed = [i for i, name in enumerate(node.input) if name in self.constants]
        if node.op_type == "MatMul" and not fixed:
            places = [self.source(node, i) for i in (0, 1)]
            return Layer(node.name, "MatMul", tuple(t for t, _ in places), tuple(p for _, p in places), node.output[0])
        if 1 not in fixed or 0 in fixed or not self._plain(node):
            return None
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        if bias is not None and bias not in self.constants:
            return None
        tensor, path = self.source(node, 0) if node.op_type.startswith("Conv") else (node.input[0], (node.name, 0))
        axis = self._axis(node)
        return Layer(node.name, node.op_type, (tensor,), (path,), node.output[0], node.input[1], axis, bias)

    def _plain(self, node: onnx.NodeProto) -> bool:
        import onnx

        weight = self.constants[node.input[1]]
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) < 2 or 0 in weight.dims:
            return False
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Gemm":
            return attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA")
        if node.op_type == "ConvTranspose":
            return bool(attributes.get("group", 1) == 1)
        return node.op_type == "Conv" or len(weight.dims) == 2

    def _axis(self, node: onnx.NodeProto) -> int:
        if node.op_type == "Gemm":
            return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
        return 0 if node.op_type == "Conv" else 1

    def source(self, node: onnx.NodeProto, index: int) -> tuple[str, tuple[str, int]]:
        """Where the values of an input come from, and which node's input reads them there.

        Only through nodes whose values nobody else reads: those would become 8-bit too.
        """
        tensor = node.input[index]
        while True:
            maker = self.makers.get(tensor)
            if maker is None or maker.op_type not in _CARRIERS or maker.input[0] in self.constants:
                return tensor, (node.name, index)
            if len(self.readers[tensor]) > 1 or tensor in self.outputs or len(maker.output) > 1:
                return tensor, (node.name, index)
            node, index, tensor = maker, 0, maker.input[0]

    def fused(self, tensor: str) -> str:
        """What `tensor` is once the activation function right behind it has been applied."""
        readers = self.readers.get(tensor, [])
        if len(readers) == 1 and readers[0][0].op_type in _FUSED and tensor not in self.outputs:
            return str(readers[0][0].output[0])
        return tensor

    def tables(self) -> Iterator[onnx.NodeProto]:
        """Lookups of rows in large constant tables."""
        import onnx

        for node in self.proto.graph.node:
            table = self.constants.get(node.input[0]) if node.op_type == "Gather" else None
            if table is None or table.data_type != onnx.TensorProto.FLOAT or len(table.dims) != 2:
                continue
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            if axis in (0, -2) and table.dims[0] * table.dims[1] >= _TABLE:
                yield node


def _name(proto: onnx.ModelProto) -> None:
    """Renames nodes without a name or with that of an earlier one."""
    taken: set[str] = set()
    for i, node in enumerate(proto.graph.node):
        while not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}/{i}"
        taken.add(node.name)


def weighted(graph: onnx.ModelProto, operators: Iterable[str] = PRODUCTS) -> Iterator[onnx.NodeProto]:
    """The nodes of these kinds whose second input is a constant."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    wanted = set(operators)
    return (n for n in graph.graph.node if n.op_type in wanted and len(n.input) > 1 and n.input[1] in constants)


def attends(graph: onnx.ModelProto) -> bool:
    """Whether activations are multiplied with activations, which is what attention is."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    fused = {"Attention", "GroupQueryAttention", "MultiHeadAttention"}
    return any(n.op_type in fused or (n.op_type == "MatMul" and not constants & set(n.input)) for n in graph.graph.node)
