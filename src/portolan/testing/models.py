"""Small models for contract tests, made with onnx.helper; ONNX's reference evaluator gives their right answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from portolan.core.files import sha256
from portolan.core.model import Model
from portolan.core.signature import Signature, TensorSpec
from portolan.core.target import Target
from portolan.targets.local import local

if TYPE_CHECKING:
    import onnx

#: Tensors by name: element type and shape, a name where a size is free.
Side = Mapping[str, tuple[Any, tuple[int | str, ...]]]
OPSET = 18
#: Older runtimes read this version of the file format too.
IR_VERSION = 9


@dataclass(frozen=True)
class Case:
    """A model, inputs and the right outputs; `other` is the same model with another size of a free dimension."""

    name: str
    model: Model
    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    other: Case | None = None

    def check(self, outputs: Mapping[str, np.ndarray], tolerance: float) -> None:
        """Compares with the right outputs.

        Args:
            outputs: by name.
            tolerance: the largest error, as a share of each output's standard deviation (or mean size if that is 0).

        Raises:
            AssertionError: they differ.
        """
        assert list(outputs) == list(self.expected), f"{self.name}: {list(outputs)}"
        for name, right in self.expected.items():
            got = outputs[name]
            assert got.dtype == right.dtype, f"{self.name}: `{name}` is {got.dtype}, expected {right.dtype}"
            assert got.shape == right.shape, f"{self.name}: `{name}` is {got.shape}, expected {right.shape}"
            if right.dtype.kind != "f":
                np.testing.assert_array_equal(got, right, err_msg=f"{self.name}: `{name}`")
                continue
            scale = float(right.std()) or float(np.abs(right).mean())
            error = float(np.abs(got.astype(np.float64) - right).max()) / scale
            assert error <= tolerance, f"{self.name}: `{name}` is off by {error:.2g} of its deviation"


def cases(folder: Path) -> list[Case]:
    """A perceptron, a convolutional net, a free batch, int64 inputs, several outputs, external data."""
    return [make(folder) for make in (perceptron, convolutions, free_batch, tokens, several_outputs, external)]


def perceptron(folder: Path, rows: int = 8) -> Case:
    """Two Gemm layers, 8x32 in and 8x10 out."""
    nodes = [_node("Gemm", "x w1 b1", "h"), _node("Relu", "h", "r"), _node("Gemm", "r w2 b2", "y")]
    weights = _weights(w1=(32, 64), b1=(64,), w2=(64, 10), b2=(10,))
    graph = _graph(nodes, {"x": (np.float32, (rows, 32))}, {"y": (np.float32, (rows, 10))}, weights)
    return case(folder, "perceptron" if rows == 8 else f"perceptron of {rows}", graph, {"x": _normal(rows, 32)})


def convolutions(folder: Path, rows: int = 2) -> Case:
    """Convolutions, plain and depthwise, pooling and a classifier over 3x16x16 images."""
    nodes = [
        _node("Conv", "image k1 c1", "h1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        _node("Relu", "h1", "r1"),
        _node("Conv", "r1 k2", "h2", kernel_shape=[3, 3], group=8, strides=[2, 2]),
        _node("HardSwish", "h2", "r2"),
        _node("GlobalAveragePool", "r2", "p"),
        _node("Flatten", "p", "f"),
        _node("Gemm", "f w b", "z"),
        _node("Softmax", "z", "classes", axis=1),
    ]
    weights = _weights(k1=(8, 3, 3, 3), c1=(8,), k2=(8, 1, 3, 3), w=(8, 5), b=(5,))
    graph = _graph(nodes, {"image": (np.float32, (rows, 3, 16, 16))}, {"classes": (np.float32, (rows, 5))}, weights)
    name = "convolutions" if rows == 2 else f"convolutions of {rows}"
    return case(folder, name, graph, {"image": _normal(rows, 3, 16, 16)})


def free_batch(folder: Path) -> Case:
    """A normalised projection with a free batch."""
    nodes = [_node("LayerNormalization", "x scale bias", "n", axis=-1), _node("MatMul", "n w", "y")]
    weights = _weights(scale=(16,), bias=(16,), w=(16, 4))
    graph = _graph(nodes, {"x": (np.float32, ("batch", 16))}, {"y": (np.float32, ("batch", 4))}, weights)
    return case(folder, "free-batch", graph, {"x": _normal(3, 16)}, {"x": _normal(7, 16)})


def tokens(folder: Path) -> Case:
    """An embedding of int64 ids, averaged over an int64 mask."""
    nodes = [
        _node("Gather", "table ids", "e"),
        _node("Cast", "mask", "m", to=1),
        _node("Unsqueeze", "m last", "m3"),
        _node("Mul", "e m3", "em"),
        _node("ReduceSum", "em one", "sum", keepdims=0),
        _node("ReduceSum", "m one", "count", keepdims=1),
        _node("Div", "sum count", "mean"),
    ]
    weights = _weights(table=(50, 12)) | {"last": np.array([-1]), "one": np.array([1])}
    inputs: Side = {"ids": (np.int64, (2, 6)), "mask": (np.int64, (2, 6))}
    graph = _graph(nodes, inputs, {"mean": (np.float32, (2, 12))}, weights)
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    ids = np.random.default_rng(1).integers(0, 50, (2, 6))
    return case(folder, "tokens", graph, {"ids": ids, "mask": mask})


def several_outputs(folder: Path) -> Case:
    """Outputs of two types, one that is an input and one that is a weight."""
    nodes = [
        _node("MatMul", "x w", "scores"),
        _node("ArgMax", "scores", "best", axis=1, keepdims=0),
        _node("Identity", "x", "same"),
        _node("Identity", "w", "weight"),
    ]
    outputs: Side = {
        "scores": (np.float32, (4, 5)),
        "best": (np.int64, (4,)),
        "same": (np.float32, (4, 8)),
        "weight": (np.float32, (8, 5)),
    }
    graph = _graph(nodes, {"x": (np.float32, (4, 8))}, outputs, _weights(w=(8, 5)))
    return case(folder, "several-outputs", graph, {"x": _normal(4, 8)})


def sized_by_an_input(folder: Path) -> Model:
    """A reshape of twelve numbers to what the input `shape` says."""
    nodes = [_node("Reshape", "x shape", "y")]
    inputs: Side = {"x": (np.float32, (12,)), "shape": (np.int64, (2,))}
    return write(folder, "sized-by-an-input", _graph(nodes, inputs, {"y": (np.float32, ("a", "b"))}, {}))


def external(folder: Path) -> Case:
    """A model whose weights lie in a file beside it, in a folder below."""
    weights = _weights(w=(64, 64), v=(64, 3))
    nodes = [_node("MatMul", "x w", "h"), _node("Tanh", "h", "t"), _node("MatMul", "t v", "y")]
    graph = _graph(nodes, {"x": (np.float32, (5, 64))}, {"y": (np.float32, (5, 3))}, weights)
    return case(folder, "external", graph, {"x": _normal(5, 64)}, location="weights/all.bin")


def unsupported(folder: Path) -> Model:
    """A model with the operator `Mystery`, which nobody has."""
    nodes = [_node("Mystery", "x", "y", domain="com.example")]
    graph = _graph(nodes, {"x": (np.float32, (2, 3))}, {"y": (np.float32, (2, 3))}, {})
    return write(folder, "unsupported", graph)


def corrupt(folder: Path) -> Model:
    """A perceptron whose file was cut in the middle."""
    model = perceptron(folder).model
    data = model.path.read_bytes()
    model.path.write_bytes(data[: len(data) // 2])
    return model


def case(
    folder: Path,
    name: str,
    graph: onnx.GraphProto,
    inputs: dict[str, np.ndarray],
    others: dict[str, np.ndarray] | None = None,
    location: str | None = None,
) -> Case:
    """A case with the reference's answers; `others` are inputs of other sizes, `location` is for external data."""
    from onnx.reference import ReferenceEvaluator

    model = write(folder / name, name, graph, location)
    names = [spec.name for spec in model.signature.outputs]

    def right(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, ReferenceEvaluator(str(model.path)).run(None, feeds), strict=True))

    other = None if others is None else Case(f"{name}, other sizes", model, others, right(others))
    return Case(name, model, inputs, right(inputs), other)


def write(folder: Path, name: str, graph: onnx.GraphProto, location: str | None = None) -> Model:
    """Saves a graph as a model; `location` is the file, relative to `folder`, for tensors of 1 KiB and more."""
    import onnx

    domains = dict.fromkeys(("", *(node.domain for node in graph.node)))
    opsets = [onnx.helper.make_opsetid(d, OPSET if d == "" else 1) for d in domains]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.onnx"
    if location is None:
        onnx.save(proto, str(path))
    else:
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        onnx.save(proto, str(path), save_as_external_data=True, location=location, size_threshold=1024)
    operators: dict[str, int] = {}
    for node in graph.node:
        key = f"{node.domain}.{node.op_type}".lstrip(".")
        operators[key] = operators.get(key, 0) + 1
    signature = Signature(tuple(map(_spec, graph.input)), tuple(map(_spec, graph.output)))
    return Model(name, path, sha256(path), signature, opset=OPSET, operators=operators)


def this_machine() -> Target:
    """This machine as a target."""
    return local.detect()


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    return TensorSpec(value.name, str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape)


def _node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    import onnx

    return onnx.helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def _graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Side,
    outputs: Side,
    weights: Mapping[str, np.ndarray],
) -> onnx.GraphProto:
    import onnx

    def side(values: Side) -> list[onnx.ValueInfoProto]:
        kind = onnx.helper.np_dtype_to_tensor_dtype
        return [onnx.helper.make_tensor_value_info(n, kind(np.dtype(t)), s) for n, (t, s) in values.items()]

    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    return onnx.helper.make_graph(nodes, "graph", side(inputs), side(outputs), tensors)


def _weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        name: (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32) for name, shape in shapes.items()
    }


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
