"""Models whose external data points where it must not, or lies about its size."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from portolan.core import graph
from portolan.errors import ModelError
from portolan.testing.frontend import tiny_graph


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A model in a folder of its own, its weights in `m.data` beside it, and a secret outside."""
    folder = tmp_path / "models"
    folder.mkdir()
    onnx.save(tiny_graph(), str(folder / "m.onnx"), save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "secret").write_bytes(b"s" * 10_000)
    return folder / "m.onnx"


def edit(path: Path, key: str, value: str, tensor: int = 0) -> None:
    proto = onnx.load(str(path), load_external_data=False)
    entries = proto.graph.initializer[tensor].external_data
    entry = next((e for e in entries if e.key == key), None) or entries.add(key=key)
    entry.value = value
    path.write_bytes(proto.SerializeToString())


def refused(path: Path) -> ModelError:
    messages = set()
    for read in (graph.load_model, graph.fingerprint):
        with pytest.raises(ModelError) as caught:
            read(path)
        messages.add(caught.value.message)
    assert len(messages) == 1
    assert caught.value.exit_code == 5
    assert caught.value.hint
    return caught.value


def test_the_good_one_is_read_and_its_hash_covers_the_weights(path: Path) -> None:
    model = graph.load_model(path)
    assert graph.fingerprint(path) == model.sha256
    data = path.parent / "m.data"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    assert graph.load_model(path).sha256 == graph.fingerprint(path) != model.sha256


def test_weights_are_not_loaded_to_look_at_a_model(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("external data was loaded")

    monkeypatch.setattr(onnx.external_data_helper, "load_external_data_for_tensor", refuse)
    monkeypatch.setattr(onnx, "load_external_data_for_model", refuse)
    assert graph.analyse(graph.load_model(path)).parameters == 118


@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "../models/../secret",
        "sub/../../secret",
        "..\\secret",
        "C:\\secret",
        "\\\\host\\share",
        "a\0b",
        "",
        ".",
    ],
)
def test_out_of_the_folder(path: Path, location: str) -> None:
    edit(path, "location", location)
    error = refused(path)
    assert "lies outside the model's folder" in error.message or location == "."
    assert error.where == "tensor `w` of m.onnx"


def test_absolute(path: Path) -> None:
    edit(path, "location", str(path.parent.parent / "secret"))
    assert "lies outside the model's folder" in refused(path).message
    edit(path, "location", str(path.parent / "m.data"))  # even into the folder: it would not survive a copy
    assert "lies outside the model's folder" in refused(path).message


def test_a_symbolic_link_out_of_the_folder(path: Path) -> None:
    (path.parent / "link.data").symlink_to(path.parent.parent / "secret")
    edit(path, "location", "link.data")
    assert refused(path).message == "external data at `link.data` is a symbolic link out of the model's folder"


def test_a_folder_that_is_a_symbolic_link_out(path: Path) -> None:
    (path.parent / "sub").symlink_to(path.parent.parent)
    edit(path, "location", "sub/secret")
    assert "is a symbolic link out of the model's folder" in refused(path).message


def test_a_model_reached_through_a_link_to_its_folder_is_fine(path: Path) -> None:
    alias = path.parent.parent / "alias"
    alias.symlink_to(path.parent)
    assert graph.load_model(alias / "m.onnx").sha256 == graph.load_model(path).sha256


def test_a_special_file(path: Path) -> None:
    (path.parent / "dev").symlink_to("/dev/zero")
    edit(path, "location", "dev")
    assert "symbolic link" in refused(path).message
    (path.parent / "folder.data").mkdir()
    edit(path, "location", "folder.data")
    assert refused(path).message == "external data `folder.data` is missing"


def test_missing(path: Path) -> None:
    (path.parent / "m.data").unlink()
    error = refused(path)
    assert error.message == "external data `m.data` is missing"
    assert error.hint == "copy `m.data` into the folder of `m.onnx`: the model's weights are in it"


def test_truncated(path: Path) -> None:
    data = path.parent / "m.data"
    data.write_bytes(data.read_bytes()[:-4])
    error = refused(path)
    assert "the external data file `m.data` is" in error.message
    assert error.hint == "the file is truncated or not the model's: copy it again, whole"


@pytest.mark.parametrize("value", ["-1", "1e9", "0x10", "", " 4", "٣", "9" * 40])
@pytest.mark.parametrize("key", ["offset", "length"])
def test_numbers_that_are_none(path: Path, key: str, value: str) -> None:
    edit(path, key, value)
    assert f"the {key} `{value}` of external data is not a byte count" == refused(path).message


def test_an_offset_behind_the_end(path: Path) -> None:
    edit(path, "offset", str(2**63))
    assert "ends at byte" in refused(path).message


def test_a_length_that_is_not_the_tensor_s(path: Path) -> None:
    edit(path, "length", "4")
    assert refused(path).message == ("the external data of `w` is 4 bytes long, its type and shape need 432")


def test_a_tensor_larger_than_its_file(path: Path) -> None:
    proto = onnx.load(str(path), load_external_data=False)
    proto.graph.initializer[0].dims[0] = 2**40
    path.write_bytes(proto.SerializeToString())
    edit(path, "length", str(2**40 * 27 * 4))
    assert "ends at byte" in refused(path).message


def test_in_a_node_of_a_subgraph(path: Path) -> None:
    from onnx import TensorProto, helper

    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])
    branch = helper.make_graph([helper.make_node("Constant", [], ["o"], value=tensor)], "b", [], [out])
    proto = tiny_graph()
    proto.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))
    path.write_bytes(proto.SerializeToString())
    assert "lies outside the model's folder" in refused(path).message
