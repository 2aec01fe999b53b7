"""What a model costs on paper: parameters, floating point operations, and bytes that have to move. Nothing is run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portolan.core import flops as rules
from portolan.core import protos
from portolan.core.model import Model
from portolan.core.signature import Dim

if TYPE_CHECKING:
    import onnx

#: Integer tensors of these types are indices and shapes, not parameters.
_NOT_PARAMETERS = ("INT64", "INT32", "UINT64", "UINT32", "BOOL", "STRING", "UNDEFINED")


@dataclass(frozen=True)
class Analysis:
    """What one inference costs on paper.

    Attributes:
        parameters: stored weights, each once; indices, shapes and single constants are left out.
        parameter_bytes: their size as stored.
        flops: floating point (or quantized) operations, a multiply-add counted as two; None if sizes are unknown.
        bytes_moved: what any implementation has to read and write at least once: weights, inputs and outputs
            (of a table that is only looked up, the rows read); None if sizes are unknown.
        operators: how often each operator occurs.
        notes: what the numbers leave out, and why a number is missing.
    """

    parameters: int
    parameter_bytes: int
    flops: int | None
    bytes_moved: int | None
    operators: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def intensity(self) -> float | None:
        """Arithmetic intensity for the roofline: operations per byte moved; None if either is unknown."""
        return self.flops / self.bytes_moved if self.flops is not None and self.bytes_moved else None

    def floor_seconds(self, flops_per_second: float, bytes_per_second: float) -> float | None:
        """The roofline's lower bound for one inference at these ceilings; None if sizes are unknown."""
        if self.flops is None or self.bytes_moved is None:
            return None
        return max(self.flops / flops_per_second, self.bytes_moved / bytes_per_second)


def analyse(model: Model, shapes: Mapping[str, Sequence[Dim]] | None = None) -> Analysis:
    """Counts what one inference costs.

    Args:
        model: any model; its weights are not loaded.
        shapes: sizes for free dimensions, by input. Without them a model with free dimensions has no flops.

    Raises:
        UsageError: a shape that does not fit the model.
        ModelError: the file cannot be read any more.
    """
    from portolan.core import graph  # graph re-exports this function

    proto = graph.read(model.path)
    weights = _weights(proto)
    given = graph.sizes(model.signature, shapes or {})
    free = [name for name in model.signature.free if name not in given]
    parameters, stored = sum(w.elements for w in weights.values()), sum(w.bytes for w in weights.values())
    if free:
        listed = ", ".join(f"`{name}`" for name in free)
        notes = (f"flops and bytes moved need a size for {listed}: give `--shapes`",)
        return Analysis(parameters, stored, None, None, dict(model.operators), notes)
    _drop_weights(proto)
    proto = graph.set_sizes(_inlined(proto), given)
    shapes_known = _shapes(proto)
    count = rules.count(proto, shapes_known)
    moved = _bytes_moved(proto, weights, shapes_known)
    return Analysis(parameters, stored, count.flops, moved, dict(model.operators), count.notes)


@dataclass(frozen=True)
class _Weight:
    elements: int
    bytes: int


def _weights(proto: onnx.ModelProto) -> dict[str, _Weight]:
    """Parameters by name. Content that is stored twice, or named twice in one external file, is counted once."""
    found: dict[str, _Weight] = {}
    seen: set[object] = set()
    for tensor in protos.tensors(proto):
        elements = math.prod(tensor.dims)
        parameter = tensor.dims and elements > 1 and _type_name(tensor) not in _NOT_PARAMETERS
        if not parameter or (content := _content(tensor)) in seen:
            continue
        seen.add(content)
        size = math.ceil(elements * protos.bits(tensor.data_type) / 8)
        found[tensor.name or f"#{len(found)}"] = _Weight(elements, size)
    return found


def _type_name(tensor: onnx.TensorProto) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(tensor.data_type))


def _content(tensor: onnx.TensorProto) -> object:
    """What makes two large tensors the same weight: their bytes, or their place in an external file."""
    shape = (tensor.data_type, tuple(tensor.dims))
    if tensor.external_data:
        return shape, frozenset((e.key, e.value) for e in tensor.external_data)
    if len(tensor.raw_data) > 1024:
        return shape, hashlib.sha256(tensor.raw_data).digest()
    return id(tensor), tensor.name  # small ones (zeros, scales) may be alike by chance


def _drop_weights(proto: onnx.ModelProto) -> None:
    """Empties large tensors: shape inference reads their dimensions only, and works on a serialized copy."""
    for tensor in protos.tensors(proto):
        if len(tensor.raw_data) > 4096:
            tensor.ClearField("raw_data")


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnx.inliner

    return onnx.inliner.inline_local_functions(proto) if proto.functions else proto


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The fully known shapes by value name, subgraphs included."""
    known: dict[str, tuple[int, ...]] = {}
    for graph in protos.graphs(proto):
        for value in (*graph.input, *graph.output, *graph.value_info):
            tensor = value.type.tensor_type
            dims = tensor.shape.dim
            if tensor.HasField("shape") and all(d.HasField("dim_value") for d in dims):
                known[value.name] = tuple(d.dim_value for d in dims)
        known.update({tensor.name: tuple(tensor.dims) for tensor in graph.initializer})
    for node in protos.walk(proto.graph.node):
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            known[node.output[0]] = tuple(node.attribute[0].t.dims)
    return known


def _bytes_moved(
    proto: onnx.ModelProto, weights: Mapping[str, _Weight], shapes: Mapping[str, tuple[int, ...]]
) -> int | None:
    looked_up: dict[str, int | None] = {}  # table -> elements read, None once something else reads it too
    for node in protos.walk(proto.graph.node):
        for place, name in enumerate(node.input):
            if name not in weights:
                continue
            rows = shapes.get(node.output[0])
            if node.op_type == "Gather" and place == 0 and rows is not None and looked_up.get(name, 0) is not None:
                looked_up[name] = (looked_up.get(name) or 0) + math.prod(rows)
            else:
                looked_up[name] = None
    total = 0
    for name, weight in weights.items():
        read = looked_up.get(name)
        total += weight.bytes if read is None else min(weight.bytes, read * weight.bytes // weight.elements)
    stored = {tensor.name for tensor in proto.graph.initializer}
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name in stored:
            continue
        shape = shapes.get(value.name)
        if shape is None:
            return None
        total += math.ceil(math.prod(shape) * protos.bits(value.type.tensor_type.elem_type) / 8)
    return total
