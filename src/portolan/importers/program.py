"""An ONNX graph as plain data: steps with decoded attributes, constants as NumPy arrays, and a run over any namespace.

Sizes stay out of the arrays' library: what only depends on shapes and constants is computed in NumPy as the program
runs, so a tracer sees numbers there. Where a tracer counts with symbols, those arrays hold objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portolan.core import protos
from portolan.errors import ModelError, PortolanError, UnsupportedOperator
from portolan.importers import numpy_
from portolan.importers.operators import TABLE, key
from portolan.importers.operators.call import Call

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


@dataclass(frozen=True)
class Step:
    """One node: its operator as the table names it, and the version of that operator's set."""

    operator: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.operator} giving `{next(iter(filter(None, self.outputs)), '?')}`"


@dataclass(frozen=True)
class Program:
    """A graph without subgraphs or functions.

    Attributes:
        name: what to call the model in an error.
        inputs: names in order.
        outputs: names in order.
        steps: in an order that computes everything before it is used.
        constants: initializers and constant nodes, writable.
        weights: the names of those constants that training may change: floats that no operator takes for a setting or
            a statistic, of two elements or more (single numbers are such as the 0.5 of an activation), and biases.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    constants: Mapping[str, np.ndarray]
    weights: tuple[str, ...]

    def run(self, xp: Any, values: dict[str, Any], wanted: Sequence[str] = ()) -> dict[str, Any]:
        """Computes outputs.

        Args:
            xp: the namespace that traced values belong to (see `torch_.Torch`).
            values: the inputs, and constants that are no NumPy arrays, such as parameters; grows by every result.
            wanted: the names to give; the program's outputs without.

        Raises:
            UnsupportedOperator: a size depends on what an input holds, or the namespace lacks something.
            ModelError: an operator failed.
        """
        values = {**self.constants, **values, "": None}
        for step in self.steps:
            values.update(self._step(step, xp, values))
        return {name: xp.asarray(values[name]) for name in wanted or self.outputs}

    def _step(self, step: Step, xp: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        operator = TABLE[step.operator]
        given = [values[name] for name in step.inputs]
        folded = operator.folds and all(v is None or numpy_.holds(v) for v in given)
        space = numpy_.NumPy() if folded else xp
        arguments = [self._argument(step, i, v, operator.static, space) for i, v in enumerate(given)]
        try:
            found = operator.function(Call(space, xp, step.version, step.attributes, len(step.outputs)), *arguments)
        except PortolanError as error:
            raise type(error)(error.message, hint=error.hint, where=f"{step} of {self.name}") from error
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"{step} of `{self.name}` cannot be computed: {error}", hint="check the shapes") from error
        parts = found if isinstance(found, tuple) else (found,)
        if folded:
            parts = tuple(numpy_.array(part) if numpy_.number(part) else part for part in parts)
        return {name: part for name, part in zip(step.outputs, parts, strict=False) if name}

    def _argument(self, step: Step, position: int, value: Any, static: tuple[int, ...], space: Any) -> Any:
        if value is None or position not in static:
            return value if value is None else space.asarray(value)
        if not numpy_.holds(value):
            raise UnsupportedOperator(
                f"input {position} of {step} of `{self.name}` is known only as the model runs",
                hint="export the model with fixed sizes: `--shapes`",
            )
        return value


def unsupported(operators: Mapping[str, int]) -> list[str]:
    """Those of a model's operators (as `Model.operators` names them) that the table lacks, sorted.

    Names of other domains may be functions whose bodies the file holds, so nothing is said of them.
    """
    standard = (name for name in operators if "." not in name or name.startswith("com.microsoft."))
    return sorted(name for name in standard if name not in TABLE and name != "Constant")


def read(proto: onnx.ModelProto, name: str) -> Program:
    """The program of a graph whose functions are inlined and whose external data are loaded.

    Raises:
        UnsupportedOperator: an operator that the table lacks, or a subgraph.
        ModelError: an old operator set, or an element type without a NumPy equivalent.
    """
    versions = {protos.domain(entry.domain): entry.version for entry in proto.opset_import}
    if versions.get("", OLDEST) < OLDEST:
        raise ModelError(
            f"`{name}` uses operator set {versions['']}, the importer reads {OLDEST} and later",
            hint="export the model again with `opset_version=18`",
        )
    if len(proto.graph.sparse_initializer):
        raise ModelError(f"`{name}` has sparse initializers, which the importer does not read", hint="store them dense")
    constants = {tensor.name: array(tensor) for tensor in proto.graph.initializer}
    steps = []
    for node in proto.graph.node:
        if key(node.op_type, node.domain) == "Constant":
            constants[node.output[0]] = _constant(node)
        else:
            steps.append(_read_step(node, versions, name))
    outputs = tuple(value.name for value in proto.graph.output)
    inputs = tuple(value.name for value in proto.graph.input if value.name not in constants)
    return Program(name, inputs, outputs, tuple(steps), constants, tuple(_weights(steps, constants)))


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


def _read_step(node: onnx.NodeProto, versions: Mapping[str, int], name: str) -> Step:
    import onnx

    operator = key(node.op_type, node.domain)
    if operator not in TABLE:
        raise UnsupportedOperator(
            f"the importer has no operator `{operator}`, which `{name}` uses",
            hint="export the model with other operators, or leave the passes that train out",
            where=f"node `{node.name or node.output[0]}`",
        )
    attributes = {a.name: _attribute(onnx.helper.get_attribute_value(a)) for a in node.attribute}
    version = versions.get(protos.domain(node.domain), 1)
    return Step(operator, version, tuple(node.input), tuple(node.output), attributes)


def _attribute(value: Any) -> Any:
    import onnx

    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return array(value)
    return [_attribute(item) for item in value] if isinstance(value, list) else value


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
