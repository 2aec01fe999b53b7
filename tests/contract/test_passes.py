"""The built-in passes keep the contract."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context
from portolan.filtering import winograd
from portolan.fusing import fuse
from portolan.passes.decompose import decompose
from portolan.passes.distill import distill
from portolan.passes.finetune import finetune
from portolan.passes.mixed_precision import mixed_precision
from portolan.passes.prune import prune
from portolan.passes.quantize import quantize
from portolan.passes.simplify import simplify
from portolan.passes.trim import trim
from portolan.testing.models import (
    Case,
    case,
    cases,
    convolutions,
    external,
    perceptron,
    this_machine,
    tokens,
    unsupported,
)
from portolan.testing.passes import SAMPLES, PassContract


def quantized(folder: Path) -> Model:
    model = perceptron(folder).model
    out = folder / "quantized"
    out.mkdir()
    # Read anew, as a file of anybody's: only its operators tell.
    return load_model(quantize(load_model(model.path), Context(out, this_machine())).path)


def padded(folder: Path) -> Case:
    """Words averaged where a mask says so: a free number of rows, a fixed length."""
    text = """
    <ir_version: 8, opset_import: ["": 18]>
    net (int64[n,16] ids, int64[n,16] mask) => (float[n,12] y)
    <float[50,12] table, int64[1] last = {-1}, int64[1] one = {1}> {
      e = Gather (table, ids)  m = Cast <to=1> (mask)  u = Unsqueeze (m, last)  k = Mul (e, u)
      s = ReduceSum <keepdims=0> (k, one)  c = ReduceSum (m, one)  y = Div (s, c)
    }"""
    graph = onnx.parser.parse_model(text).graph
    random = np.random.default_rng(0)
    graph.initializer.append(onnx.numpy_helper.from_array(random.standard_normal((50, 12)).astype(np.float32), "table"))
    few, many = (sentences(rows) for rows in (2, 5))
    return case(folder, "padded", graph, few, many)


def sentences(rows: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(rows)
    ends = random.integers(1, 12, (rows, 1))
    return {"ids": random.integers(0, 50, (rows, 16)), "mask": (np.arange(16) < ends).astype(np.int64)}


def filtered(folder: Path) -> Case:
    """Two convolutions of 3 by 3 with what is added to the second: a free number of images, and of rows and columns."""
    text = """
    <ir_version: 8, opset_import: ["": 18]>
    net (float[n,32,h,w] x) => (float[n,32,h,w] y) {
      a = Conv <pads = [1, 1, 1, 1]> (x, k, b)  r = Relu (a)
      c = Conv <pads = [1, 1, 1, 1]> (r, k, b)  s = Add (c, x)  y = Relu (s)
    }"""
    graph, random = onnx.parser.parse_model(text).graph, np.random.default_rng(0)
    sides = {"k": (32, 32, 3, 3), "b": (32,)}
    given = {name: (random.standard_normal(side) / 17).astype(np.float32) for name, side in sides.items()}
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in given.items())
    few, many = (random.standard_normal((n, 32, 9, 6)).astype(np.float32) for n in (1, 3))
    return case(folder, "filtered", graph, {"x": few}, {"x": many})


class TestTrim(PassContract):
    pass_ = trim
    options = ({}, {"multiple": 1})
    evidence = {"length:trimmed": lambda operators, kinds: "Slice" in operators}

    def cases(self, folder: Path) -> list[Case]:
        return [padded(folder)]

    def samples(self, case: Case) -> Mapping[str, np.ndarray]:
        return sentences(SAMPLES)

    def unsuited(self, folder: Path) -> list[tuple[Model, Mapping[str, Any]]]:
        return [(perceptron(folder).model, {}), (padded(folder).model, {"mask": "y"})]


class TestSimplify(PassContract):
    pass_ = simplify

    def unsuited(self, folder: Path) -> list[tuple[Model, Mapping[str, Any]]]:
        return [(quantized(folder), {})]


def normalised(folder: Path) -> Case:
    """A root mean square and a gate behind it, over a free number of rows."""
    text = """
    <ir_version: 8, opset_import: ["": 18]>
    net (float[n,24] x) => (float[n,24] y)
    <float[24] g, float two = {2}, float eps = {0.001}, float half = {0.5}, int64[1] last = {-1}> {
      s = Pow (x, two)  m = ReduceMean (s, last)  e = Add (m, eps)  r = Sqrt (e)  d = Div (x, r)  a = Mul (d, g)
      t = Tanh (a)  u = Mul (t, half)  y = Add (u, a)
    }"""
    graph = onnx.parser.parse_model(text).graph
    random = np.random.default_rng(0)
    graph.initializer.append(onnx.numpy_helper.from_array(random.standard_normal(24).astype(np.float32), "g"))
    few, many = ({"x": random.standard_normal((rows, 24)).astype(np.float32)} for rows in (5, 37))
    return case(folder, "normalised", graph, few, many)


@pytest.mark.skipif(not any(map(shutil.which, ("gcc", "clang", "cc"))), reason="needs a C compiler")
class TestFuse(PassContract):
    pass_ = fuse
    options = ({"gain": 0.0},)
    # Constants are folded in graphs: what is left of them is in the bodies of the operators that were put in.
    evidence = {"kernels": lambda operators, kinds: "Constant" in operators}

    def cases(self, folder: Path) -> list[Case]:
        return [normalised(folder)]

    def unsuited(self, folder: Path) -> list[tuple[Model, Mapping[str, Any]]]:
        return [(quantized(folder), {}), (load_model(perceptron(folder).model.path), {})]


class TestWinograd(PassContract):
    pass_ = winograd
    options = ({"gain": 0.0},)
    # The graph stays as it is: what is noted beside it, tests/e2e/test_winograd.py looks at.
    evidence = {"convolutions:winograd": lambda operators, kinds: set(operators) == {"Conv", "Relu", "Add"}}

    def cases(self, folder: Path) -> list[Case]:
        return [filtered(folder)]

    def unsuited(self, folder: Path) -> list[tuple[Model, Mapping[str, Any]]]:
        return [(quantized(folder), {}), (load_model(perceptron(folder).model.path), {})]


class TestQuantize(PassContract):
    pass_ = quantize
    options = (
        {},
        {"mode": "static"},
        {"mode": "static", "calibrator": "percentile"},
        {"mode": "static", "calibrator": "entropy"},
        {"mode": "static", "calibrator": "mse", "smooth": 0.5, "signed": True},
        {"mode": "static", "per_channel": False},
        {"mode": "dynamic", "per_channel": False},
    )

    def unsuited(self, folder: Path) -> list[tuple[Model, Mapping[str, Any]]]:
        lookup = load_model(tokens(folder).model.path)
        done = quantized(folder)
        return [(lookup, {}), (lookup, {"mode": "static"}), (done, {}), (done, {"mode": "static"})]


def moved(model: Model, folder: Path) -> Model:
    """The same network with other weights nearby, so that there is something to learn."""
    proto, random = onnx.load(model.path), np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            noise = 0.05 * values.std() * random.standard_normal(values.shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array((values + noise).astype(np.float32), tensor.name))
    folder.mkdir(parents=True)
    onnx.save(proto, folder / "original.onnx")
    return load_model(folder / "original.onnx")


class Training(PassContract):
    def cases(self, folder: Path) -> list[Case]:
        """All but the one whose table has fewer rows than made-up ids run to."""
        return [case for case in super().cases(folder) if case.name != "tokens"]

    def original(self, case: Case, folder: Path) -> Model:
        return moved(case.model, folder)

    def unsuited(self, folder: Path) -> list[tuple[Model, Mapping[str, Any]]]:
        return [(quantized(folder), {}), (unsupported(folder), {})]


@pytest.mark.torch
class TestFinetune(Training):
    pass_ = finetune
    options = ({"steps": 4, "batch": 8},)


@pytest.mark.torch
class TestDistill(Training):
    pass_ = distill
    options = ({"steps": 2, "threads": 1},)


def always(operators: Mapping[str, int], kinds: Mapping[str, int]) -> bool:
    """Counts of operators do not show it: the unit tests look at shapes and zeros."""
    return sum(operators.values()) > 0 and kinds.get("float32", 0) > 0


class TestPruneZeros(PassContract):
    pass_ = prune
    options = ({"ratio": 0.1}, {"ratio": 0.1, "scope": "global", "score": "magnitude"}, {"kind": "2:4"})
    evidence = {"sparsity:unstructured": always, "sparsity:2:4": always}
    loose = 0.9

    def cases(self, folder: Path) -> list[Case]:
        return [perceptron(folder), external(folder)]

    def unsuited(self, folder: Path) -> list[tuple[Model, Mapping[str, Any]]]:
        lookup = load_model(tokens(folder).model.path)
        return [(lookup, {}), (lookup, {"kind": "2:4"}), (quantized(folder), {})]


class TestPruneShapes(PassContract):
    pass_ = prune
    options = ({"kind": "neurons", "ratio": 0.25}, {"kind": "neurons", "ratio": 0.25, "score": "magnitude"})
    evidence = {"shape:pruned": always}
    loose = 0.9

    def cases(self, folder: Path) -> list[Case]:
        return [perceptron(folder), external(folder)]

    def unsuited(self, folder: Path) -> list[tuple[Model, Mapping[str, Any]]]:
        pictures = load_model(convolutions(folder).model.path)
        return [(pictures, {"kind": "heads"}), (quantized(folder), {"kind": "neurons"})]


def weighted(folder: Path, name: str, text: str, sizes: Mapping[str, tuple[int, ...]], *shape: int) -> Case:
    """A graph with weights of these sizes, and inputs for three and for five samples of `shape`."""
    graph, random = onnx.parser.parse_model(text).graph, np.random.default_rng(0)
    for weight, size in sizes.items():
        values = (random.standard_normal(size) / np.sqrt(np.prod(size[1:]))).astype(np.float32)
        graph.initializer.append(onnx.numpy_helper.from_array(values, weight))
    few, many = ({"x": random.standard_normal((rows, *shape)).astype(np.float32)} for rows in (3, 5))
    return case(folder, name, graph, few, many)


def pictures(folder: Path) -> Case:
    """Two convolutions and a classifier."""
    text = """
    <ir_version: 8, opset_import: ["": 18]>
    net (float[n,4,8,8] x) => (float[n,5] y) {
      a = Conv <pads=[1,1,1,1]> (x, k1, c1)  b = Relu (a)  c = Conv <pads=[1,1,1,1]> (b, k2, c2)  d = Relu (c)
      e = GlobalAveragePool (d)  f = Flatten (e)  y = Gemm (f, w)
    }"""
    sizes = {"k1": (16, 4, 3, 3), "c1": (16,), "k2": (16, 16, 3, 3), "c2": (16,), "w": (16, 5)}
    return weighted(folder, "pictures", text, sizes, 4, 8, 8)


def attention(folder: Path) -> Case:
    """Four heads over six tokens of 32 numbers, and what was there before added to it."""
    text = """
    <ir_version: 8, opset_import: ["": 18]>
    net (float[n,6,32] x) => (float[n,6,32] y)
    <int64[4] split = {-1, 6, 4, 8}, int64[3] merge = {-1, 6, 32}, float scale = {0.35}> {
      q0 = MatMul (x, wq)  q1 = Reshape (q0, split)  q = Transpose <perm=[0,2,1,3]> (q1)
      k0 = MatMul (x, wk)  k1 = Reshape (k0, split)  k = Transpose <perm=[0,2,3,1]> (k1)
      v0 = MatMul (x, wv)  v1 = Reshape (v0, split)  v = Transpose <perm=[0,2,1,3]> (v1)
      s0 = MatMul (q, k)  s = Mul (s0, scale)  p = Softmax <axis=-1> (s)  c = MatMul (p, v)
      t = Transpose <perm=[0,2,1,3]> (c)  m = Reshape (t, merge)  o = MatMul (m, wo)  y = Add (o, x)
    }"""
    return weighted(folder, "attention", text, {f"w{name}": (32, 32) for name in "qkvo"}, 6, 32)


class TestPruneChannels(PassContract):
    pass_ = prune
    options = ({"kind": "channels", "ratio": 0.25, "align": 1}, {"kind": "channels", "score": "magnitude"})
    evidence = {"shape:pruned": always}
    loose = 0.99

    def cases(self, folder: Path) -> list[Case]:
        return [pictures(folder)]

    def unsuited(self, folder: Path) -> list[tuple[Model, Mapping[str, Any]]]:
        return [(load_model(perceptron(folder).model.path), {"kind": "channels"})]


class TestPruneHeads(PassContract):
    pass_ = prune
    options = ({"kind": "heads", "ratio": 0.25}, {"kind": "heads", "ratio": 0.5, "score": "magnitude"})
    evidence = {"shape:pruned": always}
    loose = 0.9

    def cases(self, folder: Path) -> list[Case]:
        return [attention(folder)]


class TestDecomposeConvolutions(PassContract):
    pass_ = decompose
    options = ({"method": "tucker", "keep": 0.8, "align": 1}, {"method": "cp", "keep": 0.8, "align": 1})
    evidence = {"shape:tucker": always, "shape:cp": always}
    loose = 0.99

    def cases(self, folder: Path) -> list[Case]:
        return [pictures(folder)]


class TestDecompose(PassContract):
    pass_ = decompose
    options = ({"keep": 0.9, "align": 1}, {"score": "magnitude", "keep": 0.9, "align": 1}, {"method": "tt", "align": 1})
    evidence = {"shape:lowrank": always, "shape:tt": always}
    loose = 0.99

    def cases(self, folder: Path) -> list[Case]:
        return [perceptron(folder), external(folder)]

    def unsuited(self, folder: Path) -> list[tuple[Model, Mapping[str, Any]]]:
        flat = load_model(perceptron(folder).model.path)
        return [(flat, {"method": "tucker"}), (flat, {"method": "cp"}), (quantized(folder), {})]


class TestWeights(PassContract):
    """Weight-only quantization. 2 bits of random weights leave little: what they compute is tested beside."""

    pass_ = quantize
    loose = 0.9
    options = (
        {"mode": "weights"},
        {"mode": "weights", "bits": 4},
        {"mode": "weights", "bits": 4, "method": "hqq", "group": 16},
        {"mode": "weights", "bits": 2, "method": "rtn", "group": 16},
    )

    def unsuited(self, folder: Path) -> list[tuple[Model, Mapping[str, Any]]]:
        done = quantized(folder)
        return [(done, {"mode": "weights"}), (done, {"mode": "float16"}), (done, {"bits": 4})]


class TestSixteenBits(PassContract):
    pass_ = quantize
    loose = 0.01
    options = ({"mode": "float16"}, {"mode": "bfloat16"})

    def cases(self, folder: Path) -> list[Case]:
        # A few dozen weights stay as they are: a model with no more has nothing to store.
        return [case for case in cases(folder) if case.name != "several-outputs"]


class TestMixedPrecision(PassContract):
    pass_ = mixed_precision
    options = ({}, {"smaller": 3.0})

    def cases(self, folder: Path) -> list[Case]:
        # Samples of `tokens` are made up and name entries that its table does not have.
        return [case for case in cases(folder) if case.name in ("perceptron", "external")]

    def unsuited(self, folder: Path) -> list[tuple[Model, Mapping[str, Any]]]:
        return [(quantized(folder), {})]
