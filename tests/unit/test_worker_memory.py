"""The memory limit of workers holds for real runtimes, and their own words for it are understood."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.errors import OutOfMemory, WorkerError
from portolan.targets.local import local
from portolan.worker import Worker, default_memory_limit, patience


@pytest.fixture(scope="module")
def hungry(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small file that needs a gibibyte at a time: a vector is repeated 2**25 times, and then averaged."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants = {"shape": np.array([2**25, 1, 8]), "axes": np.array([0])}
    graph = helper.make_graph(
        [
            helper.make_node("Expand", ["x", "shape"], ["h"]),
            helper.make_node("Exp", ["h"], ["k"]),
            helper.make_node("ReduceMean", ["k", "axes"], ["y"], keepdims=0),
        ],
        "hungry",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    path = tmp_path_factory.mktemp("models") / "hungry.onnx"
    onnx.save(model, str(path))
    return load_model(path)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_runtime_that_wants_more_than_the_limit(hungry: Model, tmp_path: Path, backend: str) -> None:
    def attempt() -> dict[str, Any]:
        about = {"model": hungry.to_json(), "target": local.detect().to_json(), "options": {}}
        with Worker(memory_limit=2**30) as worker:
            worker.ask("compile", timeout=120, backend=backend, out=str(tmp_path), **about)
            return worker.ask("run", timeout=120, tensors={"x": np.zeros((1, 8), np.float32)}).tensors

    with pytest.raises(OutOfMemory, match="out of memory during") as caught:
        attempt()
    assert "llocate" in caught.value.message


def test_the_limit_and_the_patience_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = default_memory_limit()
    assert whole > 2**28
    for text in ("", "0", "-5", "much"):
        monkeypatch.setenv("PORTOLAN_WORKER_MEMORY", text)
        monkeypatch.setenv("PORTOLAN_WORKER_TIMEOUT", text)
        assert default_memory_limit() == whole
        assert patience(60.0) == 60.0
    monkeypatch.setenv("PORTOLAN_WORKER_MEMORY", "1000000")
    monkeypatch.setenv("PORTOLAN_WORKER_TIMEOUT", "2.5")
    assert default_memory_limit() == 1_000_000
    assert patience(60.0) == 2.5


def test_an_interpreter_that_cannot_be_started() -> None:
    with pytest.raises(WorkerError, match="no worker could be started: No such file or directory: `/nowhere/python`"):
        Worker(python=["/nowhere/python"])


@pytest.mark.skipif(sys.platform != "linux", reason="limits of other processes are Linux's")
def test_what_ignores_its_limit_is_bounded_from_outside() -> None:
    """As an emulator does, which keeps the worker's own request to itself."""
    with Worker(python=["/bin/sh", "-c", "exec sleep 60", "x"], memory_limit=123 * 2**20) as worker:
        limits = Path(f"/proc/{worker.pid}/limits").read_text()
    assert str(123 * 2**20) in next(line for line in limits.splitlines() if line.startswith("Max data size"))
