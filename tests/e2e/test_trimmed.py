"""A model whose padding is cut off, from the search to the server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import portolan
from portolan.backends.onnxruntime import onnxruntime
from portolan.backends.openvino import openvino
from portolan.bundle import open_bundle
from portolan.core import registry
from portolan.core.backend import Backend
from portolan.core.graph import load_model
from portolan.core.passes import Context
from portolan.passes.trim import trim
from portolan.targets.local import local
from portolan.testing.passes import run
from support.padded import LENGTH, encoder, sentences
from support.serving import serving

FEW = sentences([3, 7, 2, 9, 4, 6, 5, 8])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTOLAN_CACHE", str(tmp_path / "cache"))


def test_it_is_searched_where_outputs_must_not_change_and_shipped(tmp_path: Path) -> None:
    lengths = np.random.default_rng(1).integers(1, LENGTH // 2, 80).tolist()
    np.savez(tmp_path / "data.npz", **sentences(lengths, seed=3))
    path = encoder(tmp_path / "net.onnx", batch=1).path
    study = portolan.optimize(
        path, goals=["min latency_p50"], data=tmp_path / "data.npz", passes=["trim"], backend=["onnxruntime"],
        budget="20s, 4 trials", study=tmp_path / "study",
    )  # fmt: skip
    trimmed = [trial for trial in study.trials if [step.name for step in trial.recipe.passes] == ["trim"]]
    assert trimmed
    assert all(trial.status == "ok" and trial.metrics["max_rel_error"].value < 1e-4 for trial in trimmed)
    portolan.pack(tmp_path / "study", trial=trimmed[0].id, out=tmp_path / "net")
    with open_bundle(tmp_path / "net") as bundle, serving(tmp_path / "net") as server:
        for length in (1, 9, LENGTH):
            feeds = sentences([length], seed=length)
            right = run(load_model(path), feeds)["y"]
            np.testing.assert_allclose(bundle.run(feeds)["y"], right, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(server.answer("net", feeds)["y"], right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", [onnxruntime, openvino], ids=["onnxruntime", "openvino"])
@pytest.mark.parametrize("length", [LENGTH, "t"])
def test_the_runtimes_answer_at_every_length(tmp_path: Path, backend: Backend, length: int | str) -> None:
    target, model = local.detect(), encoder(tmp_path / "net.onnx", length=length)
    (tmp_path / "out").mkdir()
    short = trim(model, Context(tmp_path / "out", target, FEW))
    right, ours = (backend.compile(one, target) for one in (model, short))
    for lengths in ([1], [9, 2], [LENGTH], [8, 16, 3], [0, 5]):
        feeds = sentences(lengths, seed=len(lengths))
        np.testing.assert_allclose(ours.run(feeds)["y"], right.run(feeds)["y"], rtol=1e-4, atol=1e-5)


def test_backends_that_fix_every_size_are_refused(tmp_path: Path) -> None:
    """A length that the data decide is a feature like any other, and who does not exploit it is refused by name."""
    target, model = local.detect(), encoder(tmp_path / "net.onnx", batch=1)
    (tmp_path / "out").mkdir()
    short = trim(model, Context(tmp_path / "out", target, FEW))
    for name in ("torch", "xla", "litert", "iree", "tvm"):
        assert registry.backend(name).refuse(model, target) is None
        assert registry.backend(name).refuse(short, target) == f"length:trimmed is not exploited by `{name}`"
