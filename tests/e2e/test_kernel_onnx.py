"""Kernels as ONNX functions and as compiled operators of ONNX Runtime, against the oracle."""

# ruff: noqa: F821, UP037

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import portolan
from portolan.core import registry
from portolan.core.files import write_whole
from portolan.errors import UsageError, VerificationFailed, WorkerError
from portolan.kernels import export, place
from portolan.kernels.compiler import find
from portolan.kernels.embed.carry import about
from portolan.kernels.embed.export import checked
from portolan.kernels.embed.function import DOMAIN, model
from portolan.kernels.embed.ort import door, library
from portolan.kernels.verify import AGENT, random_arrays
from portolan.targets.local import local
from portolan.worker.session import Worker
from support import operators

FILE = """from portolan import kernel


@kernel
def tropical(A: "i k", B: "k j") -> "i j":
    return max(A[i, k] + B[k, j] for k in K)
"""
pytestmark = pytest.mark.usefixtures("cache")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("gcc", "clang", "cc"))), reason="needs a C compiler (gcc, clang or cc)"
)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(module=AGENT) as started:
        yield started


@pytest.mark.parametrize("name", operators.EVERY)
def test_every_construct_as_a_function_agrees_with_the_oracle(name: str, worker: Worker) -> None:
    program = operators.EVERY[name].program
    made = model(program)
    assert {n.domain for n in made.functions[0].node} == {""}, "a body has standard operators only"
    assert checked(program, made.SerializeToString(), worker) < 3e-3


@needs_compiler
@pytest.mark.parametrize("name", ["tropical", "selective_scan", "knn", "statistics", "brain", "integers", "scaled"])
def test_the_compiled_operator_in_onnx_runtime_agrees_with_the_oracle(name: str, worker: Worker) -> None:
    kernel = operators.EVERY[name]
    made = library(kernel.program, kernel.schedules(dict.fromkeys(kernel.program.symbols, 40)), find())
    assert checked(kernel.program, model(kernel.program).SerializeToString(), worker, [made]) < 3e-3


@needs_compiler
def test_onnx_runtime_takes_the_library_where_it_is_and_the_body_where_it_is_not(worker: Worker) -> None:
    """The compiled kernel of another function under the same name: who answers is seen by the answer."""
    program = operators.tropical.program
    wrong = place.folder() / "wrong.c"
    write_whole(wrong, b"")
    code = operators.matmul.code({"i": 40, "k": 40, "j": 40}) + door(
        replace(about(operators.matmul.program), name="tropical")
    )
    impostor = find().build(code)
    made = model(program).SerializeToString()
    assert checked(program, made, worker) < 1e-4
    with pytest.raises(VerificationFailed):
        checked(program, made, worker, [impostor])


@needs_compiler
def test_arguments_that_do_not_fit_are_an_error_of_the_session(worker: Worker, tmp_path: Path) -> None:
    program = operators.tropical.program
    made, path = model(program), tmp_path / "loose.onnx"
    for value in (*made.graph.input, *made.graph.output):
        for number, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"{value.name}{number}"
    path.write_bytes(made.SerializeToString())
    built = library(program, operators.tropical.schedules({"i": 40, "k": 40, "j": 40}), find())
    worker.ask("model", timeout=60, name="loose", path=str(path), libraries=[str(built)])
    tensors = {f"a{n}": np.zeros(s, np.float32) for n, s in enumerate(((2, 3), (4, 5)))}
    with pytest.raises(WorkerError, match="its size differs"):
        worker.ask("answer", timeout=60, name="loose", dtypes=["f32", "f32"], tensors=tensors)


@needs_compiler
def test_empty_arrays_in_onnx_runtime(worker: Worker, tmp_path: Path) -> None:
    def answer(name: str, *arrays: np.ndarray) -> np.ndarray:
        kernel = operators.EVERY[name]
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(model(kernel.program).SerializeToString())
        built = library(kernel.program, kernel.schedules(dict.fromkeys(kernel.program.symbols, 40)), find())
        worker.ask("model", timeout=60, name=name, path=str(path), libraries=[str(built)])
        tensors = {f"a{n}": a for n, a in enumerate(arrays)}
        dtypes = [t.dtype for t in kernel.program.inputs]
        return worker.ask("answer", timeout=60, name=name, dtypes=dtypes, tensors=tensors).tensors["r0"]

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    assert answer("tropical", zeros(2, 0), zeros(0, 3)).tolist() == [[-np.inf] * 3] * 2
    assert answer("matmul", zeros(2, 0), zeros(0, 40)).tolist() == [[0.0] * 40] * 2
    assert answer("matmul", zeros(0, 5), zeros(5, 40)).shape == (0, 40)
    assert answer("gathered", zeros(0, 2), np.zeros(0, np.int32)).shape == (0, 2)
    with pytest.raises(WorkerError, match="gathered: input 0, axis 0: it is empty, and read at places"):
        answer("gathered", zeros(0, 2), np.zeros(3, np.int32))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "reference"])
def test_every_backend_runs_a_model_that_holds_the_function(name: str, tmp_path: Path) -> None:
    backend, target = registry.backend(name), local.detect()
    if not backend.probe(target).ready:
        pytest.skip(f"`{name}` is not installed")
    path = tmp_path / "tropical.onnx"
    path.write_bytes(model(operators.tropical.program).SerializeToString())
    loaded = portolan.load(str(path))
    assert [str(s) for s in loaded.signature.inputs] == ["A:ixk float32", "B:kxj float32"]
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 7), np.float32), rng.standard_normal((7, 3), np.float32)
    found = backend.compile(loaded, target).run({"A": a, "B": b})["out"]
    np.testing.assert_allclose(found, operators.tropical.oracle(a, b)[0], rtol=1e-6)


def test_openvino_runs_a_scan_of_sizes_that_are_known(tmp_path: Path) -> None:
    """It runs some Scans in place, over what they read, where all sizes are known."""
    backend, target = registry.backend("openvino"), local.detect()
    if not backend.probe(target).ready:
        pytest.skip("`openvino` is not installed")
    program, sizes = operators.selective_scan.program, {"t": 16, "c": 16, "n": 4}
    path = tmp_path / "scan.onnx"
    path.write_bytes(model(program, sizes).SerializeToString())
    arrays = random_arrays(program, sizes, np.random.default_rng(0))
    given = {t.name: a for t, a in zip(program.inputs, arrays, strict=True)}
    (found,) = backend.compile(portolan.load(str(path)), target).run(given).values()
    np.testing.assert_allclose(found, operators.selective_scan.oracle(*arrays)[0], rtol=1e-4, atol=1e-6)


def test_files_are_written_checked_and_not_overwritten(tmp_path: Path) -> None:
    file, out = tmp_path / "ops.py", tmp_path / "tropical.onnx"
    file.write_text(FILE)
    (row,) = export(file, out)["kernels"]
    assert row["onnx"] == str(out)
    assert onnx.load(str(out)).functions[0].domain == DOMAIN
    with pytest.raises(UsageError, match="exists"):
        export(file, out)
    file.write_text(FILE + FILE.partition("\n\n\n")[2].replace("tropical", "second"))
    with pytest.raises(UsageError, match="there are 2 kernels"):
        export(file, tmp_path / "both.onnx")
    assert [r["name"] for r in export(file, tmp_path / "both")["kernels"]] == ["tropical", "second"]


def test_results_that_are_named_as_arguments(worker: Worker) -> None:
    from portolan.kernels import kernel

    @kernel
    def named(out: "i") -> "i":
        return out[i] * 2

    made = model(named.program)
    assert [o.name for o in made.graph.output] == ["out_"]
    assert checked(named.program, made.SerializeToString(), worker) == 0


def test_names_in_c_are_always_quoted() -> None:
    hostile = '"; system("id"); //\n\\'
    code = door(replace(about(operators.tropical.program), domain=hostile, name=hostile))
    head = code.partition("#define ENTRY ")[0]
    assert "system" not in head
    assert head.count("\n") == 2
