"""simplify: what it may change in a graph and what it may not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxslim
import pytest
from onnx import helper as oh
from onnx import numpy_helper as nh

from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context
from portolan.errors import ModelError, UnknownName, UsageError
from portolan.passes import _graphs
from portolan.passes.simplify import simplify
from portolan.testing.models import this_machine
from portolan.testing.passes import run

FLOAT, INT = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def save(folder: Path, nodes: list, inputs: list, outputs: list, weights: dict, ir: int = 9, **extra: object) -> Model:
    tensors = [nh.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = oh.make_graph(nodes, "g", inputs, outputs, tensors)
    proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=ir, **extra)
    path = folder / "it.onnx"
    onnx.save(proto, path)
    return load_model(path)


def apply(model: Model, folder: Path, **options: object) -> Model:
    (folder / "out").mkdir()
    return simplify(model, Context(folder / "out", this_machine()), **options)


def positions(folder: Path) -> Model:
    """Adds a slice of a table as long as the input, whose length is free; and a chain of constants."""
    nodes = [
        oh.make_node("Shape", ["x"], ["s"]),
        oh.make_node("Gather", ["s", "one"], ["n"]),
        oh.make_node("Slice", ["table", "zero", "n", "one"], ["p"]),
        oh.make_node("Add", ["x", "p"], ["a"]),
        oh.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        oh.make_node("MatMul", ["a", "wt"], ["h"]),
        oh.make_node("Identity", ["h"], ["y"]),
        oh.make_node("Exp", ["h"], ["unused"]),
    ]
    rng = np.random.default_rng(0)
    weights = {
        "one": np.array([1]),
        "zero": np.array([0]),
        "table": rng.standard_normal((1, 64, 4)).astype("f4"),
        "w": rng.standard_normal((3, 4)).astype("f4"),
    }
    inputs = [oh.make_tensor_value_info("x", FLOAT, ["batch", "length", 4])]
    outputs = [oh.make_tensor_value_info("y", FLOAT, ["batch", "length", 3])]
    return save(folder, nodes, inputs, outputs, weights)


def test_constants_fold_and_dead_nodes_go_while_free_sizes_stay(tmp_path: Path) -> None:
    model = positions(tmp_path)
    result = apply(model, tmp_path)
    assert not {"Transpose", "Identity", "Exp"} & result.operators.keys()
    assert result.signature == model.signature
    for length in (1, 7, 64):
        x = np.random.default_rng(1).standard_normal((2, length, 4)).astype("f4")
        np.testing.assert_allclose(run(result, {"x": x})["y"], run(model, {"x": x})["y"], rtol=1e-6)


def test_shapes_fix_free_sizes(tmp_path: Path) -> None:
    model = positions(tmp_path)
    result = apply(model, tmp_path, shapes="x:batchx8x4")
    assert result.signature.inputs[0].shape == ("batch", 8, 4)
    assert result.signature.outputs[0].shape == ("batch", 8, 3)
    assert not {"Shape", "Slice"} & result.operators.keys()
    x = np.ones((2, 8, 4), "f4")
    np.testing.assert_allclose(run(result, {"x": x})["y"], run(model, {"x": x})["y"], rtol=1e-6)


@pytest.mark.parametrize("text", ["8x4", "x:", ":1x8x4", "x:1x8x4,"])
def test_shapes_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="cannot be read") as caught:
        apply(positions(tmp_path), tmp_path, shapes=text)
    assert "image:1x3x224x224" in str(caught.value.hint)


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UnknownName):
        apply(positions(tmp_path), tmp_path, shapes="z:1x8x4")


def test_what_would_make_the_file_larger_is_not_folded(tmp_path: Path) -> None:
    nodes = [
        oh.make_node("ConstantOfShape", ["size"], ["w"], value=oh.make_tensor("v", FLOAT, [1], [0.5])),
        oh.make_node("ConstantOfShape", ["few"], ["b"], value=oh.make_tensor("v", FLOAT, [1], [0.25])),
        oh.make_node("MatMul", ["x", "w"], ["h"]),
        oh.make_node("Add", ["h", "b"], ["y"]),
    ]
    inputs = [oh.make_tensor_value_info("x", FLOAT, [1, 400])]
    outputs = [oh.make_tensor_value_info("y", FLOAT, [1, 400])]
    model = save(tmp_path, nodes, inputs, outputs, {"size": np.array([400, 400]), "few": np.array([400])})
    result = apply(model, tmp_path)
    assert result.operators == {"ConstantOfShape": 1, "MatMul": 1, "Add": 1}
    assert result.path.stat().st_size < 2**14


def test_notes_of_tools_go_and_the_models_own_metadata_stay(tmp_path: Path) -> None:
    node = oh.make_node("Relu", ["x"], ["y"], doc_string="File /home/somebody/model.py, line 3")
    node.metadata_props.add(key="stack_trace", value="File /home/somebody/model.py")
    side = [oh.make_tensor_value_info("x", FLOAT, [2])], [oh.make_tensor_value_info("y", FLOAT, [2])]
    model = save(tmp_path, [node], *side, {}, producer_name="somebody", doc_string="what it is")
    proto = onnx.load(model.path)
    for key in ("b", "a"):
        proto.metadata_props.add(key=key, value=f"value {key}")
    onnx.save(proto, model.path)
    result = apply(load_model(model.path), tmp_path)
    written = onnx.load(result.path)
    assert [(e.key, e.value) for e in written.metadata_props] == [("a", "value a"), ("b", "value b")]
    assert (written.producer_name, written.doc_string) == ("somebody", "what it is")
    assert b"/home/" not in result.path.read_bytes()


def test_weights_that_old_files_list_as_inputs_become_constants(tmp_path: Path) -> None:
    inputs = [oh.make_tensor_value_info("x", FLOAT, [2, 3]), oh.make_tensor_value_info("w", FLOAT, [3, 4])]
    outputs = [oh.make_tensor_value_info("y", FLOAT, [2, 4])]
    weights = {"w": np.ones((3, 4), "f4")}
    model = save(tmp_path, [oh.make_node("MatMul", ["x", "w"], ["y"])], inputs, outputs, weights, ir=3)
    result = apply(model, tmp_path)
    assert [spec.name for spec in result.signature.inputs] == ["x"]
    assert [value.name for value in onnx.load(result.path).graph.input] == ["x"]


def test_functions_are_inlined_and_nodes_get_names_of_their_own(tmp_path: Path) -> None:
    double = oh.make_function(
        "my", "Double", ["a"], ["b"], [oh.make_node("Add", ["a", "a"], ["b"])], [oh.make_opsetid("", 18)]
    )
    nodes = [
        oh.make_node("Double", ["x"], ["h"], domain="my", name="Relu_1"),
        oh.make_node("Relu", ["h"], ["r"]),
        oh.make_node("Relu", ["r"], ["y"], name="kept"),
    ]
    side = [oh.make_tensor_value_info("x", FLOAT, [2])], [oh.make_tensor_value_info("y", FLOAT, [2])]
    graph = oh.make_graph(nodes, "g", *side)
    opsets = [oh.make_opsetid("", 18), oh.make_opsetid("my", 1)]
    onnx.save(oh.make_model(graph, opset_imports=opsets, ir_version=9, functions=[double]), tmp_path / "f.onnx")
    proto = _graphs.open_graph(load_model(tmp_path / "f.onnx"))
    names = [node.name for node in proto.graph.node]
    assert {node.op_type for node in proto.graph.node} == {"Add", "Relu"}
    assert "kept" in names
    assert all(names)
    assert len(set(names)) == len(names)


def test_a_failing_library_is_a_model_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        print("noise")
        raise RuntimeError("odd graph")

    monkeypatch.setattr(onnxslim, "slim", fail)
    with pytest.raises(ModelError, match="cannot be simplified: RuntimeError: odd graph") as caught:
        apply(positions(tmp_path), tmp_path)
    assert "simplify" in str(caught.value.hint)


def test_a_changed_signature_is_an_error(tmp_path: Path) -> None:
    model = positions(tmp_path)
    original = _graphs.open_graph(model)
    renamed = _graphs.open_graph(model)
    renamed.graph.output[0].name = "z"
    with pytest.raises(ModelError, match="changed the outputs"):
        _graphs.save_graph(renamed, original, model, tmp_path)


def test_large_weights_go_into_a_file_beside_the_graph(tmp_path: Path) -> None:
    model = positions(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _graphs.write(_graphs.open_graph(model), tmp_path / name / "model.onnx", limit=1000)
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["model.data", "model.onnx"]
    assert load_model(tmp_path / "one/model.onnx").sha256 == load_model(tmp_path / "two/model.onnx").sha256
    x = np.ones((1, 5, 4), "f4")
    big = load_model(tmp_path / "one/model.onnx")
    np.testing.assert_array_equal(run(big, {"x": x})["y"], run(model, {"x": x})["y"])


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    apply(positions(tmp_path), tmp_path)
    assert capfd.readouterr() == ("", "")
