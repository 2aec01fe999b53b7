"""What the backends share: saved forms, the meaning of runtimes' errors, silence, and their refusals."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from portolan.backends._artefact import Artefact, demand, explained, external_files
from portolan.backends.onnxruntime import onnxruntime
from portolan.backends.openvino import openvino
from portolan.core.schema import cores
from portolan.core.silence import environment, quiet_environment, runtime, silence
from portolan.errors import ModelError, PortolanError, UnsupportedOperator
from portolan.targets.local import Local
from portolan.testing.models import external, perceptron, this_machine


def test_the_graph_is_linked_and_its_data_copied(tmp_path: Path) -> None:
    model = external(tmp_path / "model").model
    (tmp_path / "saved").mkdir()
    Artefact.of(model).save(tmp_path / "saved")
    saved = Artefact.open(tmp_path / "saved")
    assert saved.path.samefile(model.path)
    assert saved.signature == model.signature
    data = "weights/all.bin"
    assert (tmp_path / "saved" / data).read_bytes() == (model.path.parent / data).read_bytes()
    assert (model.path.parent / data).stat().st_nlink == 1


def test_without_links_the_graph_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr("portolan.backends._artefact.os.link", refuse)
    model = perceptron(tmp_path / "model").model
    (tmp_path / "saved").mkdir()
    Artefact.of(model).save(tmp_path / "saved")
    saved = Artefact.open(tmp_path / "saved").path
    assert not saved.samefile(model.path)
    assert saved.read_bytes() == model.path.read_bytes()


def test_external_data_outside_the_folder_is_not_saved(tmp_path: Path) -> None:
    model = external(tmp_path / "model").model
    graph = onnx.load(str(model.path), load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    (tmp_path / "secret").write_bytes(b"secret")
    model.path.write_bytes(graph.SerializeToString())
    with pytest.raises(ModelError, match=r"`\.\./secret` lies outside"):
        external_files(model.path)


def test_external_data_is_found_in_subgraphs(tmp_path: Path) -> None:
    model = external(tmp_path).model
    inner = onnx.load(str(model.path), load_external_data=False).graph
    branch = onnx.helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner)
    condition = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
    outer = onnx.helper.make_model(onnx.helper.make_graph([branch], "outer", [condition], []))
    path = model.path.with_name("outer.onnx")
    path.write_bytes(outer.SerializeToString())
    assert external_files(path) == ["weights/all.bin"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"inputs": [], "outputs": [3], "features": []}'])
def test_a_damaged_signature_is_a_model_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "signature.json").write_text(text)
    with pytest.raises(ModelError, match="holds no compiled model"):
        Artefact.open(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ModelError, match=r"`.*gone\.onnx` does not exist"),
        explained("onnxruntime", tmp_path / "gone.onnx"),
    ):
        pytest.fail("the body must not run")


def test_runtimes_errors_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    with (
        pytest.raises(UnsupportedOperator, match="`openvino` has no operator `Foo`") as lacking,
        explained("openvino", path, "no rule for (\\w+)"),
    ):
        raise RuntimeError("Exception from a.cpp:1:\nno rule for Foo")
    assert lacking.value.hint == "`--backend onnxruntime` has the most operators"
    noise = "Exception from a.cpp:1:\nCheck 'false' failed at b.cpp\n  the shape is odd \n" + "x" * 400
    with pytest.raises(ModelError) as unreadable, explained("openvino", path, doing="compile"):
        raise RuntimeError(noise)
    assert unreadable.value.message.startswith("`openvino` cannot compile `model.onnx`: the shape is odd xxx")
    assert len(unreadable.value.message) < 400
    with pytest.raises(ModelError, match="KeyError"), explained("openvino", path):
        raise KeyError
    for passed in MemoryError(), PortolanError("as it was"):
        with pytest.raises(type(passed)) as caught, explained("openvino", path):
            raise passed
        assert caught.value is passed


def test_a_runtime_that_does_something_else_fails_loudly() -> None:
    demand("openvino", {"precision": "f32"}, {"precision": "f32", "threads": 2})
    with pytest.raises(PortolanError, match="asked for precision `f32` and runs with `bf16`") as caught:
        demand("openvino", {"precision": "f32"}, {"precision": "bf16"})
    assert "portolan doctor" in (caught.value.hint or "")


def test_openvino_does_not_take_fewer_threads_in_silence(tmp_path: Path) -> None:
    model = perceptron(tmp_path).model
    with pytest.raises(PortolanError, match="was asked for threads `4096` and runs with"):
        openvino.compile(model, this_machine(), threads=4096)


def test_a_closed_openvino_model_says_so(tmp_path: Path) -> None:
    case = perceptron(tmp_path)
    executable = openvino.compile(case.model, this_machine())
    executable.close()
    with pytest.raises(RuntimeError, match="closed"):
        executable.run(case.inputs)


def test_bf16_is_searched_only_where_the_processor_has_it() -> None:
    precision = openvino.schema.parameters["precision"]
    target = this_machine()
    assert precision.values(replace(target, features=("avx2",))) == ("f32",)
    for feature in ("avx512_bf16", "amx_bf16", "bf16"):
        assert precision.values(replace(target, features=(feature,))) == ("f32", "bf16")
    assert openvino.exact({"precision": "f32"})
    assert not openvino.exact({"precision": "bf16"})


def test_int8_is_exploited_only_with_dot_products(tmp_path: Path) -> None:
    model, target = perceptron(tmp_path).model, this_machine()
    plain, vnni = replace(target, features=("avx2",)), replace(target, features=("avx_vnni",))
    dynamic, static = (replace(model, features=(f"int8:{kind}",)) for kind in ("dynamic", "static"))
    for quantized in dynamic, static:
        assert onnxruntime.refuse(quantized, vnni) is None
        assert "only with one of avx512_vnni" in (onnxruntime.refuse(quantized, plain) or "")
    assert openvino.refuse(static, vnni) is None
    assert openvino.refuse(dynamic, vnni) == "int8:dynamic is not exploited by `openvino`"


def test_openvino_refuses_trees(tmp_path: Path) -> None:
    model = replace(perceptron(tmp_path).model, operators={"Scaler": 1, "TreeEnsembleClassifier": 1})
    assert openvino.refuse(model, this_machine()) == "`openvino` has no operator `Scaler`"


def test_the_first_thread_count_is_all_cores() -> None:
    target = this_machine()
    counts = {n: cores(replace(target, cores=n)) for n in (1, 2, 3, 8)}
    assert counts == {1: (0,), 2: (0, 1), 3: (0, 1), 8: (0, 4, 1)}


def test_a_saved_model_takes_the_cores_of_the_place_it_is_loaded_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, saved = this_machine(), tmp_path / "saved"
    saved.mkdir()
    onnxruntime.compile(perceptron(tmp_path).model, target).save(saved)
    monkeypatch.setattr(Local, "processor", lambda self: replace(target, cores=3))
    assert onnxruntime.load(saved).facts()["threads"] == 3
    assert onnxruntime.load(saved, threads=1).facts()["threads"] == 1


def test_silence_comes_before_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in quiet_environment():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setitem(sys.modules, "openvino_telemetry", sys)
    runtime("onnxruntime")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    assert "HF_HUB_OFFLINE" not in os.environ
    assert sys.modules["openvino_telemetry"] is None
    silence()
    assert quiet_environment().items() <= os.environ.items()
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_an_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "before")
    monkeypatch.delenv("NEW", raising=False)
    with environment(KEPT="during", NEW="during"):
        assert (os.environ["KEPT"], os.environ["NEW"]) == ("during", "during")
    assert os.environ["KEPT"] == "before"
    assert "NEW" not in os.environ
