"""Passes that misbehave cost their own trials: in another process, with the reason kept."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx import numpy_helper as nh

from portolan.reports import render
from portolan.search.payoff import Payoff
from portolan.study import payoffs
from portolan.targets.local import local
from portolan.worker.environments import backends
from support.studies import Lab, matmul

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


def optimize(env: dict[str, str], folder: Path, *args: str, model: str = "demo:digits") -> Any:
    command = [sys.executable, "-m", "portolan", "optimize", model, "--json", *args]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_bad_passes_lose_their_own_trials(env: dict[str, str], tmp_path: Path) -> None:
    study = optimize(
        env, tmp_path, "-g", "accuracy_drop <= 1%", "-g", "min latency_p50", "--passes", "hungry,spoil,useless",
        "--backend", "onnxruntime", "--budget", "40s, 12 trials",
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
    # Who reads the report finds each of them with what became of it.
    rows = dict(re.findall(r"<tr[^>]*>.*?(hungry|spoil|useless)(.*?)</tr>", render([study]), re.S))
    assert "out of memory during `apply`" in html.unescape(re.sub("<[^>]+>", "`", rows["hungry"])).replace("``", "`")
    assert "has nothing for it" in rows["useless"]
    assert ">accuracy drop missed<" in rows["spoil"]


def test_a_pass_that_needs_more_memory_than_there_is(env: dict[str, str], tmp_path: Path) -> None:
    """A real one: what `decompose` sums up of 12,288 inputs takes more than a worker may have; `quantize` does not."""
    weight = np.random.default_rng(0).standard_normal((12288, 16)).astype(np.float32)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s]) for n, s in (("x", 12288), ("y", 16))]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "wide", ends[:1], ends[1:], [nh.from_array(weight, "w")]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "w.onnx")
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(1).standard_normal((48, 12288)).astype(np.float32))
    recipe = "passes = [{ name = 'decompose' }]\noptions = { graph_optimization = 'all', threads = 1 }\n"
    (tmp_path / "recipe.toml").write_text(recipe)
    study = optimize(
        env, tmp_path, "-g", "cosine >= 0.9", "-g", "min size", "--backend", "onnxruntime", "--data", "rows.npz",
        "--recipe", "recipe.toml", "--budget", "15s, 4 trials", model="w.onnx",
    )  # fmt: skip
    assert study["met"]
    failed = next(t for t in study["trials"] if t["recipe"]["passes"])
    assert failed["status"] == "failed"
    assert "out of memory during `apply`" in failed["reason"]
    assert not failed["met"]
    assert study["best"]["recipe"]["passes"] == []


def test_a_search_leaves_out_what_was_measured_to_bring_nothing(lab: Lab) -> None:
    """What `doctor --bench` kept reaches `optimize`, and it says so; who asks for bytes or by name gets it."""
    lab.model = matmul(lab.folder / "wide.onnx", inner=64)
    rows = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    np.savez(lab.folder / "rows.npz", x=rows)
    speed, halves = ["cosine >= 0.9", "min latency_p50"], "decompose(method=svd, keep=0.5)"

    def said(goals: list[str], **options: Any) -> str | None:
        """Why it is left out, None where it is tried."""
        options = {"recipe": None, "passes": ["decompose"], "data": str(lab.folder / "rows.npz"), **options}
        told = lab.optimize(goals=goals, dry_run=True, **options).to_json()
        found = {entry["passes"]: entry["reason"] for entry in told["refusals"]} | dict.fromkeys(told["chains"])
        return found[halves]

    target = local.detect()
    assert said(speed) is None
    slow = Payoff(halves, ("shape:lowrank",), "products", "fake", 0.5, 0.48, 0.52)
    payoffs.keep(target, backends(target, ["fake"]), [slow])
    why = "shape:lowrank does not pay on `fake` here: products run 0.50x as fast, as `portolan doctor --bench` measured"
    assert said(speed) == why
    assert said(["cosine >= 0.9", "min size"]) is None
    pinned = {"passes": [{"name": "decompose", "method": "svd", "keep": 0.5}]}
    assert said(speed, recipe=pinned, passes=None) is None


def test_zeros_count_as_the_bytes_that_are_stored(lab: Lab) -> None:
    """A goal on size means those; what a runtime is given is beside it."""
    lab.model = matmul(lab.folder / "wide.onnx", inner=8192)
    pinned = {"passes": [{"name": "prune", "ratio": 0.9, "score": "magnitude"}]}
    study = lab.optimize(recipe=pinned, goals=["cosine >= 0.1", "min size"], starts=1)
    best, before = (trial.metrics for trial in (study.best, study.baseline))
    assert [step.name for step in study.best.recipe.passes] == ["prune"]
    assert best["size"].value < 0.4 * before["size"].value
    assert best["resident"].value == pytest.approx(before["resident"].value, rel=0.01)
