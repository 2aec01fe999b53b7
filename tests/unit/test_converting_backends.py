"""What converting backends refuse before anything is compiled, and that a conversion which lost something is caught."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from portolan.backends import _convert, tinygrad
from portolan.backends.reference import reference
from portolan.core import registry
from portolan.core.backend import Executable
from portolan.core.model import Model
from portolan.core.signature import Signature, TensorSpec
from portolan.errors import ModelError, VerificationFailed
from portolan.testing.models import external, perceptron, this_machine, tokens

FREE = ("litert", "executorch", "ncnn", "tinygrad")
ALL = (*FREE, "iree", "tvm")
KNOWN = [name for name in ALL if name in registry.BACKENDS.names()]


def model(*shape: int | str, dtype: str = "float32", operators: Mapping[str, int] | None = None) -> Model:
    spec = TensorSpec("x", dtype, shape)
    return Model("m", Path("m.onnx"), "0", Signature((spec,), (spec,)), opset=18, operators=dict(operators or {}))


@pytest.mark.parametrize("name", [name for name in KNOWN if name in FREE])
def test_free_sizes_are_refused_with_the_flag_that_fixes_them(name: str) -> None:
    reason = registry.backend(name).refuse(model(1, "tokens"), this_machine())
    assert reason == f"`{name}` compiles for fixed sizes, and `tokens` of `x:1xtokens` is free: `--shapes`"


@pytest.mark.parametrize("name", KNOWN)
def test_strings_are_refused(name: str) -> None:
    reason = registry.backend(name).refuse(model(1, 3, dtype="string"), this_machine())
    assert reason == f"`{name}` has no tensors of string, which `x` is"


@pytest.mark.parametrize("name", KNOWN)
def test_what_passes_did_and_nobody_exploits_is_refused(name: str) -> None:
    changed = dataclasses.replace(model(1, 3), features=("int8:static",))
    assert registry.backend(name).refuse(changed, this_machine()) == f"int8:static is not exploited by `{name}`"


@pytest.mark.parametrize(("name", "operator"), [("tvm", "LSTM"), ("tinygrad", "LSTM"), ("ncnn", "TopK")])
def test_operators_that_a_converter_lacks_or_drops_are_refused(name: str, operator: str) -> None:
    reason = registry.backend(name).refuse(model(1, 3, operators={"Relu": 1, operator: 1}), this_machine())
    assert reason == f"`{name}` has no operator `{operator}`"


def test_ncnn_has_no_batch_axis() -> None:
    assert "does not begin with 1" in (registry.backend("ncnn").refuse(model(2, 3), this_machine()) or "")


@pytest.mark.parametrize("name", KNOWN)
def test_without_its_environment_the_command_that_makes_it_is_named(name: str) -> None:
    support = registry.backend(name).probe(this_machine())
    if support.ready:
        pytest.skip(f"{name} is installed beside the tests")
    assert support.fix == f"portolan env add {name}"


class Lossy(Executable):
    """A conversion that dropped something."""

    def __init__(self, inner: Executable, change: Any) -> None:
        self.inner, self.change = inner, change

    def run(self, inputs: Any) -> dict[str, np.ndarray]:
        return {name: self.change(value.copy()) for name, value in self.inner.run(inputs).items()}

    def save(self, folder: Path) -> None:
        raise NotImplementedError


def spoiled(value: np.ndarray) -> np.ndarray:
    value[0, 0] = np.nan
    return value


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda value: value * 1.01, r"is off by 0\.\d+ at a spread of"),
        (lambda value: value[:1], r"has the shape \(1, 10\) in place of \(8, 10\)"),
        (spoiled, "has NaN or infinity in other places"),
    ],
)
def test_a_conversion_that_lost_something_is_caught(tmp_path: Path, change: Any, fault: str) -> None:
    case = perceptron(tmp_path)
    inner = reference.compile(case.model, this_machine())
    _convert.verify("mine", case.model, inner, _convert.EXACT)
    with pytest.raises(VerificationFailed, match=f"`mine` changed the model `perceptron`: output `y` {fault}"):
        _convert.verify("mine", case.model, Lossy(inner, change), _convert.EXACT)


def test_made_up_ids_fit_the_models_table(tmp_path: Path) -> None:
    case = tokens(tmp_path)
    found = _convert.golden(case.model)
    assert found is not None
    assert 0 < found[0]["ids"].max() < 50
    case.check(reference.compile(case.model, this_machine()).run(case.inputs), 1e-5)


def test_a_graph_of_more_than_two_gigabytes_is_refused_at_once(tmp_path: Path) -> None:
    case = external(tmp_path)
    data = next(tmp_path.rglob("all.bin"))
    with data.open("r+b") as file:
        file.truncate(2**31 + 2**20)  # sparse: no disk is used
    with pytest.raises(ModelError, match=r"has 2\.0 GiB, and converters take graphs of up to 2 GiB") as caught:
        _convert.graph(case.model)
    assert "onnxruntime" in (caught.value.hint or "")


def test_functions_are_inlined(tmp_path: Path) -> None:
    case = perceptron(tmp_path)
    proto = onnx.load(case.model.path)
    twice = onnx.helper.make_function(
        "mine", "Twice", ["a"], ["b"], [onnx.helper.make_node("Add", ["a", "a"], ["b"])],
        [onnx.helper.make_opsetid("", 18)],
    )  # fmt: skip
    proto.functions.append(twice)
    proto.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    proto.graph.node.append(onnx.helper.make_node("Twice", ["y"], ["z"], domain="mine"))
    onnx.save(proto, case.model.path)
    assert {node.op_type for node in _convert.graph(case.model).graph.node} == {"Gemm", "Relu", "Add"}


@pytest.mark.parametrize(
    ("said", "renderer"), [("14.0.6", "CLANG"), ("16.0.6", "CLANG"), ("19", "LLVM"), ("?", "CLANG")]
)
def test_tinygrad_gives_an_old_clang_c(tmp_path: Path, said: str, renderer: str) -> None:
    """Debian 12's `clang` is 14, which reads none of the pointers in what tinygrad writes for LLVM."""
    clang = tmp_path / "clang"
    clang.write_text(f"#!/bin/sh\necho '{said}'\n")
    clang.chmod(0o755)
    assert tinygrad._renderer(str(clang)) == renderer
    assert tinygrad._renderer(str(tmp_path / "missing")) == "CLANG"
