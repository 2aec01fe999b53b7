"""Kernels in OpenVINO: through the compiled door and in Python where there is no compiler, with the same answers."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from portolan.backends import _openvino_door
from portolan.backends._openvino_door import ABOUT, LIBRARY
from portolan.core import registry
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.errors import VerificationFailed
from portolan.kernels.compiler import find
from portolan.kernels.decorated import Kernel
from portolan.kernels.embed.carry import carry
from portolan.kernels.embed.function import DOMAIN, function, model
from portolan.kernels.embed.ort import library
from portolan.kernels.verify import random_arrays
from portolan.targets.local import local
from support import operators

pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.skipif(not any(map(shutil.which, ("gcc", "clang", "cc"))), reason="needs a C compiler"),
    pytest.mark.skipif(not registry.backend("openvino").probe(local.detect()).ready, reason="needs `openvino`"),
]
needs_plus = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
WAYS = [pytest.param("compiled", marks=needs_plus), "python"]


@pytest.fixture
def way(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        without_compiler(monkeypatch, tmp_path)
    return str(request.param)


def without_compiler(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("PORTOLAN_CXX", "no-such-compiler")
    patch.setenv("PORTOLAN_CACHE", str(folder / "another-cache"))


def carrying(path: Path, folder: Path, *kernels: Kernel) -> Model:
    """The model in a file, with kernels compiled for it."""
    built = [
        (k.program, library(k.program, k.schedules(dict.fromkeys(k.program.symbols, 40)), find())) for k in kernels
    ]
    return replace(load_model(path), kernels=carry(folder, built).path)


def one_call(kernel: Kernel, folder: Path) -> Model:
    path = folder / f"{kernel.name}.onnx"
    path.write_bytes(model(kernel.program).SerializeToString())
    return carrying(path, folder / "kernels", kernel)


def compiled(model: Model, **options: Any) -> Any:
    return registry.backend("openvino").compile(model, local.detect(), **options)


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("name", ["tropical", "selective_scan", "knn", "statistics", "scaled"])
def test_operators_agree_with_the_oracle_at_any_size(name: str, way: str, tmp_path: Path) -> None:
    kernel: Kernel = operators.EVERY[name]
    executable = compiled(one_call(kernel, tmp_path), threads=2)
    assert executable.facts()["kernels"].partition(":")[0] == way
    rng = np.random.default_rng(0)
    for size in (9, 40, 67):
        arrays = random_arrays(kernel.program, dict.fromkeys(kernel.program.symbols, size), rng)
        given = {t.name: a for t, a in zip(kernel.program.inputs, arrays, strict=True)}
        for found, want in zip(executable.run(given).values(), kernel.oracle(*arrays), strict=True):
            np.testing.assert_allclose(found, want, rtol=2e-4, atol=2e-5 * float(np.abs(want).max() or 1))


def two_calls(folder: Path) -> Model:
    """A model that calls two kernels on the same arguments."""
    both = [operators.tropical, operators.matmul]
    nodes = [helper.make_node(k.name, ["a", "b"], [k.name], domain=DOMAIN) for k in both]
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [8, 8]) for n in ("a", "b", *(k.name for k in both))]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    graph = helper.make_graph(nodes, "two", sides[:2], sides[2:])
    functions = [function(k.program) for k in both]
    made = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)
    onnx.save(made, str(folder / "two.onnx"))
    return carrying(folder / "two.onnx", folder / "kernels", *both)


def agrees(executable: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((8, 8), np.float32), rng.standard_normal((8, 8), np.float32)
    found = executable.run({"a": a, "b": b})
    for kernel in (operators.tropical, operators.matmul):
        np.testing.assert_allclose(found[kernel.name], kernel.oracle(a, b)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_kernels_of_the_same_arguments_stay_two(way: str, tmp_path: Path) -> None:
    """OpenVINO joins nodes that it takes for equal."""
    agrees(compiled(two_calls(tmp_path)))


def test_two_kernels_of_one_model_in_onnx_runtime(tmp_path: Path) -> None:
    """Both are of one domain."""
    agrees(registry.backend("onnxruntime").compile(two_calls(tmp_path), local.detect()))


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_sizes_that_do_not_fit_are_an_error_that_names_the_kernel(way: str, tmp_path: Path) -> None:
    fast = one_call(operators.tropical, tmp_path)
    proto = onnx.load(str(fast.path))
    for value in (*proto.graph.input, *proto.graph.output):
        for number, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"{value.name}{number}"
    onnx.save(proto, str(fast.path))
    executable = compiled(replace(load_model(fast.path), kernels=fast.kernels))
    with pytest.raises((RuntimeError, ValueError), match="tropical"):
        executable.run({"A": np.zeros((2, 3), np.float32), "B": np.zeros((4, 5), np.float32)})
    found = executable.run({"A": np.zeros((2, 0), np.float32), "B": np.zeros((0, 5), np.float32)})["out"]
    assert (found == -np.inf).all()
    assert executable.run({"A": np.zeros((0, 3), np.float32), "B": np.zeros((3, 5), np.float32)})["out"].shape == (0, 5)


@needs_plus
def test_callers_at_once_do_not_share_memory(tmp_path: Path) -> None:
    """Each part of a call has a workspace of its own, whatever thread it runs in."""
    kernel = operators.knn
    executable = compiled(one_call(kernel, tmp_path), threads=2)
    rng = np.random.default_rng(0)
    sets = [random_arrays(kernel.program, dict.fromkeys(kernel.program.symbols, 60 + n), rng) for n in range(4)]
    names = [t.name for t in kernel.program.inputs]

    def work(number: int) -> bool:
        call, arrays = executable.caller(), sets[number]
        want = kernel.oracle(*arrays)[0]
        answers = [call(dict(zip(names, arrays, strict=True))) for _ in range(20)]
        return all(np.allclose(next(iter(a.values())), want, rtol=1e-3, atol=1e-4) for a in answers)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@needs_plus
def test_the_door_travels_to_machines_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable, saved = compiled(one_call(operators.tropical, tmp_path)), tmp_path / "saved"
    saved.mkdir()
    executable.save(saved)
    without_compiler(monkeypatch, tmp_path)
    a = np.random.default_rng(0).standard_normal((30, 30), np.float32)
    want = operators.tropical.oracle(a, a)[0]
    brought = registry.backend("openvino").load(saved)
    assert brought.facts()["kernels"] == "compiled"
    np.testing.assert_allclose(brought.run({"A": a, "B": a})["out"], want, rtol=1e-6)
    # For another OpenVINO it is left alone, since it would not fit.
    about = saved / "kernels" / ABOUT
    said = json.loads(about.read_text())
    about.write_text(json.dumps({**said, "version": "1.0"}))
    other = registry.backend("openvino").load(saved)
    assert other.facts()["kernels"] == "python: the compiler `no-such-compiler` that PORTOLAN_CXX names is not there"
    np.testing.assert_allclose(other.run({"A": a, "B": a})["out"], want, rtol=1e-6)
    about.write_text(json.dumps(said))
    with (saved / "kernels" / LIBRARY).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(VerificationFailed, match="is not the one that was compiled"):
        registry.backend("openvino").load(saved)
    about.write_text("{}")
    with pytest.raises(VerificationFailed, match="cannot be read"):
        registry.backend("openvino").load(saved)


def test_a_compiler_that_refuses_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"
    broken = tmp_path / "broken"
    broken.write_text(f"#!/bin/sh\necho once >> {asked}\necho 'door.cc: error: no such header' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PORTOLAN_CXX", str(broken))
    monkeypatch.setenv("PORTOLAN_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        door = _openvino_door.opened(tmp_path)
        assert door == f"`{broken}` ended with code 1: door.cc: error: no such header"
    assert asked.read_text() == "once\n"
