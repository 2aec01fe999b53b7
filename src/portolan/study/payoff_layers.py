"""The small networks that `doctor --bench` tries passes on, and the product that int8 is timed by."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from portolan.core.data import Data, save_npz
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.study.builder import Samples

if TYPE_CHECKING:
    import onnx

_ROWS, _SEED = 32, 20


def layer(kind: str, proto: onnx.ModelProto, folder: Path) -> tuple[Model, Samples]:
    """A network of one input as a model with made-up samples, its files in `folder` named after `kind`."""
    import onnx

    path = folder / f"{kind}.onnx"
    onnx.save(proto, path)
    model = load_model(path)
    spec = model.signature.inputs[0]
    shape = (_ROWS, *(int(size) for size in spec.shape[1:]))
    rng = np.random.default_rng(_SEED)
    rows = rng.integers(0, 256, shape, np.uint8) if spec.dtype == "uint8" else rng.standard_normal(shape, np.float32)
    data = Data({"x": rows}, None, kind)
    save_npz(data, folder / f"{kind}.npz")
    return model, Samples(data, folder / f"{kind}.npz", tuple(range(2, _ROWS)), (0, 1), synthetic=True)


def _products() -> onnx.ModelProto:
    """Two feed-forward blocks of a small transformer, 32 tokens."""
    rng = np.random.default_rng(_SEED)
    nodes: list[Any] = []
    weights: dict[str, np.ndarray] = {}
    name, sizes = "x", (384, 1536, 384, 1536, 384)
    for i, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        weights[f"w{i}"] = rng.standard_normal((rows, columns)).astype(np.float32) / math.sqrt(rows)
        nodes.append(("MatMul", [name, f"w{i}"], f"p{i}", {}))
        nodes.append(("Relu", [f"p{i}"], f"r{i}", {}))
        name = f"r{i}"
    return _model(nodes, weights, ["n", 32, 384], ["n", 32, 384])


def _convolutions() -> onnx.ModelProto:
    """Four 3x3 convolutions of 64 channels, as in the middle of a small ResNet."""
    rng = np.random.default_rng(_SEED)
    nodes: list[Any] = []
    weights: dict[str, np.ndarray] = {}
    name = "x"
    for i in range(4):
        weights[f"w{i}"] = rng.standard_normal((64, 64, 3, 3)).astype(np.float32) / 24
        nodes.append(("Conv", [name, f"w{i}"], f"c{i}", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}))
        nodes.append(("Relu", [f"c{i}"], f"r{i}", {}))
        name = f"r{i}"
    return _model(nodes, weights, ["n", 64, 28, 28], ["n", 64, 28, 28])


def integer_product(n: int) -> onnx.ModelProto:
    """Bytes times a matrix of bytes, both [n, n]."""
    rng = np.random.default_rng(_SEED)
    weights = {"w": rng.integers(-128, 128, (n, n), np.int8)}
    return _model([("MatMulInteger", ["x", "w"], "y", {})], weights, ["n", n, n], ["n", n, n], ("UINT8", "INT32"))


def _model(
    nodes: Sequence[tuple[str, list[str], str, dict[str, Any]]],
    weights: Mapping[str, np.ndarray],
    before: Sequence[int | str],
    after: Sequence[int | str],
    types: tuple[str, str] = ("FLOAT", "FLOAT"),
) -> onnx.ModelProto:
    from onnx import TensorProto, helper, numpy_helper

    last = nodes[-1][2]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output], name=output, **extra) for kind, inputs, output, extra in nodes],
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.DataType.Value(types[0]), before)],
        [helper.make_tensor_value_info(last, TensorProto.DataType.Value(types[1]), after)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


LAYERS: Mapping[str, Callable[[], onnx.ModelProto]] = {"products": _products, "convolutions": _convolutions}
