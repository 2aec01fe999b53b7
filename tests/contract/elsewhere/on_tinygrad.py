"""tinygrad keeps the contract; run in its own environment by test_environment_backends.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from portolan.backends._artefact import Artefact
from portolan.backends.tinygrad import Replay, tinygrad
from portolan.core.graph import load_model
from portolan.testing.backend import BackendContract


class TestTinygrad(BackendContract):
    backend = tinygrad
    refused = ("free-batch",)


def test_axes_that_are_an_input_are_read_at_each_call(tmp_path: Path) -> None:
    """Its reader keeps the first it saw; three calls of each, since the second records and the third replays."""
    text = '<ir_version: 9, opset_import: ["": 18]> g (float[2,3] x, int64[1] axes) => (float[a,b] y)'
    proto = onnx.parser.parse_model(f"{text} {{ y = ReduceSum <keepdims = 1> (x, axes) }}")
    onnx.save(proto, str(tmp_path / "m.onnx"))
    ready = Replay(Artefact.of(load_model(tmp_path / "m.onnx")))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for axis in (0, 0, 0, 1, 1, 1, 0):
        found = ready.run({"x": x, "axes": np.array([axis], np.int64)})["y"]
        np.testing.assert_array_equal(found, x.sum(axis, keepdims=True))
