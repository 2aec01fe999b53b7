"""Small tools for changing a graph: constants as arrays, who uses what, known sizes, and what nobody uses any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from portolan.core import protos
from portolan.core.model import Model
from portolan.passes._graphs import header, open_graph
from portolan.passes._opset import at_opset
from portolan.passes._slimming import slim

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: Sizes of a tensor, None where one is free.
Shape = tuple[int | None, ...]
#: Constants below this many elements can hold a shape; larger ones are not needed to infer any.
_SHAPE_LIKE = 1024
_FLOATS = ("float16", "float32", "float64")


def opened(model: Model, *, opset: int = 0, grow: bool = False) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """What `save_graph` needs of the model's graph, and one for surgery: folded, so that all weights are initializers.

    Args:
        model: whose graph it is. The weights are in memory once.
        opset: the operator set that the surgery needs at least; 0 for any.
        grow: folds what makes the graph larger too: a table that is also a transposed product is there twice then.

    Raises:
        ModelError: the graph holds something that cannot be folded, or cannot be converted to `opset`.
    """
    original = open_graph(model)
    graph = at_opset(original, opset, model.name) if opset else original
    return header(original), slim(graph, model.name, grow=grow)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value, or `default` where the node has none of that name."""
    import onnx

    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def standard(node: onnx.NodeProto) -> bool:
    """Whether the operator is one of the default operator set."""
    return protos.domain(node.domain) == ""


class Constants:
    """The initializers of a graph as arrays.

    Args:
        proto: the graph; `put` and `add` change it.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._graph = proto.graph
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> np.ndarray:
        import onnx

        array: np.ndarray = onnx.numpy_helper.to_array(self._tensors[name])
        return array

    def floating(self, name: str) -> bool:
        """Whether there is a constant of that name that holds floating point numbers."""
        return name in self._tensors and protos.element_type(self._tensors[name].data_type) in _FLOATS

    def shape(self, name: str) -> tuple[int, ...]:
        """Its sizes, without reading it."""
        return tuple(self._tensors[name].dims)

    def put(self, name: str, array: np.ndarray) -> None:
        """Replaces a constant; it keeps its element type."""
        import numpy as np
        import onnx

        kind = onnx.helper.tensor_dtype_to_np_dtype(self._tensors[name].data_type)
        self._tensors[name].CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array, kind), name))

    def add(self, name: str, array: np.ndarray) -> str:
        """Adds a constant under `name`, or a name near it where that is taken; gives the name."""
        import numpy as np
        import onnx

        free = name
        while free in self._tensors:
            free += "_"
        self._graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), free))
        self._tensors[free] = self._graph.initializer[-1]
        return free


def weighted(proto: onnx.ModelProto, constants: Constants, operators: Iterable[str]) -> Iterator[onnx.NodeProto]:
    """The nodes of these kinds whose second input is a constant of floating point numbers."""
    wanted = set(operators)
    for node in proto.graph.node:
        if node.op_type in wanted and standard(node) and len(node.input) > 1 and constants.floating(node.input[1]):
            yield node


def users(proto: onnx.ModelProto) -> dict[str, list[tuple[str, int]]]:
    """Who reads each tensor: (the node's first output, place among its inputs), or ("", 0) for an outside reader.

    Outside readers are the graph's outputs and the bodies of loops and branches.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            found.setdefault(name, []).append((node.output[0], place))
        for name in captured(node):
            found.setdefault(name, []).append(("", 0))
    for value in proto.graph.output:
        found.setdefault(value.name, []).append(("", 0))
    return found


def captured(node: onnx.NodeProto) -> set[str]:
    """Every name that the bodies in a node read; some of them come from outside."""
    names: set[str] = set()
    for graph in protos.subgraphs(node):
        for inner in protos.walk(graph.node):
            names.update(inner.input)
        names.update(value.name for value in graph.output)
    return names


def drop_unused(proto: onnx.ModelProto, *, keep_shapes: bool = False) -> None:
    """Removes constants that nothing reads, and the shapes of values in between, which surgery makes wrong.

    Args:
        proto: the graph; it is changed.
        keep_shapes: those of values that are still made are right.
    """
    used = users(proto).keys()
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    made = {output for node in proto.graph.node for output in node.output} if keep_shapes else set()
    infos = [value for value in proto.graph.value_info if value.name in made]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(infos)


def light(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The main graph without the contents of its weights: what shape inference needs, and no more is copied."""
    import onnx

    made = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    made.graph.name = proto.graph.name
    for field in ("node", "input", "output"):
        getattr(made.graph, field).extend(getattr(proto.graph, field))
    for tensor in proto.graph.initializer:
        if not tensor.dims or max(tensor.dims, default=1) * len(tensor.dims) < _SHAPE_LIKE:
            made.graph.initializer.append(tensor)
        else:
            made.graph.initializer.append(
                onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
            )
    return made


def shapes(proto: onnx.ModelProto) -> dict[str, Shape]:
    """The sizes of every tensor of the main graph whose number of axes is known; weights are not copied for it."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(light(proto), data_prop=True)
    found: dict[str, Shape] = {}
    for value in (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            found[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    found.update({tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer})
    return found
