"""int8 products that may overflow where sums have 16 bits: seen in the graph, before anything is shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from portolan.core.graph import load_model
from portolan.passes._overflow import overflow


def saved(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def product(path: Path, weight: np.ndarray, *, activation: bool = True) -> Path:
    """A product of a weight in codes with an activation, in codes too or in floats."""
    one, zero = np.float32(0.1), np.zeros((), weight.dtype)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "wz"], ["f"]),
        helper.make_node("MatMul", ["d" if activation else "x", "f"], ["y"], name="fc"),
    ]
    return saved(path, nodes, {"s": np.asarray(one), "z": np.zeros((), np.uint8), "w": weight, "wz": zero})


@pytest.mark.parametrize(
    ("weight", "products", "wide"),
    [
        (np.array([[127, 1]] * 4, np.int8), 1, ("fc",)),
        (np.array([[-65, 1]] * 4, np.int8), 1, ("fc",)),
        (np.array([[64, -64]] * 4, np.int8), 1, ()),
        (np.array([[255, 0]] * 4, np.uint8), 0, ()),
    ],
)
def test_what_is_wide(weight: np.ndarray, products: int, wide: tuple[str, ...], tmp_path: Path) -> None:
    found = overflow(load_model(product(tmp_path / "m.onnx", weight)))
    assert (found.products, found.wide) == (products, wide)


def test_weights_that_are_unpacked_do_not_count(tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx", np.full((4, 2), 127, np.int8), activation=False)
    assert overflow(load_model(path)).products == 0


def test_integer_operators(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"], name="int"),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    path = saved(tmp_path / "m.onnx", nodes, {"w": np.full((4, 2), 100, np.int8)})
    found = overflow(load_model(path))
    assert found.wide == ("int",)
    assert str(found).startswith("1 of 1 int8 products can overflow on x86 processors without VNNI")


def test_a_float_model_has_none(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((4, 2), "f4")})
    assert overflow(load_model(path)).products == 0
