"""Passes that misbehave cost their own trials: in another process, with the reason kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PASSES = '''
from portolan.core.passes import compression
from portolan.errors import UsageError
from portolan.passes._graphs import open_graph, save_graph

LOSSY = {"lossy": lambda options: True, "produces": lambda options: ("shape:pruned",), "distributions": ("onnx",)}


@compression(stage=lambda options: "structure", **LOSSY)
def hungry(model, context):
    """Takes more memory than there is."""
    held = []
    while True:
        held.append(bytearray(64 << 20))


@compression(stage=lambda options: "structure", **LOSSY)
def useless(model, context):
    """Finds nothing in any model."""
    raise UsageError(f"`{model.name}` has nothing for it", hint="leave it out")


@compression(stage=lambda options: "structure", **LOSSY)
def spoil(model, context):
    """Sets every weight of one kind to its negative."""
    from onnx import numpy_helper

    original = open_graph(model)
    proto = type(original)()
    proto.CopyFrom(original)
    for tensor in proto.graph.initializer:
        if len(tensor.dims) > 1:
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    return save_graph(proto, original, model, context.folder, ("shape:pruned",))
'''


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment with a package of two bad passes."""
    site = tmp_path / "site"
    info = site / "bad_passes-1.dist-info"
    info.mkdir(parents=True)
    (site / "bad_passes.py").write_text(PASSES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-passes\nVersion: 1\n")
    lines = "".join(f"{name} = bad_passes:{name}\n" for name in ("hungry", "spoil", "useless"))
    (info / "entry_points.txt").write_text(f"[portolan.passes]\n{lines}")
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    return {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": path, "PORTOLAN_WORKER_MEMORY": str(2**30)}


def optimize(env: dict[str, str], folder: Path, *args: str) -> Any:
    command = [sys.executable, "-m", "portolan", "optimize", "demo:digits", "--json", *args]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_bad_passes_lose_their_own_trials(env: dict[str, str], tmp_path: Path) -> None:
    study = optimize(
        env, tmp_path, "-g", "accuracy_drop <= 1%", "-g", "min latency_p50", "--passes", "hungry,spoil,useless",
        "--backend", "onnxruntime", "--budget", "12 trials",
    )  # fmt: skip
    assert study["met"]
    found: dict[str, list[Any]] = {}
    for trial in study["trials"]:
        for step in trial["recipe"]["passes"]:
            found.setdefault(step["name"], []).append(trial)
    assert found["hungry"]
    for trial in found["hungry"]:
        assert trial["status"] in ("failed", "refused")
        assert not trial["met"]
    assert any("out of memory during `apply`" in str(trial["reason"]) for trial in found["hungry"])
    assert found["useless"][0]["status"] == "failed"
    assert found["useless"][0]["reason"] == "`digits` has nothing for it"
    assert found["spoil"]
    for trial in found["spoil"]:
        assert not trial["met"]
        assert not trial["pareto"]
    judged = [t for t in found["spoil"] if "accuracy_drop" in t["metrics"]]
    assert judged[0]["metrics"]["accuracy_drop"]["value"] > 0.2
    assert study["best"]["recipe"]["passes"] == []
