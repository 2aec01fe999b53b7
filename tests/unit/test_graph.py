"""Reading ONNX files: every kind of bad input has one clear line, a hint and exit code 5."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from portolan.core import graph, protos
from portolan.core.signature import Signature, TensorSpec
from portolan.errors import ModelError, PortolanError, UnknownName, UnsupportedOperator, UsageError
from portolan.testing.frontend import tiny_graph, tiny_onnx


def write(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path, kind: type[PortolanError] = ModelError) -> PortolanError:
    with pytest.raises(kind) as caught:
        graph.load_model(path)
    assert caught.value.exit_code == (2 if kind is UsageError else 5)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def one_node(node: onnx.NodeProto, *extra: onnx.OperatorSetIdProto, opset: int = 18) -> onnx.ModelProto:
    body = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset), *extra], ir_version=10)


def test_a_good_model(tmp_path: Path) -> None:
    model = graph.load_model(tiny_onnx(tmp_path / "tiny.onnx"))
    assert model.name == "tiny"
    assert model.opset == 18
    assert model.operators == {"Conv": 1, "Flatten": 1, "Gemm": 1, "GlobalAveragePool": 1, "Relu": 1}
    assert model.signature == Signature(
        (TensorSpec("x", "float32", ("batch", 3, 8, 8)),), (TensorSpec("y", "float32", ("batch", 2)),)
    )
    assert model.signature.free == ["batch"]
    assert model.signature.batch == "batch"


def test_the_fingerprint_is_the_hash_and_follows_the_content(tmp_path: Path) -> None:
    first, second = tiny_onnx(tmp_path / "a.onnx"), tiny_onnx(tmp_path / "b.onnx", seed=1)
    assert graph.fingerprint(first) == graph.load_model(first).sha256
    assert graph.fingerprint(first) != graph.fingerprint(second)
    shutil.copy(first, second)
    assert graph.fingerprint(first) == graph.fingerprint(second)


def test_a_model_that_only_mentions_location_has_the_hash_of_its_file(tmp_path: Path) -> None:
    proto = tiny_graph()
    proto.doc_string = "location"
    path = write(tmp_path / "m.onnx", proto)
    assert graph.fingerprint(path) == graph.load_model(path).sha256


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b"", "is empty", "copy or export the model again"),
        (b"hello, this is no protobuf", "is not an ONNX file", "export the model to ONNX"),
        (b"\x00" * 64, "is not an ONNX file", "export the model to ONNX"),
        (b"\x08\x0a", "is not an ONNX file", "export the model to ONNX"),  # parses as an empty model
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer", "git lfs pull"),
        (b"\x80\x02}q\x00.", "is not an ONNX file", "export the model to ONNX"),
    ],
)
def test_not_a_model(tmp_path: Path, content: bytes, message: str, hint: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    error = refused(path)
    assert message in error.message
    assert f"`{path}`" in error.message
    assert hint in (error.hint or "")
    if not content:
        with pytest.raises(ModelError, match="is empty"):
            graph.fingerprint(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_truncated(tmp_path: Path, share: float) -> None:
    data = tiny_graph().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    error = refused(path)
    assert error.message == f"`{path}` is truncated: it ends in the middle of the graph"
    assert error.hint == "the download or copy did not finish: get the file again"


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    tiny_onnx(tmp_path / "resnet50.onnx")
    error = refused(tmp_path / "resnet5.onnx", UsageError)
    assert error.hint == f"did you mean `{tmp_path / 'resnet50.onnx'}`?"
    error = refused(tmp_path / "none" / "zzz.onnx", UsageError)
    assert error.hint == "give the path of an `.onnx` file"
    with pytest.raises(UsageError, match="there is no file"):
        graph.fingerprint(tmp_path / "zzz.onnx")


def test_a_folder(tmp_path: Path) -> None:
    assert refused(tmp_path).hint == "give the path of an `.onnx` file"
    tiny_onnx(tmp_path / "m.onnx")
    error = refused(tmp_path)
    assert error.message == f"`{tmp_path}` is a folder, not an ONNX file"
    assert error.hint == f"give the file in it: `{tmp_path / 'm.onnx'}`"


def test_not_a_regular_file() -> None:
    assert "is not a regular file" in refused(Path("/dev/null")).message


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_onnx(tmp_path / "m.onnx")

    def deny(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)
    error = refused(path)
    assert error.message == f"`{path}` cannot be read: Permission denied"


def test_unknown_operator_names_the_nearest(tmp_path: Path) -> None:
    proto = one_node(helper.make_node("Sofmax", ["x"], ["y"], name="head"))
    error = refused(write(tmp_path / "m.onnx", proto), UnsupportedOperator)
    assert error.message == "ONNX opset 18 has no operator `Sofmax`"
    assert error.hint == "did you mean `Softmax`?"
    assert error.where == "node `head` of m.onnx"


def test_an_operator_without_a_near_name(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", one_node(helper.make_node("Zqxzqxz", ["x"], ["y"])))
    assert refused(path, UnsupportedOperator).hint == "export the model with standard operators only"


def test_an_operator_of_a_later_opset(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", one_node(helper.make_node("Gelu", ["x"], ["y"])))
    error = refused(path, UnsupportedOperator)
    assert error.hint == "`Gelu` exists from version 20 on: export the model with `opset_version=20`"


def test_a_custom_operator_needs_a_body(tmp_path: Path) -> None:
    node = helper.make_node("Swoosh", ["x"], ["y"], domain="my.ops")
    proto = one_node(node, helper.make_opsetid("my.ops", 1))
    error = refused(write(tmp_path / "m.onnx", proto), UnsupportedOperator)
    assert error.message == "the operator `Swoosh` of domain `my.ops` is not known, and the file has no body for it"
    inner = [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["b"])]
    body = helper.make_function("my.ops", "Swoosh", ["a"], ["b"], inner, [helper.make_opsetid("", 18)])
    proto.functions.append(body)
    model = graph.load_model(write(tmp_path / "m.onnx", proto))
    assert model.operators == {"Mul": 1, "Sigmoid": 1}
    assert graph.analyse(model).flops == 8


def test_an_unknown_operator_in_a_function_or_branch_is_found(tmp_path: Path) -> None:
    proto = one_node(helper.make_node("F", ["x"], ["y"], domain="my.ops"), helper.make_opsetid("my.ops", 1))
    inner = [helper.make_node("Nope", ["a"], ["b"])]
    proto.functions.append(helper.make_function("my.ops", "F", ["a"], ["b"], inner, [helper.make_opsetid("", 18)]))
    assert "`Nope`" in refused(write(tmp_path / "m.onnx", proto), UnsupportedOperator).message
    out = helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 4])
    branch = helper.make_graph([helper.make_node("Nope", ["x"], ["b"])], "then", [], [out])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    assert "`Nope`" in refused(write(tmp_path / "m.onnx", one_node(node)), UnsupportedOperator).message


def test_runtime_operators_are_left_to_the_backends(tmp_path: Path) -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    model = graph.load_model(write(tmp_path / "m.onnx", one_node(node, helper.make_opsetid("com.microsoft", 1))))
    assert model.operators == {"com.microsoft.Gelu": 1}
    analysis = graph.analyse(model)
    assert analysis.notes == ("flops leave out 1 `com.microsoft.Gelu`: their cost is not known",)


def test_newer_than_the_installed_onnx(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", one_node(helper.make_node("Relu", ["x"], ["y"]), opset=999))
    assert "uses opset 999" in refused(path).message
    proto = tiny_graph()
    proto.ir_version = 999
    error = refused(write(tmp_path / "m.onnx", proto))
    assert "uses IR version 999" in error.message
    assert "pip install -U onnx" in (error.hint or "")


def test_invalid_graphs_in_one_line(tmp_path: Path) -> None:
    twice = tiny_graph()
    twice.graph.node[1].output[0] = "c"
    assert "single static assignment" in refused(write(tmp_path / "m.onnx", twice)).message
    lost = tiny_graph()
    lost.graph.node[0].input[0] = "nowhere"
    assert "is not a valid ONNX graph: " in refused(write(tmp_path / "m.onnx", lost)).message
    output = tiny_graph()
    output.graph.output[0].name = "z"
    error = refused(write(tmp_path / "m.onnx", output))
    assert error.message == (
        f"`{tmp_path / 'm.onnx'}` is not a valid ONNX graph: Graph output 'z' is not an output of any node in graph"
    )
    assert error.hint == "the graph is wrong inside: export the model again, or report it to its exporter"
    none = tiny_graph()
    del none.graph.output[:]
    assert refused(write(tmp_path / "m.onnx", none)).message.endswith("it has no outputs")


def test_only_tensors_go_in_and_out(tmp_path: Path) -> None:
    proto = one_node(helper.make_node("SequenceConstruct", ["x"], ["y"]))
    info = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [1, 4])
    proto.graph.output[0].CopyFrom(info)
    error = refused(write(tmp_path / "m.onnx", proto))
    assert "is a sequence; only tensors" in error.message
    assert "zipmap" in (error.hint or "")


def test_inputs_need_a_rank_and_outputs_get_theirs_inferred(tmp_path: Path) -> None:
    proto = one_node(helper.make_node("Relu", ["x"], ["y"]))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = graph.load_model(write(tmp_path / "m.onnx", proto))
    assert model.signature.outputs[0].shape == (1, 4)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    assert "has no rank" in refused(write(tmp_path / "m.onnx", proto)).message


def test_an_output_of_unknown_rank(tmp_path: Path) -> None:
    proto = one_node(helper.make_node("Reshape", ["x", "s"], ["y"]))
    proto.graph.input.append(helper.make_tensor_value_info("s", TensorProto.INT64, ["n"]))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    error = refused(write(tmp_path / "m.onnx", proto))
    assert error.message == f"the output `y` of `{tmp_path / 'm.onnx'}` has no rank"


def test_a_missing_output_shape_does_not_hide_a_wrong_graph(tmp_path: Path) -> None:
    proto = tiny_graph()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert graph.load_model(write(tmp_path / "m.onnx", proto)).signature.outputs[0].shape == ("batch", 2)
    proto.graph.node[0].output[0] = "r"
    proto.graph.node[1].input[0] = "r"
    assert "is not a valid ONNX graph" in refused(write(tmp_path / "m.onnx", proto)).message


def test_initializers_listed_as_inputs_are_not_inputs(tmp_path: Path) -> None:
    proto = tiny_graph()
    proto.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [2]))
    model = graph.load_model(write(tmp_path / "m.onnx", proto))
    assert [spec.name for spec in model.signature.inputs] == ["x"]


@pytest.mark.parametrize("size", [-1, 0, None])
def test_sizes_that_are_no_sizes_are_free(tmp_path: Path, size: int | None) -> None:
    model = graph.load_model(write(tmp_path / "m.onnx", tiny_graph(size)))  # type: ignore[arg-type]
    assert model.signature.inputs[0].shape == ("x_0", 3, 8, 8)
    frozen = graph.freeze_shapes(model, {"x": (5, 3, 8, 8)}, tmp_path / "out")
    assert frozen.signature.inputs[0].shape == (5, 3, 8, 8)


def test_freezing(tmp_path: Path) -> None:
    model = graph.load_model(tiny_onnx(tmp_path / "m.onnx"))
    frozen = graph.freeze_shapes(model, {"x": (2, 3, 8, 8)}, tmp_path / "out")
    assert frozen.signature.free == []
    assert frozen.signature.outputs[0].shape == (2, 2)
    assert frozen.path == (tmp_path / "out" / "m.onnx").absolute()
    assert frozen.sha256 not in (model.sha256, "")
    from onnx.reference import ReferenceEvaluator

    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    before, after = (ReferenceEvaluator(str(m.path)).run(None, {"x": x})[0] for m in (model, frozen))
    np.testing.assert_array_equal(before, after)
    assert graph.freeze_shapes(frozen, {"x": (2, 3, 8, 8)}, tmp_path / "out") is frozen
    assert graph.freeze_shapes(model, {"x": ("batch", 3, 8, 8)}, tmp_path / "out") is model


def test_freezing_refuses_what_does_not_fit(tmp_path: Path) -> None:
    model = graph.load_model(tiny_onnx(tmp_path / "m.onnx"))
    with pytest.raises(UnknownName) as unknown:
        graph.freeze_shapes(model, {"xx": (1, 3, 8, 8)}, tmp_path / "out")
    assert unknown.value.hint == "did you mean `x`?"
    for shape in [(1, 3, 8), (1, 4, 8, 8), (0, 3, 8, 8)]:
        with pytest.raises(UsageError, match="does not fit the input `x`") as caught:
            graph.freeze_shapes(model, {"x": shape}, tmp_path / "out")
        assert caught.value.hint == "its shape is batchx3x8x8"
    with pytest.raises(UsageError, match="is the model itself"):
        graph.freeze_shapes(model, {"x": (1, 3, 8, 8)}, tmp_path)


def test_one_dimension_has_one_size() -> None:
    signature = Signature((TensorSpec("a", "float32", ("n", 2)), TensorSpec("b", "float32", ("n",))), ())
    assert graph.sizes(signature, {"a": (3, 2), "b": (3,)}) == {"n": 3}
    with pytest.raises(UsageError, match="the dimension `n` cannot be both 3 and 4"):
        graph.sizes(signature, {"a": (3, 2), "b": (4,)})


def test_freezing_takes_external_data_along(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(tiny_graph(), str(path), save_as_external_data=True, location="m.data", size_threshold=0)
    frozen = graph.freeze_shapes(graph.load_model(path), {"x": (1, 3, 8, 8)}, tmp_path / "out")
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(frozen.path)).graph.initializer}
    np.testing.assert_array_equal(weights["w"], numpy_helper.to_array(tiny_graph().graph.initializer[0]))


def test_the_fields_of_a_file_are_read_without_onnx(tmp_path: Path) -> None:
    """All kinds of field: numbers, messages and texts, and of fixed sizes; cut short, what is whole is told."""
    model = onnx.ModelProto.FromString(tiny_onnx(tmp_path / "m.onnx").read_bytes())
    plain = {field.number for field, _ in model.ListFields()}
    assert protos.fields(tmp_path / "m.onnx") == plain
    assert protos.FUNCTIONS not in plain
    model.functions.add(name="f", domain="d")
    more = b"\x9d\x06abcd" + b"\x99\x06abcdefgh"  # fields 99 of four bytes and of eight, which nobody knows
    (tmp_path / "f.onnx").write_bytes(model.SerializeToString() + more)
    assert protos.fields(tmp_path / "f.onnx") == plain | {protos.FUNCTIONS, 99}
    for bad in (b"\x0f", b"\x0a" + b"\xff" * 9 + b"\x7f", b"\x08" + b"\x80" * 99, b"\x0a"):
        (tmp_path / "none.onnx").write_bytes(bad)
        assert protos.fields(tmp_path / "none.onnx") == set()
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert protos.fields(tmp_path / "empty.onnx") == set()


def test_the_nodes_of_a_file_are_read_without_the_rest(tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "m.onnx")
    written = onnx.load(str(path))
    assert protos.nodes(path) == b"".join(node.SerializeToString() for node in written.graph.node) != b""
    whole = path.read_bytes()
    for size in range(len(whole)):  # cut short anywhere, it gives what is whole and ends
        path.write_bytes(whole[:size])
        assert protos.nodes(path) in b"".join(node.SerializeToString() for node in written.graph.node)


def test_string_tensors_have_a_type(tmp_path: Path) -> None:
    proto = one_node(helper.make_node("Identity", ["x"], ["y"]))
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.STRING
    assert graph.load_model(write(tmp_path / "m.onnx", proto)).signature.inputs[0].dtype == "string"
