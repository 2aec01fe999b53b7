"""The first thing a new target does: say what it is, and answer a small model as NumPy does."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from portolan.core.model import Model
from portolan.core.signature import Signature, TensorSpec
from portolan.core.target import Target
from portolan.errors import NoBackend, PortolanError, VerificationFailed
from portolan.worker import Worker, patience

_SECONDS = 300.0
_TOLERANCE = 1e-4


def observed(reach: Sequence[str], name: str) -> Target:
    """What a worker there takes the machine to be.

    Raises:
        NoBackend: no worker answers.
    """
    try:
        with Worker(python=reach) as worker:
            reply = worker.ask("detect", timeout=patience(_SECONDS), name=name)
    except PortolanError as error:
        raise NoBackend(f"nothing answers under `{Path(reach[0]).name}`: {error.message}", hint=error.hint) from error
    return Target.from_json(reply.fields["target"])


def answers(reach: Sequence[str], target: Target, backend: str) -> dict[str, str]:
    """Compiles and runs a small model on `backend` there; the versions of what ran it.

    Raises:
        NoBackend: the backend is not ready there, or fails.
        VerificationFailed: it answers wrongly.
    """
    with tempfile.TemporaryDirectory(prefix="portolan-target-") as name:
        folder = Path(name)
        (folder / "out").mkdir()
        model, weights = _small(folder)
        x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8)
        try:
            with Worker(python=reach) as worker:
                probe = worker.ask("probe", timeout=patience(_SECONDS), backend=backend, target=target.to_json()).fields
                if not probe["support"]["ready"]:
                    raise NoBackend(f"`{backend}` is not ready: {probe['support']['reason']}")
                worker.ask(
                    "compile", timeout=patience(_SECONDS), backend=backend, model=model.to_json(),
                    target=target.to_json(), options={}, out=str(folder / "out"),
                )  # fmt: skip
                got = worker.ask("run", timeout=patience(_SECONDS), tensors={"x": x}).tensors["y"]
        except PortolanError as error:
            raise NoBackend(f"`{backend}` does not run there: {error.message}", hint=error.hint) from error
    wanted = np.maximum(x @ weights, 0)
    if got.shape != wanted.shape or not np.abs(got - wanted).max() <= _TOLERANCE:
        raise VerificationFailed(f"`{backend}` answers a product of 4x8 and 8x3 wrongly there")
    versions: dict[str, str] = probe["versions"]
    return versions


def _small(folder: Path) -> tuple[Model, np.ndarray]:
    """`y = relu(x @ weights)`, x [4, 8] float32."""
    import onnx
    from onnx import helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [4, size]) for n, size in (("x", 8), ("y", 3)))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    graph = helper.make_graph(nodes, "small", [x], [y], [numpy_helper.from_array(weights, "w")])
    path = folder / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    signature = Signature((TensorSpec("x", "float32", (4, 8)),), (TensorSpec("y", "float32", (4, 3)),))
    return Model("small", path, "small", signature, opset=13), weights
