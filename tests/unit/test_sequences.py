"""Sequences and optionals at a model's edge: the front end of ONNX files makes tensors of them, and nothing is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from portolan import frontends
from portolan.core.graph import NoTensor, load_model
from portolan.core.model import Model
from portolan.core.ragged import pack, unpack
from portolan.errors import ModelError, UsageError

FLOAT, STRING = TensorProto.FLOAT, TensorProto.STRING


def sequence(name: str, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_sequence_value_info(name, kind, None)


def written(
    path: Path, nodes: Sequence[onnx.NodeProto], inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto], opset: int = 17,
) -> Path:  # fmt: skip
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), str(path))
    return path


def loaded(path: Path) -> Model:
    return frontends.load(str(path), out=path.parent / "derived")


def run(model: Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in model.signature.outputs]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def through(model: Model, elements: Sequence[np.ndarray], dtype: str = "float32") -> list[np.ndarray]:
    values, shapes = pack(elements, dtype)
    found = run(model, {"x.values": values, "x.shapes": shapes})
    return unpack(found["y.values"], found["y.shapes"])


ROWS: dict[str, list[np.ndarray]] = {
    "of different sizes": [np.arange(4, dtype=np.float32), np.arange(2, dtype=np.float32)],
    "of several axes": [np.ones((2, 3), np.float32), np.zeros((1, 5), np.float32)],
    "one of them empty": [np.zeros((3, 0), np.float32), np.ones((2, 2), np.float32)],
    "of single numbers": [np.float32(3), np.float32(4)],
    "alone": [np.float32([7])],
}


@pytest.mark.parametrize("what", ROWS)
@pytest.mark.parametrize("opset", [14, 17, 18])
def test_any_sequence_passes_unchanged(tmp_path: Path, what: str, opset: int) -> None:
    elements = ROWS[what]
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    model = loaded(written(tmp_path / "m.onnx", nodes, [sequence("x")], [sequence("y")], opset))
    assert [spec.name for spec in model.signature.inputs] == ["x.values", "x.shapes"]
    got = through(model, elements)
    assert len(got) == len(elements)
    for mine, given in zip(got, elements, strict=True):
        np.testing.assert_array_equal(mine, given)
        assert mine.shape == np.shape(given)


def test_a_sequence_of_nothing(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    model = loaded(written(tmp_path / "m.onnx", nodes, [sequence("x")], [sequence("y")]))
    assert through(model, []) == []


def test_strings_are_elements_too(tmp_path: Path) -> None:
    nodes = [helper.make_node("SequenceInsert", ["x", "word"], ["y"])]
    word = helper.make_tensor_value_info("word", STRING, [1])
    model = loaded(written(tmp_path / "m.onnx", nodes, [sequence("x", STRING), word], [sequence("y", STRING)]))
    values, shapes = pack([np.array(["a", "b"], object)], "object")
    found = run(model, {"x.values": values, "x.shapes": shapes, "word": np.array(["c"], object)})
    assert [part.tolist() for part in unpack(found["y.values"], found["y.shapes"])] == [["a", "b"], ["c"]]


def test_an_older_opset_is_brought_up_to_date(tmp_path: Path) -> None:
    nodes = [helper.make_node("SequenceInsert", ["x", "more"], ["y"])]
    more = helper.make_tensor_value_info("more", FLOAT, [1])
    model = loaded(written(tmp_path / "m.onnx", nodes, [sequence("x"), more], [sequence("y")], 11))
    assert model.opset == 13
    values, shapes = pack([np.float32([1, 2])])
    found = run(model, {"x.values": values, "x.shapes": shapes, "more": np.float32([3])})
    assert [part.tolist() for part in unpack(found["y.values"], found["y.shapes"])] == [[1, 2], [3]]


def test_an_opset_that_cannot_be_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
        raise RuntimeError("no adapter")

    monkeypatch.setattr(onnx.version_converter, "convert_version", refuse)
    more = helper.make_tensor_value_info("more", FLOAT, [1])
    nodes = [helper.make_node("SequenceInsert", ["x", "more"], ["y"])]
    path = written(tmp_path / "m.onnx", nodes, [sequence("x"), more], [sequence("y")], 11)
    with pytest.raises(ModelError) as caught:
        loaded(path)
    assert caught.value.message == (
        f"`{path}` has sequences as inputs or outputs and opset 11, which cannot make tensors of them"
    )
    assert caught.value.hint == "export the model with `opset_version=13` or later"


def test_what_an_optional_holds(tmp_path: Path) -> None:
    tensor = helper.make_tensor_type_proto(FLOAT, [2])
    optional = [helper.make_value_info(name, helper.make_optional_type_proto(tensor)) for name in ("x", "y")]
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    model = loaded(written(tmp_path / "m.onnx", nodes, optional[:1], optional[1:], 16))
    assert [(spec.name, spec.shape) for spec in model.signature.inputs] == [("x.value", (2,))]
    np.testing.assert_array_equal(run(model, {"x.value": np.float32([1, 2])})["y.value"], [1, 2])


def test_names_that_are_taken_and_what_goes_straight_through(tmp_path: Path) -> None:
    """Another input may have the name of the values; an output may be an input."""
    taken = helper.make_tensor_value_info("x.values", FLOAT, [1])
    out = helper.make_tensor_value_info("n", TensorProto.INT64, [])
    nodes = [helper.make_node("SequenceLength", ["x"], ["n"])]
    model = loaded(written(tmp_path / "m.onnx", nodes, [sequence("x"), taken], [out, sequence("x")]))
    names = [spec.name for spec in model.signature.inputs]
    assert names == ["x.values1", "x.shapes", "x.values"]
    assert [spec.name for spec in model.signature.outputs] == ["n", "x.values1", "x.shapes"]
    values, shapes = pack([np.float32([1]), np.float32([2, 3])])
    found = run(model, {"x.values1": values, "x.shapes": shapes, "x.values": np.float32([0])})
    assert found["n"] == 2
    np.testing.assert_array_equal(found["x.values1"], values)


def test_weights_beside_the_file_come_along(tmp_path: Path) -> None:
    weights = np.arange(600, dtype=np.float32)
    nodes = [helper.make_node("SequenceInsert", ["x", "w"], ["y"])]
    path = written(tmp_path / "m.onnx", nodes, [sequence("x")], [sequence("y")])
    proto = onnx.load(str(path))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(proto, str(path), save_as_external_data=True, location="w.data", size_threshold=0)
    assert [part.size for part in through(loaded(path), [np.float32([1])])] == [1, 600]


def test_maps_stay_refused(tmp_path: Path) -> None:
    """What ZipMap gives: a sequence of maps. The core reads tensors only, whoever asks."""
    key = helper.make_tensor_type_proto(FLOAT, [])
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, key))
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    x = helper.make_tensor_value_info("x", FLOAT, [1, 2])
    graph = helper.make_graph([node], "g", [x], [helper.make_value_info("y", kind)])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), str(tmp_path / "m.onnx"))
    with pytest.raises(NoTensor, match="only tensors") as caught:
        loaded(tmp_path / "m.onnx")
    assert "zipmap" in (caught.value.hint or "")
    lists = written(tmp_path / "s.onnx", [helper.make_node("Identity", ["x"], ["y"])], [sequence("x")], [sequence("y")])
    with pytest.raises(NoTensor, match="is a sequence"):
        load_model(lists)


def test_packing_and_unpacking() -> None:
    values, shapes = pack([np.ones((2, 1), np.float32), np.zeros((1, 3), np.float32)])
    assert values.tolist() == [1, 1, 0, 0, 0]
    assert shapes.tolist() == [[2, 1], [1, 3]]
    with pytest.raises(UsageError, match="float32, int64"):
        pack([np.float32([1]), np.int64([1])])
    with pytest.raises(UsageError, match="ranks 0, 1"):
        pack([np.float32([1]), np.float32(1)])
    with pytest.raises(UsageError, match="ask for 5 values, and there are 4"):
        unpack(values[:4], shapes)
