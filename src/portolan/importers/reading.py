"""Reading: ONNX's protos to a `Program`, and weights back into them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from portolan.core import protos
from portolan.core.model import Model
from portolan.errors import ModelError, UnsupportedOperator
from portolan.importers.definitions import FUNCTIONS, expanded
from portolan.importers.operators import TABLE, key
from portolan.importers.program import Program, Step, deciding

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: Before this operator set, broadcasting was an attribute.
OLDEST = 7
#: Inputs that hold what was counted during training, or settings, not weights.
_FIXED = {
    "BatchNormalization": (3, 4), "Clip": (1, 2), "CastLike": (1,), "Dropout": (1, 2), "Pad": (2,), "Pow": (1,),
    "Resize": (1, 2), "OneHot": (2,),
}  # fmt: skip
#: Operators whose third input is a bias, even if it is a single number.
_BIASED = ("Conv", "ConvTranspose", "Gemm")


def unsupported(operators: Mapping[str, int]) -> list[str]:
    """Those of a model's operators (as `Model.operators` names them) that the table lacks, sorted.

    Names of other domains may be functions whose bodies the file holds, so nothing is said of them.
    """
    standard = (name for name in operators if "." not in name or name.startswith("com.microsoft."))
    return sorted(name for name in standard if not _within_reach(name))


def demand_readable(backend: str, model: Model) -> None:
    """Refuses a model that `refusal` speaks against.

    Raises:
        UnsupportedOperator: it does.
    """
    if reason := refusal(backend, model):
        raise UnsupportedOperator(reason, hint="`--backend onnxruntime` has the most operators", where=str(model.path))


def refusal(backend: str, model: Model) -> str | None:
    """Why a backend that reads graphs by this importer cannot run `model`; None if nothing is known against it."""
    if lacking := unsupported(model.operators):
        return f"`{backend}` has no operator `{lacking[0]}`"
    for spec in (*model.signature.inputs, *model.signature.outputs):
        if spec.dtype == "string":
            return f"`{backend}` computes with numbers only, and `{spec.name}` holds strings"
    return None


def _within_reach(name: str) -> bool:
    return name in TABLE or name == "Constant" or name in FUNCTIONS


def read(proto: onnx.ModelProto, name: str) -> Program:
    """The program of a graph whose functions are inlined and whose external data are loaded.

    Operators that the table lacks and that ONNX defines by others are replaced by those.

    Raises:
        UnsupportedOperator: an operator that the table lacks.
        ModelError: an old operator set, or an element type without a NumPy equivalent.
    """
    versions = {protos.domain(entry.domain): entry.version for entry in proto.opset_import}
    if versions.get("", OLDEST) < OLDEST:
        raise ModelError(
            f"`{name}` uses operator set {versions['']}, the importer reads {OLDEST} and later",
            hint="export the model again with `opset_version=18`",
        )
    proto = expanded(proto, FUNCTIONS - {*TABLE})
    outer: dict[str, frozenset[str]] = {}
    program = _Reader(name, versions).graph(proto.graph)
    free = _small(proto.graph)
    found = tuple(n for n in program.inputs if n in free & deciding(program.steps, program.inputs, outer))
    return replace(program, weights=tuple(_weights(program.steps, program.constants)), deciding=found)


def _small(graph: onnx.GraphProto) -> frozenset[str]:
    """Inputs of at most one axis: lists of sizes, axes, numbers of repeats."""
    shaped = (value for value in graph.input if value.type.HasField("tensor_type"))
    return frozenset(value.name for value in shaped if len(value.type.tensor_type.shape.dim) <= 1)


class _Reader:
    """Graphs and the graphs inside them.

    Args:
        name: of the model.
        versions: of the operator sets, by domain.
    """

    def __init__(self, name: str, versions: Mapping[str, int]) -> None:
        self._name, self._versions = name, versions

    def graph(self, graph: onnx.GraphProto) -> Program:
        """The program of a graph."""
        if len(graph.sparse_initializer):
            raise ModelError(
                f"`{self._name}` has sparse initializers, which the importer does not read", hint="store them dense"
            )
        constants = {tensor.name: array(tensor) for tensor in graph.initializer}
        steps = []
        for node in graph.node:
            if key(node.op_type, node.domain) == "Constant":
                constants[node.output[0]] = _constant(node)
            else:
                steps.append(self._step(node))
        outputs = tuple(value.name for value in graph.output)
        inputs = tuple(value.name for value in graph.input if value.name not in constants)
        return Program(self._name, inputs, outputs, tuple(steps), constants)

    def _step(self, node: onnx.NodeProto) -> Step:
        operator = key(node.op_type, node.domain)
        if operator not in TABLE:
            raise UnsupportedOperator(
                f"the importer has no operator `{operator}`, which `{self._name}` uses",
                hint="`--backend onnxruntime` has the most operators",
                where=f"node `{node.name or node.output[0]}`",
            )
        attributes = {a.name: self._attribute(a) for a in node.attribute}
        version = self._versions.get(protos.domain(node.domain), 1)
        return Step(operator, version, tuple(node.input), tuple(node.output), attributes)

    def _attribute(self, attribute: onnx.AttributeProto) -> Any:
        import onnx

        if attribute.type == onnx.AttributeProto.GRAPH:
            return self.graph(attribute.g)
        return _plain(onnx.helper.get_attribute_value(attribute))


def store(proto: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> None:
    """Writes constants back into the graph they came from, in place, each by its name and as its own element type."""
    import onnx

    def put(tensor: onnx.TensorProto, name: str) -> None:
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        tensor.CopyFrom(onnx.numpy_helper.from_array(weights[name].astype(kind), tensor.name))

    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            put(tensor, tensor.name)
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.output[0] in weights:
            for attribute in node.attribute:
                if attribute.name == "value":
                    put(attribute.t, node.output[0])


def array(tensor: onnx.TensorProto) -> np.ndarray:
    """A tensor's values in memory of their own.

    Raises:
        ModelError: an element type that NumPy lacks.
    """
    import numpy as np
    import onnx

    values = np.array(onnx.numpy_helper.to_array(tensor))
    if values.dtype.kind not in "fiub":
        raise ModelError(
            f"the constant `{tensor.name}` has the element type {values.dtype}, which the importer does not read",
            hint="export the model in float32",
        )
    return values


def _plain(value: Any) -> Any:
    import onnx

    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return array(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _constant(node: onnx.NodeProto) -> np.ndarray:
    import numpy as np
    import onnx

    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return array(value)
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if attribute.name not in kinds:
        raise ModelError(
            f"the constant `{node.output[0]}` holds a `{attribute.name}`, which the importer does not read",
            hint="export the model with plain tensors",
        )
    return np.array(value, kinds[attribute.name])


def _weights(steps: Sequence[Step], constants: Mapping[str, np.ndarray]) -> Iterator[str]:
    import numpy as np

    used = {name for step in steps for name in step.inputs}
    fixed = {
        step.inputs[i]
        for step in steps
        for i in (*_FIXED.get(step.operator, ()), *TABLE[step.operator].static)
        if i < len(step.inputs)
    }
    biases = {name for step in steps if step.operator in _BIASED for name in step.inputs[2:3]}
    for name, values in constants.items():
        several = values.size > 1 or name in biases
        if name in used - fixed and several and values.dtype.kind == "f" and np.isfinite(values).all():
            yield name
