"""Costs on paper, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from portolan.core.graph import Analysis, analyse, load_model
from portolan.errors import UnknownName
from portolan.testing.frontend import tiny_onnx

F = TensorProto.FLOAT


def cost(
    folder: Path,
    node: onnx.NodeProto,
    inputs: dict[str, list[int]],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 18,
    types: dict[str, int] | None = None,
) -> Analysis:
    """The analysis of a model of one node; its outputs' shapes are inferred."""
    values = [helper.make_tensor_value_info(n, (types or {}).get(n, F), s) for n, s in inputs.items()]
    outputs = [onnx.ValueInfoProto(name=n) for n in node.output if n]
    stored = [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()]
    body = helper.make_graph([node], "g", values, outputs, stored)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    inferred = onnx.shape_inference.infer_shapes(helper.make_model(body, opset_imports=imports, ir_version=10))
    path = folder / "m.onnx"
    path.write_bytes(inferred.SerializeToString())
    return analyse(load_model(path))


def weight(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def test_a_small_network_by_hand(tmp_path: Path) -> None:
    model = load_model(tiny_onnx(tmp_path / "m.onnx", 2))
    found = analyse(model)
    convolution = 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3)
    relu, pool, gemm = 2 * 4 * 8 * 8, 2 * 4 * 8 * 8, 2 * 2 * 2 * 4 + 4
    assert found.flops == convolution + relu + pool + gemm
    assert found.parameters == 4 * 3 * 9 + 8 + 2
    assert found.parameter_bytes == 4 * found.parameters
    assert found.bytes_moved == 4 * (found.parameters + 2 * 3 * 64 + 2 * 2)
    assert found.intensity == pytest.approx(found.flops / found.bytes_moved)
    assert found.floor_seconds(1e9, 1e12) == pytest.approx(found.flops / 1e9)
    assert found.floor_seconds(1e15, 1e6) == pytest.approx(found.bytes_moved / 1e6)
    assert found.operators == model.operators
    assert found.notes == ()


def test_free_dimensions_need_sizes(tmp_path: Path) -> None:
    model = load_model(tiny_onnx(tmp_path / "m.onnx"))
    found = analyse(model)
    assert (found.flops, found.bytes_moved, found.intensity, found.floor_seconds(1, 1)) == (None, None, None, None)
    assert found.notes == ("flops and bytes moved need a size for `batch`: give `--shapes`",)
    assert found.parameters == 118
    given = analyse(model, {"x": (2, 3, 8, 8)})
    assert given == analyse(load_model(tiny_onnx(tmp_path / "two.onnx", 2)))
    assert analyse(model, {"x": ("batch", 3, 8, 8)}) == found
    with pytest.raises(UnknownName):
        analyse(model, {"y": (1,)})


def test_a_weight_stored_twice_counts_once(tmp_path: Path) -> None:
    w = weight(64, 64)
    values = [helper.make_tensor_value_info(n, F, [1, 64]) for n in ("x", "y")]
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    stored = [numpy_helper.from_array(w, "a"), numpy_helper.from_array(w, "b")]
    body = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    proto = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    found = analyse(load_model(tmp_path / "m.onnx"))
    assert found.parameters == 64 * 64
    assert found.flops == 2 * 2 * 64 * 64
    onnx.save(proto, str(tmp_path / "e.onnx"), save_as_external_data=True, location="e.data")
    outside = analyse(load_model(tmp_path / "e.onnx"))
    assert outside.flops == found.flops
    assert outside.parameters == 2 * 64 * 64  # at two places of the file; their bytes are not read


def test_shapes_and_indices_are_no_parameters(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "s"], ["y"])
    found = cost(tmp_path, node, {"x": [2, 6]}, {"s": np.array([3, 4])})
    assert (found.parameters, found.flops) == (0, 0)


def test_a_table_moves_the_rows_that_are_read(tmp_path: Path) -> None:
    node = helper.make_node("Gather", ["table", "ids"], ["y"])
    found = cost(tmp_path, node, {"ids": [1, 5]}, {"table": weight(1000, 8)}, types={"ids": TensorProto.INT64})
    assert found.parameters == 8000
    assert found.bytes_moved == 5 * 8 * 4 + 5 * 8 + 5 * 8 * 4


@pytest.mark.parametrize(
    ("node", "inputs", "weights", "flops"),
    [
        (helper.make_node("MatMul", ["a", "b"], ["y"]), {"a": [2, 5, 7], "b": [2, 7, 3]}, {}, 2 * 2 * 5 * 3 * 7),
        (
            helper.make_node("Gemm", ["a", "w"], ["y"], transA=1, transB=1),
            {"a": [7, 5]},
            {"w": weight(3, 7)},
            2 * 5 * 3 * 7,
        ),
        (
            helper.make_node("Conv", ["x", "w", "b"], ["y"], group=4),  # depthwise
            {"x": [1, 4, 5, 5]},
            {"w": weight(4, 1, 3, 3), "b": weight(4)},
            2 * 4 * 9 * 9 + 4 * 9,
        ),
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
            {"x": [1, 4, 5, 5]},
            {"w": weight(4, 6, 2, 2)},
            2 * 4 * 25 * 6 * 4,
        ),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2]), {"x": [1, 4, 8, 8]}, {}, 256),
        (helper.make_node("Softmax", ["x"], ["y"]), {"x": [2, 10]}, {}, 20),
        (helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0), {"x": [2, 10]}, {}, 20),
        (helper.make_node("Transpose", ["x"], ["y"]), {"x": [2, 10]}, {}, 0),
        (
            helper.make_node("Einsum", ["a", "b"], ["y"], equation="bij,bjk->bik"),
            {"a": [2, 3, 4], "b": [2, 4, 5]},
            {},
            2 * 2 * 3 * 4 * 5,
        ),
        (
            helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=6),
            {"x": [7, 2, 5]},
            {"w": weight(1, 24, 5), "r": weight(1, 24, 6)},
            7 * 2 * (2 * 24 * (5 + 6) + 2 * 24 + 4 * 6),
        ),
        (
            helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=6, direction="bidirectional"),
            {"x": [7, 2, 5]},
            {"w": weight(2, 18, 5), "r": weight(2, 18, 6)},
            7 * 2 * 2 * (2 * 18 * (5 + 6) + 2 * 18 + 3 * 6),
        ),
    ],
    ids=lambda v: v.op_type if isinstance(v, onnx.NodeProto) else "",
)
def test_operators_by_hand(
    tmp_path: Path, node: onnx.NodeProto, inputs: dict[str, list[int]], weights: dict[str, np.ndarray], flops: int
) -> None:
    assert cost(tmp_path, node, inputs, weights).flops == flops


def test_attention(tmp_path: Path) -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    shape = {"q": [1, 4, 10, 8], "k": [1, 4, 12, 8], "v": [1, 4, 12, 8]}
    found = cost(tmp_path, node, shape, opset=23)
    assert found.flops == 10 * 12 * (2 * 32 + 2 * 32 + 3 * 4)
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=4, kv_num_heads=4)
    assert cost(tmp_path, node, {"q": [1, 10, 32], "k": [1, 12, 32], "v": [1, 12, 32]}, opset=23).flops == found.flops


def test_quantized_operators(tmp_path: Path) -> None:
    node = helper.make_node("MatMulInteger", ["a", "w"], ["y"])
    found = cost(tmp_path, node, {"a": [2, 8]}, {"w": weight(8, 3, dtype="int8")}, types={"a": TensorProto.INT8})
    assert (found.flops, found.parameters, found.parameter_bytes) == (2 * 2 * 3 * 8, 24, 24)


def test_what_depends_on_values_is_said(tmp_path: Path) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Cast", ["i"], ["f"], to=F)]
    nodes += [helper.make_node("MatMul", ["w", "f"], ["y"])]
    values = [helper.make_tensor_value_info("x", F, [4]), helper.make_tensor_value_info("y", F, [3, "n"])]
    body = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(weight(3, 1), "w")])
    proto = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    found = analyse(load_model(tmp_path / "m.onnx"))
    assert found.flops is None
    assert found.bytes_moved is None
    assert found.notes == ("no flops: the shapes of 1 `MatMul` are not known before a run",)
    del nodes[2]
    values[1].name = "f"
    body = helper.make_graph([nodes[0], helper.make_node("Neg", ["i"], ["n"]), nodes[1]], "g", values[:1], values[1:])
    proto.graph.CopyFrom(body)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    found = analyse(load_model(tmp_path / "m.onnx"))
    assert found.notes == ("flops leave out 1 `Neg`: their shapes are not known before a run",)


def test_loops_are_counted_once_and_said(tmp_path: Path) -> None:
    out = helper.make_tensor_value_info("b", F, [1, 4])
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["b"])], "then", [], [out])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    found = cost(tmp_path, node, {"c": [], "x": [1, 4]}, types={"c": TensorProto.BOOL})
    assert found.flops == 8
    assert found.notes == ("the body of each loop and every branch is counted once",)


@pytest.mark.parametrize(("name", "gflops"), [("light_resnet50", 8.2), ("light_squeezenet", 0.7)])
def test_known_architectures(name: str, gflops: float) -> None:
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    found = analyse(load_model(folder / f"{name}.onnx"))
    assert found.flops is not None
    assert found.flops / 1e9 == pytest.approx(gflops, rel=0.05)
