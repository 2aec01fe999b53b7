"""Another operator set for a graph of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from portolan.errors import ModelError

if TYPE_CHECKING:
    import onnx

#: Larger constants stay out of a version conversion, which serializes the graph.
_SMALL = 1024


def without_weights(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """A copy with its large constants as inputs, and the constants: what serializes a graph may not get them."""
    import onnx

    light = onnx.ModelProto()
    taken: list[onnx.TensorProto] = []
    kept: list[onnx.TensorProto] = []
    for tensor in graph.graph.initializer:
        (taken if _elements(tensor) > _SMALL else kept).append(tensor)
    for field, value in graph.ListFields():
        if field.name not in ("graph", "opset_import", "metadata_props", "functions", "training_info", "configuration"):
            setattr(light, field.name, value)
    light.opset_import.extend(graph.opset_import)
    light.graph.name = graph.graph.name
    light.graph.node.extend(graph.graph.node)
    light.graph.input.extend(graph.graph.input)
    light.graph.output.extend(graph.graph.output)
    light.graph.value_info.extend(graph.graph.value_info)
    light.graph.initializer.extend(kept)
    light.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in taken)
    return light, taken


def _elements(tensor: onnx.TensorProto) -> int:
    import math

    return math.prod(tensor.dims)


def at_opset(graph: onnx.ModelProto, opset: int, name: str) -> onnx.ModelProto:
    """A copy of the graph in operator set `opset`, or in its own where that is later.

    Raises:
        ModelError: an operator has no conversion.
    """
    import onnx

    light, weights = without_weights(graph)
    if any(entry.version < opset for entry in light.opset_import if entry.domain in ("", "ai.onnx")):
        try:
            light = onnx.version_converter.convert_version(light, opset)
        except Exception as error:  # the converter throws whatever its C++ code throws
            raise ModelError(
                f"`{name}` cannot be converted to operator set {opset}, which these bits need: {error}",
                hint=f"export it again with `opset_version={opset}`, or take `bits=8`",
            ) from error
    moved = {tensor.name for tensor in weights}
    inputs = [value for value in light.graph.input if value.name not in moved]
    del light.graph.input[:]
    light.graph.input.extend(inputs)
    light.graph.initializer.extend(weights)
    return light
