"""Models that take strings: measured on real data, left alone by runtimes that have none, never made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import portolan
from portolan.errors import UsageError


@pytest.fixture
def towns(tmp_path: Path) -> Path:
    """A model that gives each town a number."""
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node(
        "LabelEncoder",
        ["town"],
        ["number"],
        domain="ai.onnx.ml",
        keys_strings=["Faro", "Évora"],
        values_floats=[1.0, 2.0],
    )
    graph = helper.make_graph(
        [node], "towns",
        [helper.make_tensor_value_info("town", TensorProto.STRING, ["batch", 1])],
        [helper.make_tensor_value_info("number", TensorProto.FLOAT, ["batch", 1])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(tmp_path / "towns.onnx"))
    np.savez(tmp_path / "towns.npz", town=np.array([["Faro"], ["Évora"]] * 8))
    return tmp_path / "towns.onnx"


def test_they_are_timed_where_they_run_and_the_others_say_why(towns: Path) -> None:
    found = portolan.bench(towns, data=towns.with_suffix(".npz"), budget="3s")
    arms = {arm["name"].rpartition("@")[2] or "alone": arm for arm in found.arms}
    (ran,) = [arm for arm in arms.values() if arm["metrics"]]
    assert ran["metrics"]["latency_p50"]["kind"] == "measured"
    assert all("LabelEncoder" in arm["reason"] for arm in arms.values() if not arm["metrics"])
    with pytest.raises(UsageError, match="holds strings, which cannot be made up"):
        portolan.bench(towns, budget="3s")
