"""What backends say when a model is none of theirs, and nothing before `compile` could have known."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from portolan.backends import _convert, _exported, iree, litert, ncnn, onnxruntime_web, openvino
from portolan.backends._artefact import Artefact
from portolan.core import registry
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.signature import Signature, TensorSpec
from portolan.errors import ModelError, NoBackend, PortolanError, UnsupportedOperator, UsageError
from portolan.testing.models import perceptron, this_machine, unsupported


def written(folder: Path, text: str) -> Model:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]>\n{text}'), folder / "m.onnx")
    return load_model(folder / "m.onnx")


@pytest.mark.parametrize("name", ["litert", "executorch"])
def test_a_model_of_strings_cannot_be_traced(name: str) -> None:
    spec = TensorSpec("x", "string", (1, 2))
    with pytest.raises(ModelError, match=f"`{name}` traces `m` on inputs, and none can be made up") as caught:
        _exported.exported(Model("m", Path("m.onnx"), "0", Signature((spec,), (spec,))), name)
    assert caught.value.hint


@pytest.mark.torch
def test_an_operator_that_the_importer_lacks_names_another_backend(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match=r"com\.example\.Mystery") as caught:
        _exported.exported(unsupported(tmp_path), "executorch")
    assert caught.value.hint == "`--backend onnxruntime` has the most operators"


def test_a_model_that_takes_no_made_up_inputs_cannot_be_checked(tmp_path: Path) -> None:
    text = "g (float[4] x) => (float[1] y) <int64[1] i = {9}> { y = Gather (x, i) }"
    with pytest.raises(ModelError, match="`m` does not run on made-up inputs, so no conversion can be checked"):
        _convert.golden(written(tmp_path, text))


def test_numbers_that_do_not_fit_the_type_of_the_file() -> None:
    few = np.array([1, 2**31 - 1])
    assert litert._narrowed(few, np.int32, "ids").tolist() == few.tolist()
    with pytest.raises(UsageError, match="`ids` holds numbers that do not fit int32") as caught:
        litert._narrowed(np.array([2**31]), np.int32, "ids")
    assert caught.value.hint == "`--backend onnxruntime` computes in int64"


class Port:
    """A port of OpenVINO's that has lost its name."""

    names = ()
    partial_shape = (1, 2)

    def get_node(self) -> Any:
        return types.SimpleNamespace(get_friendly_name=lambda: "Parameter_7")


def test_ports_of_one_rank_that_lost_their_names(tmp_path: Path) -> None:
    """One can be told by what is left over; two cannot."""

    def artefact(*names: str) -> Artefact:
        signature = Signature(tuple(TensorSpec(name, "float32", (1, 2)) for name in names), ())
        return types.SimpleNamespace(signature=signature, path=tmp_path / "m.onnx")  # type: ignore[return-value]

    assert openvino._ports([Port()], artefact("x")) == [(0, "x")]
    with pytest.raises(ModelError, match=r"`openvino` renamed the inputs of `m.onnx`, and which is which"):
        openvino._ports([Port(), Port()], artefact("x", "z"))


def test_an_importer_that_ends_with_a_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = types.SimpleNamespace(parse_arguments=lambda words: words, main=lambda words: 3)
    monkeypatch.setattr(iree, "runtime", lambda name: tool)
    with pytest.raises(PortolanError, match="the importer ended with 3"):
        iree._imported(perceptron(tmp_path).model, tmp_path)


def test_without_its_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ncnn, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="the converter `pnnx` is not installed") as caught:
        ncnn._pnnx()
    assert caught.value.hint == "portolan env repair ncnn"


@pytest.mark.parametrize("name", ["ncnn", "tinygrad"])
def test_an_operator_that_a_converter_would_drop_is_refused_when_it_is_compiled_too(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match=rf"`{name}` has no operator `com\.example\.Mystery`"):
        registry.backend(name).compile(unsupported(tmp_path), this_machine())


def test_onnx_runtime_web_where_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_web, "web", lambda: None)
    with pytest.raises(NoBackend, match="ONNX Runtime Web is not here") as caught:
        onnxruntime_web.Session(Artefact.of(perceptron(tmp_path).model))
    assert "portolan target add" in str(caught.value.hint)
