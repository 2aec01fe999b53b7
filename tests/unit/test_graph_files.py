"""How passes write graphs: one file or two, the graph as it was, and what is read back is what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import node, normal, save
from onnx import TensorProto, helper
from onnx import numpy_helper as nh

from portolan.passes._graphs import write
from portolan.passes._observe import session


@pytest.fixture
def graph(tmp_path: Path) -> onnx.ModelProto:
    """Two products, with constants of each way that ONNX stores them."""
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"]), node("MatMul", ["b", "v"], ["y"])]
    v = normal(40, 40, seed=4)
    weights = {"w": normal(40, 40), "unused": normal(2, 3), "v": v}
    model = save(tmp_path / "net.onnx", nodes, weights, {"x": ["n", 40]}, {"y": ["n", 40]})
    proto = onnx.load(model.path)
    proto.metadata_props.add(key="from", value="somewhere")
    proto.functions.add(name="f", domain="example.org").opset_import.add(domain="", version=20)
    assert proto.graph.initializer.pop().name == "v"
    proto.graph.initializer.add(name="v", dims=v.shape, data_type=TensorProto.FLOAT, float_data=v.reshape(-1))
    codes = np.arange(64 * 64).reshape(64, 64) % 16
    proto.graph.initializer.append(helper.make_tensor("codes", TensorProto.UINT4, (64, 64), codes.reshape(-1)))
    proto.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, (2,), [b"a", b"b" * 2000]))
    return proto


def test_weights_apart_come_back_and_the_graph_keeps_its_own(graph: onnx.ModelProto, tmp_path: Path) -> None:
    before = graph.SerializeToString(deterministic=True)
    one, two = write(graph, tmp_path / "one.onnx"), write(graph, tmp_path / "two.onnx", limit=0)
    assert graph.SerializeToString(deterministic=True) == before
    assert not (tmp_path / "one.data").exists()
    assert (tmp_path / "two.data").stat().st_size > 2 * 40 * 40 * 4
    assert two.stat().st_size < 6000
    light, whole, right = onnx.load(two, load_external_data=False), onnx.load(two), onnx.load(one)
    apart = {t.name for t in light.graph.initializer if t.data_location == TensorProto.EXTERNAL}
    assert apart == {"w", "v", "codes"}
    assert [t.name for t in whole.graph.initializer] == [t.name for t in right.graph.initializer]
    for got, wanted in zip(whole.graph.initializer, right.graph.initializer, strict=True):
        np.testing.assert_array_equal(nh.to_array(got), nh.to_array(wanted))
    for proto in (whole, right):
        del proto.graph.initializer[:]
    assert whole.SerializeToString(deterministic=True) == right.SerializeToString(deterministic=True)


def test_a_graph_of_any_size_can_be_run_again_and_again(
    graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As calibration does, and the judgement after it."""
    monkeypatch.setattr(write, "__defaults__", (0,))
    del graph.functions[:]
    answers = []
    for _ in range(2):
        with session(graph, ["b"]) as running:
            answers.append(running.run(["b", "y"], {"x": normal(3, 40)}))
    np.testing.assert_array_equal(answers[0][1], answers[1][1])
    assert answers[0][0].min() == 0 < np.abs(answers[0][1]).max()
