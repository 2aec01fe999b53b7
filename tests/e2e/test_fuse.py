"""Chains of operators as kernels: found where they are one piece, right with their libraries and without."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import portolan
from portolan.backends.onnxruntime import onnxruntime
from portolan.bundle import open_bundle
from portolan.core import registry
from portolan.core.extensions import folders, place
from portolan.core.graph import load_model
from portolan.core.passes import Context
from portolan.errors import UsageError, WorkerTimeout
from portolan.fusing import fuse
from portolan.kernels.fusion import programs, race
from portolan.kernels.fusion.chains import Finder
from portolan.kernels.fusion.spaces import shapes
from portolan.targets.local import local
from support.fused import misled
from support.serving import serving

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("gcc", "clang", "cc"))), reason="needs a C compiler")

#: Every operator that chains are made of, in shapes that broadcast in each way. ThresholdedRelu is none, and cuts.
EVERY = """
<ir_version: 10, opset_import: ["": 20]>
net (float[b,3,4,20] x, float[b,3,4,20] z, float[4,20] mask, float[b,1,1,20] one)
  => (float[b,3,4,20] y, float[b,3,4,20] w)
<float two = {2}, float low = {-0.5}, float high = {1.5}, float[20] g, float[20] h, int64[1] last = {-1}> {
  a = Add (x, mask)  a1 = Softmax <axis = 3> (a)  a2 = Mul (a1, one)  a3 = LayerNormalization <axis = -1> (a2, g, h)
  n = ThresholdedRelu (a3)
  b = Gelu (n)  b1 = Clip (b, low, high)  b2 = LeakyRelu <alpha = 0.1> (b1)  b3 = HardSwish (b2)
  c = ReduceMax (b3, last)  c1 = Sub (b3, c)  c2 = Exp (c1)  c3 = ReduceSum (c2, last)  c4 = Log (c3)  c5 = Sub (c1, c4)
  v = Mul (c5, two)  w = LogSoftmax (v)
  d = Mish (z)  d1 = Softplus (d)  d2 = Pow (d1, two)  d3 = Sqrt (d2)  d4 = Erf (d3)  d5 = Sigmoid (d4)
  d6 = Max (d5, z, x)  d7 = Min (d6, high)  d8 = Abs (d7)  d9 = Neg (d8)  e = Reciprocal (d9)  e1 = Tanh (e)
  e2 = HardSigmoid (e1)  e3 = Relu (e2)  e4 = Sin (e3)  e5 = Cos (e4)  e6 = Floor (e5)  y = Sum (e6, e4, x)
}"""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTOLAN_CACHE", str(tmp_path_factory.mktemp("cache")))


def written(text: str, folder: Path, **weights: np.ndarray) -> Path:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    folder.mkdir(exist_ok=True)
    onnx.save(proto, folder / "net.onnx")
    return folder / "net.onnx"


def operators(path: Path) -> list[str]:
    return [n.op_type for n in onnx.load(path).graph.node if n.domain.startswith("portolan.")]


def ran(model: Any, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.compile(model, local.detect(), threads=1)
    try:
        return session.run(feeds)
    finally:
        session.close()


def test_every_operator_with_the_libraries_and_without(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(20).astype(np.float32) for name in "gh"}
    path = written(EVERY, tmp_path / "in", **weights)
    fused = fuse(load_model(path), Context(empty(tmp_path / "out"), local.detect()), gain=0.0)
    names = operators(fused.path)
    assert len(names) == 3
    assert len(folders(fused.path, local.detect())) == 3
    for batch, there in ((1, True), (5, True), (5, False)):
        if not there:
            for name in names:
                shutil.rmtree(place(name, local.detect()))
        sides = {"x": (batch, 3, 4, 20), "z": (batch, 3, 4, 20), "mask": (4, 20), "one": (batch, 1, 1, 20)}
        feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in sides.items()}
        found = ran(fused, feeds)
        for name, value in zip(("y", "w"), ReferenceEvaluator(str(path)).run(None, feeds), strict=True):
            np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-5)


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_chain_stays_one_piece(tmp_path: Path) -> None:
    """What goes out of a chain and comes back through another operator cannot be inside of it."""
    text = """
    <ir_version: 10, opset_import: ["": 18]>
    net (float[8,16] x) => (float[8,16] y) <float[16,16] w> {
      a = Exp (x)  b = Tanh (a)  c = MatMul (a, w)  d = Add (b, c)  e = Sigmoid (d)  y = Mul (e, b)
    }"""
    path = written(text, tmp_path / "in", w=np.eye(16, dtype=np.float32))
    proto = onnx.load(path)
    chains = Finder(proto.graph, shapes(proto), {}).chains()
    assert [[n.op_type for n in c.nodes] for c in chains] == [["Exp", "Tanh"], ["Add", "Sigmoid", "Mul"]]
    assert [c.outputs for c in chains] == [("a", "b"), ("y",)]
    fused = fuse(load_model(path), Context(empty(tmp_path / "out"), local.detect()), gain=0.0)
    onnx.checker.check_model(str(fused.path), full_check=True)
    x = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    np.testing.assert_allclose(
        ran(fused, {"x": x})["y"], ReferenceEvaluator(str(path)).run(None, {"x": x})[0], rtol=1e-5
    )


CHAINS = """
<ir_version: 10, opset_import: ["": 18]>
net (float[b,16] x) => (float[b,16] y) <float[16,16] w> {
  a = Exp (x)  b = Tanh (a)  c = MatMul (b, w)  d = Softmax (c)  y = Sigmoid (d)
}"""
FEEDS = {"x": np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)}


def shipped(backend: str, folder: Path, patch: pytest.MonkeyPatch) -> tuple[Path, set[str], np.ndarray]:
    """A bundle of two chains as kernels, whose bodies are wrong, for a user who compiled nothing; and the answer."""
    if not registry.backend(backend).probe(local.detect()).ready:
        pytest.skip(f"`{backend}` is not installed")
    path = written(CHAINS, folder / "in", w=np.eye(16, dtype=np.float32))
    fused = fuse(load_model(path), Context(empty(folder / "out"), local.detect()), gain=0.0)
    misled(fused.path)
    packed = portolan.pack(str(fused.path), backend=backend, out=folder / "bundle")
    assert packed.verified
    names = {f"compiled/kernels/{name}{suffix}" for name in operators(fused.path) for suffix in (".so", ".c")}
    assert names <= set(packed.files)
    patch.setenv("PORTOLAN_CACHE", str(folder / "another user"))
    patch.setenv("PORTOLAN_CXX", "no-such-compiler")
    return folder / "bundle", names, ReferenceEvaluator(str(path)).run(None, FEEDS)[0]


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_bundle_carries_the_kernels_to_another_user(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, names, want = shipped(backend, tmp_path, monkeypatch)
    assert len(names) == 4
    with open_bundle(made, native=True) as bundle:
        assert bundle.verify()
        np.testing.assert_allclose(bundle.run(FEEDS)["y"], want, rtol=1e-5)
    with open_bundle(made) as bundle, pytest.raises(UsageError, match="holds compiled code"):
        bundle.run(FEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bundle_with_fused_kernels_is_served(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _, want = shipped(backend, tmp_path, monkeypatch)
    with open_bundle(made, native=True) as bundle:
        name = bundle.manifest.name
    with serving(made, "--native") as server:
        np.testing.assert_allclose(server.answer(name, FEEDS)["y"], want, rtol=1e-5)


def test_a_kernel_that_is_slower_or_wrong_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    <ir_version: 10, opset_import: ["": 18]>
    net (float[8,16] x) => (float[8,16] y) { a = Exp (x)  y = Tanh (a) }"""
    model = load_model(written(text, tmp_path / "in"))
    with pytest.raises(UsageError, match=r"none of the 1 chains of `net` is 1e\+06 times as fast"):
        fuse(model, Context(empty(tmp_path / "slow"), local.detect()), gain=1e6)
    monkeypatch.setenv("PORTOLAN_CACHE", str(tmp_path / "other"))
    code = programs.source
    monkeypatch.setattr(programs, "source", lambda *given: code(*given).replace("v_tanh(v_", "v_sigmoid(v_"))
    with pytest.raises(UsageError, match="none of the 1 chains"):
        fuse(model, Context(empty(tmp_path / "wrong"), local.detect()), gain=0.001)


def test_a_race_that_ran_out_of_time_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's verdict is not kept: only what a kernel does is."""

    def late(*given: Any) -> float:
        raise WorkerTimeout("no answer")

    text = """
    <ir_version: 10, opset_import: ["": 18]>
    net (float[8,16] x) => (float[8,16] y) { a = Exp (x)  y = Tanh (a) }"""
    model = load_model(written(text, tmp_path / "in"))
    with monkeypatch.context() as busy:
        busy.setattr(race, "contested", late)
        with pytest.raises(UsageError, match="none of the 1 chains"):
            fuse(model, Context(empty(tmp_path / "late"), local.detect()), gain=0.001)
    later = fuse(model, Context(empty(tmp_path / "later"), local.detect()), gain=0.001)
    assert len(operators(later.path)) == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            "a = ThresholdedRelu (x)  b = Softmax (a)  y = ThresholdedRelu (b)",
            "it has no LSTM, and no two",
        ),
        ("a = Softmax (x)  b = ThresholdedRelu (a)  y = Softmax (b)", "has no chain of operators to fuse"),
        (
            "a = Softmax (x)  b = Exp (a)  y = Softmax (b)",
            "none of the 1 chains of `net` is 1.1 times as fast as a kernel",
        ),
    ],
)
def test_what_cannot_be_fused_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, says: str
) -> None:
    monkeypatch.setattr(race, "put_in", lambda *rest: False)
    text = f'<ir_version: 10, opset_import: ["": 20]>\nnet (float[b,3,20] x) => (float[b,3,20] y) {{ {body} }}'
    model = load_model(written(text, tmp_path / "in"))
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=says) as caught:
        fuse(model, Context(tmp_path / "out", local.detect()))
    assert caught.value.hint == "leave `fuse` out of the recipe"
    assert not list((tmp_path / "out").iterdir())


def test_a_model_cannot_name_a_library(tmp_path: Path) -> None:
    """Only names of our own form, in the folder of this user's own kernels."""
    evil = tmp_path / "evil.so"
    evil.write_bytes(b"")
    for name in ("../../evil", str(evil.with_suffix("")), "fused_../evil", "fused_0123456789ab\n"):
        node = onnx.helper.make_node(name, ["x"], ["y"], domain=f"portolan.fused.{name}")
        value = [onnx.helper.make_tensor_value_info(n, 1, [1]) for n in "xy"]
        onnx.save(
            onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:])), tmp_path / "m.onnx"
        )
        assert folders(tmp_path / "m.onnx", local.detect()) == []
