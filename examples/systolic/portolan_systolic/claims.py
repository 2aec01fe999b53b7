"""Which operators of a quantized graph the chip takes, and for each other product the reason why not.

It takes convolutions and matrix products between DequantizeLinear and QuantizeLinear, with a Relu behind them if there
is one: eight bits in, eight bits (or, at the end of a network, float32) out, sizes known, and all of it in 1 MB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from portolan_systolic.program import EDGE, Layout

if TYPE_CHECKING:
    import onnx

_PRODUCTS = ("Conv", "MatMul", "Gemm")
MEMORY = 1 << 20


@dataclass(frozen=True, eq=False)
class Claim:
    """One product for the chip, for one sample.

    Attributes:
        operator: what it is in the graph.
        input, output: the tensors that it reads (8 bits) and writes.
        nodes: outputs of the nodes that it takes the place of: the product, a Relu, a QuantizeLinear.
        rows, depth, columns: of the product: results of one column, length of a sum, columns.
        weights: (depth, columns) int8.
        scale, bias: per column, float32: `sum * scale + bias` is the result before rounding.
        stream: how rows are gathered from the input; see `program`.
        planes: whether columns are planes of the result (channels first).
        relu: whether what is negative becomes 0.
        type, step, zero: of the result; a step of 1.0 for float32.
        batched: whether the first axis of input and output counts samples.
        shape: the result's, of one sample.
    """

    operator: str
    input: str
    output: str
    nodes: frozenset[str]
    rows: int
    depth: int
    columns: int
    weights: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    stream: dict[str, Any]
    planes: bool
    relu: bool
    type: str
    step: float
    zero: int
    batched: bool
    shape: tuple[int, ...]

    @property
    def input_bytes(self) -> int:
        """Bytes of one sample."""
        return int(self.stream["channels"] * self.stream["height"] * self.stream["width"])

    @property
    def output_bytes(self) -> int:
        """Bytes of its result."""
        return self.rows * self.columns * np.dtype(self.type).itemsize

    def packed(self) -> np.ndarray:
        """Weights as the chip reads them: for each 16 columns, tiles of 16 by 16 from the top down; int8."""
        deep, wide = math.ceil(self.depth / EDGE) * EDGE, math.ceil(self.columns / EDGE) * EDGE
        whole = np.zeros((deep, wide), np.int8)
        whole[: self.depth, : self.columns] = self.weights
        return np.concatenate([whole[:, i : i + EDGE].ravel() for i in range(0, wide, EDGE)])


class Unfit(Exception):
    """Why the chip does not take a product."""


@dataclass
class Graph:
    """A graph with what is asked of it again and again.

    Attributes:
        shapes: of each tensor at one sample, and at two samples where the batch is free.
        batched: tensors whose first axis counts samples.
    """

    proto: onnx.ModelProto
    shapes: Mapping[str, tuple[int | None, ...]]
    batched: frozenset[str]
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from onnx import numpy_helper

        self.constants = {t.name: numpy_helper.to_array(t) for t in self.proto.graph.initializer}
        self.maker = {name: node for node in self.proto.graph.node for name in node.output}
        self.users: dict[str, list[Any]] = {}
        for node in self.proto.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.outputs = {value.name for value in self.proto.graph.output}

    def only_user(self, name: str) -> Any:
        """The one node that reads a tensor; None where several do, or the caller."""
        users = self.users.get(name, [])
        return users[0] if len(users) == 1 and name not in self.outputs else None


def claims(graph: Graph) -> tuple[list[Claim], list[tuple[str, str]]]:
    """What the chip takes, and (node, reason) for every product that it does not."""
    taken, refused = [], []
    for node in graph.proto.graph.node:
        if node.op_type not in _PRODUCTS:
            continue
        try:
            taken.append(_claim(graph, node))
        except Unfit as reason:
            refused.append((f"{node.op_type} {node.output[0]}", str(reason)))
    return taken, refused


def _claim(graph: Graph, node: Any) -> Claim:
    attributes = dict(_attributes(node))
    x, x_step, x_zero, _ = _steps(graph, node.input[0])
    w, w_step, w_zero, w_node = _steps(graph, node.input[1])
    if np.any(w_zero):
        raise Unfit("its weights have a zero point")
    weights = graph.constants.get(w)
    if weights is None:
        raise Unfit("its second factor is no constant")
    shape = graph.shapes.get(x)
    if shape is None or None in shape[1:]:
        raise Unfit("a size of its input is not known before it runs")
    batched = x in graph.batched
    one = tuple(int(size or 1) for size in (shape[1:] if batched else shape))
    geometry = _conv if node.op_type == "Conv" else _product
    matrix, stream, rows, result = geometry(attributes, one, weights, node.op_type)
    per_column = _per_column(w_step, w_node, node, weights.ndim, attributes)
    end, relu, out, covered = _behind(graph, node)
    columns = matrix.shape[1]
    scale = (np.float32(x_step) * per_column * np.ones(columns, np.float32)).astype(np.float32)
    bias = _bias(graph, node, columns)
    claim = Claim(
        node.op_type, x, end, frozenset(covered), rows, *matrix.shape, matrix, scale, bias,
        {"type": _kind(x_zero), "zero": int(x_zero), **stream},
        node.op_type == "Conv", relu, *out, batched, result,
    )  # fmt: skip
    need = Layout.of(claim)
    if need.total > MEMORY:
        raise Unfit(
            f"it needs {need.total:,} bytes of memory, of {MEMORY:,}: {claim.input_bytes:,} for its input, "
            f"{claim.output_bytes:,} for its result, the rest for weights"
        )
    return claim


def _attributes(node: Any) -> Iterator[tuple[str, Any]]:
    from onnx import helper

    for attribute in node.attribute:
        yield attribute.name, helper.get_attribute_value(attribute)


def _steps(graph: Graph, name: str) -> tuple[str, np.ndarray, np.ndarray, Any]:
    """The quantized tensor behind a DequantizeLinear, its steps and zero points, and the node."""
    node = graph.maker.get(name)
    if node is None or node.op_type != "DequantizeLinear":
        raise Unfit("it is computed in float32, not in int8")
    step = graph.constants.get(node.input[1])
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else np.int8(0)
    if step is None or zero is None:
        raise Unfit("its steps are computed when it runs")
    if np.asarray(zero).dtype not in (np.int8, np.uint8):
        raise Unfit(f"its numbers are {np.asarray(zero).dtype}, and the cells multiply int8")
    return node.input[0], np.asarray(step, np.float32), np.asarray(zero), node


def _kind(zero: np.ndarray) -> str:
    if np.ndim(zero):
        raise Unfit("its input has a step for each channel")
    return str(np.asarray(zero).dtype)


def _per_column(step: np.ndarray, maker: Any, node: Any, rank: int, attributes: Mapping[str, Any]) -> np.ndarray:
    """The weights' steps, one for each column of the product."""
    if step.ndim == 0 or step.size == 1:
        return step.reshape(())
    axis = dict(_attributes(maker)).get("axis", 1) % rank
    wanted = 0 if node.op_type == "Conv" or attributes.get("transB") else rank - 1
    if axis != wanted or step.ndim != 1:
        raise Unfit("its weights have steps along another axis than their columns")
    return step


def _conv(a: Mapping[str, Any], one: tuple[int, ...], weights: np.ndarray, _: str) -> Any:
    if a.get("group", 1) != 1:
        raise Unfit(f"its {a['group']} groups would leave most of the cells idle")
    if len(one) == 4 and one[0] == 1:
        one = one[1:]
    if len(one) != 3 or weights.ndim != 4:
        raise Unfit("only convolutions of single images are streamed")
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise Unfit("its padding is chosen when it runs")
    channels, height, width = one
    kernel = tuple(weights.shape[2:])
    stride, dilation = tuple(a.get("strides", (1, 1))), tuple(a.get("dilations", (1, 1)))
    pad = tuple(a.get("pads", (0, 0, 0, 0)))
    sizes = [
        (size + pad[i] + pad[i + 2] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1
        for i, size in enumerate((height, width))
    ]
    stream = {"channels": channels, "height": height, "width": width, "kernel": kernel, "stride": stride,
              "dilation": dilation, "pad": pad}  # fmt: skip
    matrix = weights.reshape(len(weights), -1).T
    return np.ascontiguousarray(matrix), stream, math.prod(sizes), (len(weights), *sizes)


def _product(a: Mapping[str, Any], one: tuple[int, ...], weights: np.ndarray, kind: str) -> Any:
    if weights.ndim != 2 or a.get("transA") or a.get("alpha", 1.0) != 1.0 or a.get("beta", 1.0) != 1.0:
        raise Unfit(f"only a plain {kind} with a matrix of weights is streamed")
    matrix = weights.T if a.get("transB") else weights
    if not one or one[-1] != matrix.shape[0]:
        raise Unfit("a size of its input is not known before it runs")
    rows = math.prod(one[:-1])
    stream = {"channels": one[-1], "height": 1, "width": rows, "kernel": (), "stride": (), "dilation": (), "pad": ()}
    return np.ascontiguousarray(matrix), stream, rows, (*one[:-1], matrix.shape[1])


def _bias(graph: Graph, node: Any, columns: int) -> np.ndarray:
    if len(node.input) < 3 or not node.input[2]:
        return np.zeros(columns, np.float32)
    name = node.input[2]
    if name in graph.constants:
        bias = graph.constants[name]
    else:
        maker = graph.maker.get(name)
        parts = [graph.constants.get(i) for i in maker.input] if maker is not None else [None]
        if maker is None or maker.op_type != "DequantizeLinear" or any(part is None for part in parts):
            raise Unfit("its bias is computed when it runs")
        whole, step = np.asarray(parts[0]), np.asarray(parts[1])
        bias = (whole - (parts[2] if len(parts) > 2 else 0)) * step
    if np.size(bias) not in (1, columns):
        raise Unfit("its bias is no row of its columns")
    return np.asarray(bias, np.float32).reshape(-1) * np.ones(columns, np.float32)


def _behind(graph: Graph, node: Any) -> tuple[str, bool, tuple[str, float, int], set[str]]:
    """Where the result goes: through a Relu and into a QuantizeLinear, if nobody else reads what is between."""
    end, relu, covered = node.output[0], False, {node.output[0]}
    user = graph.only_user(end)
    if user is not None and user.op_type == "Relu":
        end, relu = user.output[0], True
        covered.add(end)
        user = graph.only_user(end)
    if user is not None and user.op_type == "QuantizeLinear":
        step = graph.constants.get(user.input[1])
        zero = graph.constants.get(user.input[2]) if len(user.input) > 2 else np.uint8(0)
        if step is not None and zero is not None and step.size == 1 and np.asarray(zero).dtype in (np.int8, np.uint8):
            covered.add(user.output[0])
            return user.output[0], relu, (str(np.asarray(zero).dtype), float(step), int(zero)), covered
    return end, relu, ("float32", 1.0, 0), covered
