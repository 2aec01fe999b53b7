from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from portolan.backends._artefact import Artefact
from portolan.backends.onnxruntime import onnxruntime
from portolan.core import storage
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.errors import ModelError
from portolan.targets.local import local


@settings(deadline=None, max_examples=25)
@given(contents=st.dictionaries(st.sampled_from(["a.onnx", "a.data", "b"]), st.binary(max_size=5000), min_size=1))
def test_files_come_back_exactly(contents: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("store")
    for part in ("in", "packed", "out"):
        (root / part).mkdir()
    for name, data in contents.items():
        (root / "in" / name).write_bytes(data)
    storage.pack((root / "in").iterdir(), root / "packed")
    (root / "packed" / "other").write_bytes(b"12345")
    storage.unpack(root / "packed", root / "out")
    assert {p.name: p.read_bytes() for p in (root / "out").iterdir()} == contents
    assert storage.resident(root / "packed") == sum(map(len, contents.values())) + 5
    assert storage.packed(root / "packed")
    assert not storage.packed(root / "in")


def packed(tmp_path: Path, data: bytes = b"0123456789" * 100) -> Path:
    (tmp_path / "model.onnx").write_bytes(data)
    folder = tmp_path / "packed"
    folder.mkdir()
    storage.pack([tmp_path / "model.onnx"], folder)
    return folder


def refused(folder: Path, tmp_path: Path, why: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelError, match=why):
        storage.unpack(folder, out)
    assert {p.resolve().parent for p in out.rglob("*")} <= {out.resolve()}


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    folder = packed(tmp_path)
    file = folder / "model.onnx.xz"
    file.write_bytes(file.read_bytes()[:-20])
    refused(folder, tmp_path, "cannot be read")


def test_a_file_that_unpacks_to_more_than_it_says_is_refused(tmp_path: Path) -> None:
    folder = packed(tmp_path)
    (folder / "storage.json").write_text(json.dumps({"model.onnx": 10}))
    refused(folder, tmp_path, "another size")
    assert (tmp_path / "out" / "model.onnx").stat().st_size <= 10


def test_a_file_that_unpacks_to_less_than_it_says_is_refused(tmp_path: Path) -> None:
    folder = packed(tmp_path)
    (folder / "storage.json").write_text(json.dumps({"model.onnx": 2000}))
    refused(folder, tmp_path, "another size")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    folder = packed(tmp_path)
    (folder / "model.onnx.xz").write_bytes(lzma.compress(bytes(1 << 24)))
    (folder / "storage.json").write_text(json.dumps({"model.onnx": 1 << 24}))
    refused(folder, tmp_path, "cannot be as large")
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["../model.onnx", "/model.onnx", "a/b", "", "..", "."])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = packed(tmp_path)
    (folder / "storage.json").write_text(json.dumps({name: 1000}))
    refused(folder, tmp_path, "not a table")


@pytest.mark.parametrize("table", ["", "[]", '{"model.onnx": -1}', '{"model.onnx": "1"}', '{"model.onnx": true}'])
def test_a_table_that_is_none_is_refused(tmp_path: Path, table: str) -> None:
    folder = packed(tmp_path)
    (folder / "storage.json").write_text(table)
    refused(folder, tmp_path, "cannot be read")


def sparse_model(tmp_path: Path, zeros: float = 0.9) -> Model:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((256, 256)).astype(np.float32)
    weight[rng.random(weight.shape) < zeros] = 0
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 256])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 256])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [numpy_helper.from_array(weight, "w")]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(proto, tmp_path / "sparse.onnx")
    model = load_model(tmp_path / "sparse.onnx")
    return Model(**{**vars(model), "features": ("sparsity:unstructured",)})


def test_a_model_with_zeros_is_stored_small_and_runs_the_same(tmp_path: Path) -> None:
    model, target = sparse_model(tmp_path), local.detect()
    inputs = {"x": np.ones((2, 256), np.float32)}
    executable = onnxruntime.compile(model, target)
    folder = tmp_path / "saved"
    folder.mkdir()
    executable.save(folder)
    plain = model.path.stat().st_size
    assert sum(p.stat().st_size for p in folder.iterdir()) < plain / 4
    assert storage.resident(folder) >= plain
    again = onnxruntime.load(folder)
    np.testing.assert_array_equal(again.run(inputs)["y"], executable.run(inputs)["y"])
    second = tmp_path / "second"
    second.mkdir()
    again.save(second)
    hashed = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert {p.name: p.read_bytes() for p in second.iterdir()} == hashed


def test_external_data_is_packed_too(tmp_path: Path) -> None:
    model = sparse_model(tmp_path)
    inputs = {"x": np.ones((1, 256), np.float32)}
    expected = onnxruntime.compile(model, local.detect()).run(inputs)["y"]
    onnx.save(onnx.load(model.path), model.path, save_as_external_data=True, location="weights", size_threshold=0)
    folder = tmp_path / "saved"
    folder.mkdir()
    Artefact.of(model).save(folder)
    assert {p.name for p in folder.iterdir()} == {"model.onnx.xz", "weights.xz", "storage.json", "signature.json"}
    np.testing.assert_array_equal(onnxruntime.load(folder).run(inputs)["y"], expected)
