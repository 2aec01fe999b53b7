"""Stacks of LSTM layers as kernels: found where they are one, right at every size, with their libraries and without."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from portolan.backends.onnxruntime import onnxruntime
from portolan.backends.openvino import openvino
from portolan.core.extensions import folders, place
from portolan.core.graph import load_model
from portolan.core.native import Library
from portolan.core.passes import Context
from portolan.errors import UsageError
from portolan.fusing import fuse
from portolan.kernels.compiler import find
from portolan.kernels.fusion import race
from portolan.kernels.fusion.spaces import shapes
from portolan.kernels.recurrent.stacks import Stack, stacks
from portolan.kernels.recurrent.weights import packed
from portolan.targets.local import local
from support.fused import misled

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("gcc", "clang", "cc"))), reason="needs a C compiler")

HEAD = '<ir_version: 10, opset_import: ["": 18]>'
#: Two layers of 40 units, which are no whole number of vectors, and what reads their last step beside all of them.
TWO = f"""{HEAD}
net (float[t,b,7] x) => (float[t,1,b,40] y, float[1,b,40] last) <int64[1] one = {{1}}> {{
  a = LSTM <hidden_size = 40> (x, w0, r0, b0)  s = Squeeze (a, one)
  y, h = LSTM <hidden_size = 40> (s, w1, r1)  last = Tanh (h)
}}"""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTOLAN_CACHE", str(tmp_path_factory.mktemp("cache")))


def weights(*widths: int, hidden: int = 40) -> dict[str, np.ndarray]:
    rng, found = np.random.default_rng(1), {}
    for number, width in enumerate(widths):
        found[f"w{number}"] = rng.standard_normal((1, 4 * hidden, width)).astype(np.float32) / 4
        found[f"r{number}"] = rng.standard_normal((1, 4 * hidden, hidden)).astype(np.float32) / 8
        found[f"b{number}"] = rng.standard_normal((1, 8 * hidden)).astype(np.float32) / 4
    return found


def written(text: str, folder: Path, given: dict[str, np.ndarray]) -> Path:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in given.items())
    folder.mkdir(exist_ok=True)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, folder / "net.onnx")
    return folder / "net.onnx"


def fused(path: Path, folder: Path) -> Path:
    folder.mkdir()
    return fuse(load_model(path), Context(folder, local.detect()), gain=0.0).path


def found(text: str, given: dict[str, np.ndarray]) -> list[Stack]:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in given.items())
    return stacks(proto.graph, shapes(proto))


def test_every_size_with_the_library_and_without(tmp_path: Path) -> None:
    path, target = written(TWO, tmp_path / "in", weights(7, 40)), local.detect()
    made = fused(path, tmp_path / "out")
    graph = onnx.load(made).graph
    (node,) = [n for n in graph.node if n.domain.startswith("portolan.")]
    assert [n.op_type for n in graph.node] == [node.op_type, "Gather", "Tanh"]
    assert not {"w0", "r1"} & {t.name for t in graph.initializer}
    assert len(folders(made, target)) == 1
    onnx.checker.check_model(str(made), full_check=True)
    oracle, rng = ReferenceEvaluator(str(path)), np.random.default_rng(0)
    other = shutil.copytree(made.parent, tmp_path / "misled") / made.name
    misled(other)
    for model, there in ((other, True), (made, False)):
        if not there:
            shutil.rmtree(place(node.op_type, target))
        for threads in (1, 2):
            session = onnxruntime.compile(load_model(model), target, threads=threads)
            # One row, rows that share registers, and more than that; as many steps as are prepared at once, and others.
            for steps, rows in ((1, 1), (6, 1), (50, 1), (7, 2), (5, 3), (4, 5), (2, 7)):
                x = rng.standard_normal((steps, rows, 7)).astype(np.float32)
                for name, value in zip(("y", "last"), oracle.run(None, {"x": x}), strict=True):
                    np.testing.assert_allclose(session.run({"x": x})[name], value, rtol=1e-4, atol=1e-5)
            session.close()


def test_openvino_runs_it_too(tmp_path: Path) -> None:
    text = TWO.replace("[t,b,7]", "[9,2,7]").replace("[t,1,b,40]", "[9,1,2,40]").replace("[1,b,40]", "[1,2,40]")
    path = written(text, tmp_path / "in", weights(7, 40))
    misled(made := fused(path, tmp_path / "out"))
    model = load_model(made)
    assert openvino.refuse(model, local.detect()) is None
    session = openvino.compile(model, local.detect(), threads=2)
    x = np.random.default_rng(0).standard_normal((9, 2, 7)).astype(np.float32)
    for name, value in zip(("y", "last"), ReferenceEvaluator(str(path)).run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(session.run({"x": x})[name], value, rtol=1e-4, atol=1e-5)
    session.close()


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_vectors_of_every_width(lanes: int, tmp_path: Path) -> None:
    given = weights(7, 40)
    path = written(TWO, tmp_path / "in", given)
    proto = onnx.load(path)
    (stack,) = stacks(proto.graph, known := shapes(proto))
    code = re.sub(r"#define LANES \d+", f"#define LANES {lanes}", stack.code(local.detect(), known), count=1)
    library = Library(find().build(code), stack.operator().entry, ("t", "b"))
    rng = np.random.default_rng(0)
    for steps, rows in ((3, 1), (8, 4)):
        x = rng.standard_normal((steps, rows, 7)).astype(np.float32)
        y = np.full((steps, 1, rows, 40), np.nan, np.float32)
        arrays = [array for layer in stack.layers for array in layer.packed.arrays()]
        library([x, *arrays, y], {"t": steps, "b": rows})
        np.testing.assert_allclose(y, ReferenceEvaluator(proto).run(["y"], {"x": x})[0], rtol=1e-4, atol=1e-5)


def test_weights_are_only_put_in_another_order() -> None:
    given = weights(7)
    made = packed(given["w0"], given["r0"], given["b0"])
    w = made.entering.transpose(0, 2, 1).reshape(4, 64, 7)
    r = made.recurrent.transpose(2, 0, 3, 1).reshape(4, 64, 40)
    np.testing.assert_array_equal(w[:, :40], given["w0"].reshape(4, 40, 7))
    np.testing.assert_array_equal(r[:, :40], given["r0"].reshape(4, 40, 40))
    assert not w[:, 40:].any()
    assert not r[:, 40:].any()
    np.testing.assert_array_equal(made.bias.reshape(4, 64)[:, :40].reshape(-1), given["b0"].reshape(2, -1).sum(0))


def test_a_stack_ends_where_somebody_else_reads() -> None:
    text = f"""{HEAD}
    net (float[9,b,7] x) => (float[9,1,b,40] y, float[9,b,40] s) <int64[1] one = {{1}}> {{
      a = LSTM <hidden_size = 40> (x, w0, r0)  s = Squeeze (a, one)  y = LSTM <hidden_size = 40> (s, w1, r1)
    }}"""
    assert [len(stack.layers) for stack in found(text, weights(7, 40))] == [1, 1]
    inside = text.replace("float[9,1,b,40] y, float[9,b,40] s", "float[9,1,b,40] y")
    (stack,) = found(inside, weights(7, 40))
    assert [node.op_type for node in stack.nodes] == ["LSTM", "Squeeze", "LSTM"]
    assert (list(stack.inputs), list(stack.outputs)) == (["x", "w0", "r0", "w1", "r1"], ["y"])
    assert dict(stack.sizes) == {}
    turned = inside.replace("s = Squeeze (a, one)", "q = Transpose <perm = [0, 2, 1, 3]> (a)  s = Reshape (q, to)")
    turned = turned.replace("[9,b,7]", "[9,2,7]").replace("[9,1,b,40]", "[9,1,2,40]")
    turned = turned.replace("<int64[1] one = {1}>", "<int64[3] to = {9, 2, 40}>")
    assert [len(stack.layers) for stack in found(turned, weights(7, 40))] == [2]
    # Steps and rows change places there: it is the same shape where both are 9, and no longer the same numbers.
    mixed = (
        turned.replace("[0, 2, 1, 3]", "[2, 0, 1, 3]").replace("[9,2,7]", "[9,9,7]").replace("[9,1,2,40]", "[9,1,9,40]")
    )
    mixed = mixed.replace("{9, 2, 40}", "{9, 9, 40}")
    assert [len(stack.layers) for stack in found(mixed, weights(7, 40))] == [1, 1]


def test_layers_of_other_sizes_are_stacks_of_their_own() -> None:
    text = f"""{HEAD}
    net (float[9,b,7] x) => (float[9,1,b,24] y) <int64[1] one = {{1}}> {{
      a = LSTM <hidden_size = 40> (x, w0, r0)  s = Squeeze (a, one)  y = LSTM <hidden_size = 24> (s, w1, r1)
    }}"""
    small = {f"{name[0]}1": array for name, array in weights(40, hidden=24).items()}
    assert [len(stack.layers) for stack in found(text, {**weights(7), **small})] == [1, 1]


@pytest.mark.parametrize(
    "node",
    [
        "y = LSTM <hidden_size = 40, clip = 1.0> (x, w0, r0)",
        'y = LSTM <hidden_size = 40, direction = "reverse"> (x, w0, r0)',
        'y = LSTM <hidden_size = 40, activations = ["Sigmoid", "Relu", "Tanh"]> (x, w0, r0)',
        "y = LSTM <hidden_size = 40, input_forget = 1> (x, w0, r0)",
        "y = LSTM <hidden_size = 40> (x, w0, r0, , , begun)",
        "y = LSTM <hidden_size = 40> (x, w0, r0, , lengths)",
        "y = LSTM <hidden_size = 40> (x, w0, r0, , , , , p)",
        "w = Neg (w0)  y = LSTM <hidden_size = 40> (x, w, r0)",
        "y = LSTM <hidden_size = 40> (x, r0, w0)",
        "y = LSTM <hidden_size = 40> (x, w0, r0, p)",
        "y, h, c = LSTM <hidden_size = 40> (x, w0, r0)  z = Exp (c)",
    ],
)
def test_more_than_the_kernel_can_is_left_alone(node: str) -> None:
    z = ", float[1,2,40] z" if "z =" in node else ""
    text = f"""{HEAD}
    net (float[9,2,7] x) => (float[9,1,2,40] y{z})
    <float[1,2,40] begun = {{{", ".join(["1"] * 80)}}}, int32[2] lengths = {{9, 8}}> {{ {node} }}"""
    given = {**weights(7), "p": np.ones((1, 120), np.float32)}
    assert found(text, given) == []
    plain = "y = LSTM <hidden_size = 40> (x, w0, r0)"
    assert len(found(text.replace(node, plain).replace(z, ""), given)) == 1


def test_a_slower_kernel_is_not_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(TWO, tmp_path / "in", weights(7, 40))
    monkeypatch.setattr(race, "contested", lambda *arguments: 1.05)
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=r"is 1\.1 times as fast"):
        fuse(load_model(path), Context(tmp_path / "out", local.detect()))


def test_a_wrong_kernel_is_not_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(TWO, tmp_path / "in", weights(7, 40))
    right = Stack.code
    wrong = "v_sigmoid(sum[i][2][q])", "v_tanh(sum[i][2][q])"
    monkeypatch.setattr(Stack, "code", lambda self, *given: right(self, *given).replace(*wrong))
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=r"is 0\.1 times as fast"):
        fuse(load_model(path), Context(tmp_path / "out", local.detect()), gain=0.1)
