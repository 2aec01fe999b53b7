"""What GPUs do to sessions and workers: falling back, engines, memory. What stands in for one computes alike."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import portolan
from portolan.backends import _ort_gpu, _torch_gpu
from portolan.backends._artefact import Artefact
from portolan.bundle.names import is_code
from portolan.core import cuda
from portolan.core.silence import runtime
from portolan.errors import ModelError, NoBackend, PortolanError
from portolan.testing.models import Case, cases, free_batch, perceptron
from portolan.worker.memory import ran_out
from support import gpus


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """ONNX Runtime's stand-in, for the GPU's sessions alone."""
    module = gpus.fake()
    monkeypatch.setattr(_ort_gpu, "runtime", lambda name: module)
    return module


def session(case: Case, device: str = "cuda", precision: _ort_gpu.Precision = "f32") -> _ort_gpu.Session:
    return _ort_gpu.compiled(Artefact.of(case.model), device, precision, "ENABLE_ALL")


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ("absent", NoBackend, r"the package here has no `CUDAExecutionProvider`"),
        ("fallback", PortolanError, r"was asked for device `cuda` and runs with `cpu`"),
        ("stray", PortolanError, r"was asked for device `cuda` and runs `Gemm` with `CPUExecutionProvider`"),
        ("old", NoBackend, r"does not say where nodes run"),
        ("broken", NoBackend, r"cannot start on device `cuda`: Please install TensorRT libraries"),
        ("full", ModelError, r"Failed to allocate memory"),
    ],
)
def test_falling_back_is_loud(
    wrong: str, error: type[PortolanError], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ORT", wrong)
    with pytest.raises(error, match=words) as caught:
        session(perceptron(tmp_path))
    assert caught.value.hint
    assert ran_out(str(caught.value)) == (wrong == "full")


@pytest.mark.usefixtures("fake")
def test_most_of_a_models_nodes_have_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ORT", "few")
    case = next(case for case in cases(tmp_path) if case.name == "tokens")
    with pytest.raises(PortolanError, match=r"was asked for device `cuda` and runs 1 of 7 nodes there"):
        session(case)


@pytest.mark.usefixtures("fake")
def test_what_a_runtime_prints_is_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session(perceptron(tmp_path)).close()
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("fake")
def test_engines_are_built_once_and_shipped(tmp_path: Path) -> None:
    case, saved = perceptron(tmp_path / "model"), tmp_path / "saved"
    saved.mkdir()
    first = session(case, "tensorrt", "f16")
    assert (first.facts()["engines"], first.facts()["built"], first.facts()["precision"]) == (1, 1, "f16")
    first.save(saved)
    first.close()
    (engine,) = (saved / "engines").iterdir()
    assert engine.read_text() == "f16=1 tf32=0"
    assert is_code(engine.name, b"")
    engine.chmod(0o444)
    before = {path: path.stat().st_mtime_ns for path in (saved, saved / "engines", engine)}
    again = _ort_gpu.opened(saved, Artefact.open(saved), "tensorrt", "f16", "ENABLE_ALL")
    assert (again.facts()["engines"], again.facts()["built"]) == (1, 0)
    case.check(again.run(case.inputs), 1e-4)
    copy = tmp_path / "copy"
    copy.mkdir()
    again.save(copy)
    again.close()
    assert not (copy / "engines" / engine.name).is_symlink()
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.usefixtures("fake")
def test_tensorrt_wants_fixed_sizes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="those of `x` are free") as caught:
        session(free_batch(tmp_path), "tensorrt")
    assert "--shapes" in (caught.value.hint or "")


@pytest.mark.usefixtures("fake")
def test_tf32_only_where_it_was_asked_for() -> None:
    engines = Path("engines")
    assert _ort_gpu._providers("cuda", "f32", engines)[0][1]["use_tf32"] == "0"
    assert _ort_gpu._providers("cuda", "tf32", engines)[0][1]["use_tf32"] == "1"
    tensorrt, cuda_behind = _ort_gpu._providers("tensorrt", "f16", engines)
    assert (tensorrt[0], tensorrt[1]["trt_fp16_enable"]) == ("TensorrtExecutionProvider", "1")
    assert cuda_behind[0] == "CUDAExecutionProvider"


@pytest.mark.torch
def test_torch_computes_in_f32_unless_told_otherwise() -> None:
    pytorch = runtime("torch")
    try:
        for precision, allowed in ("tf32", True), ("f32", False):
            _torch_gpu.compute_in(pytorch, precision)
            assert pytorch.backends.cudnn.allow_tf32 is allowed
            assert pytorch.backends.cuda.matmul.allow_tf32 is allowed
    finally:
        _torch_gpu.compute_in(pytorch, "f32")
    if not pytorch.cuda.is_available():
        with pytest.raises(PortolanError, match="sees no GPU it can use"):
            _torch_gpu.demand_gpu()


# --- workers


def test_a_worker_may_reserve_more_than_it_may_write() -> None:
    """As CUDA does when it starts: a range as large as all memory. What is written to is bounded all the same."""
    done = subprocess.run(
        [sys.executable, "-c", _RESERVE, str(2**30)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.split() == ["reserved", "shared", "refused"], done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 7.9 GiB",
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes.",
        "`cuMemAlloc_v2` failed: CUDA_ERROR_OUT_OF_MEMORY (2)",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=x",
        "Failed to allocate memory for requested buffer of size 1073741824",
    ],
)
def test_a_gpu_without_memory_is_understood(words: str) -> None:
    assert ran_out(words)


_RESERVE = """
import mmap, sys
from portolan.worker.memory import limit_memory
limit_memory(int(sys.argv[1]))
mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0)
print("reserved")
mmap.mmap(-1, 1 << 32, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x4000)
print("shared")
try:
    mmap.mmap(-1, 1 << 31, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
except OSError:
    print("refused")
"""


# --- the contract


@pytest.mark.parametrize("name", ["TestOnnxRuntimeCuda", "TestOnnxRuntimeTensorRt"])
def test_the_contract_is_kept_as_far_as_it_goes_without_a_gpu(name: str, tmp_path: Path) -> None:
    """What `make test-gpu` will run where one is: here with a driver, a package and engines that are made up."""
    gpus.package(tmp_path)
    library = gpus.driver(tmp_path)
    suite = Path(__file__).parents[1] / "contract" / "test_gpu_backends.py"
    env = os.environ | {cuda.VARIABLE: str(library)}
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(Path(portolan.__file__).parents[1])])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "hardware", "-k", name, str(suite)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\b[1-9]\d passed", done.stdout)
    assert "skipped" not in done.stdout
