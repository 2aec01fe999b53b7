"""Networks for tests of pruning and factorization, made with onnx.helper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper as oh
from onnx import numpy_helper as nh

from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context, Pass
from portolan.testing.models import this_machine

FLOAT = onnx.TensorProto.FLOAT
node = oh.make_node


def normal(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def low_rank(rows: int, columns: int, rank: int, seed: int = 5) -> np.ndarray:
    return (normal(rows, rank, seed=seed) @ normal(rank, columns, seed=seed + 1) / np.sqrt(rank * rows)).astype("f4")


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Any],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    opset: int = 20,
) -> Model:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = [nh.from_array(np.asarray(value), name) for name, value in weights.items()]
    sides = [[oh.make_tensor_value_info(n, FLOAT, s) for n, s in side.items()] for side in (inputs, outputs)]
    graph = oh.make_graph(list(nodes), "g", *sides, tensors)
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=9), path)
    return load_model(path)


def apply(pass_: Pass, model: Model, out: Path, calibration: object = None, **options: object) -> Model:
    out.mkdir(parents=True)
    result = pass_(model, Context(out, this_machine(), calibration), **options)  # type: ignore[arg-type]
    proto = onnx.load(result.path)
    onnx.checker.check_model(proto, full_check=True)
    assert not proto.graph.value_info
    read = {name for n in proto.graph.node for name in n.input} | {value.name for value in proto.graph.output}
    assert {tensor.name for tensor in proto.graph.initializer} <= read
    return result


def constants(model: Model) -> dict[str, np.ndarray]:
    return {tensor.name: nh.to_array(tensor) for tensor in onnx.load(model.path).graph.initializer}


def perceptron(path: Path, hidden: int = 64, w1: np.ndarray | None = None, w2: np.ndarray | None = None) -> Model:
    """MatMul, Add, GELU spelled out, MatMul: 32 wide, a free batch and 5 tokens."""
    nodes = [
        node("MatMul", ["x", "w1"], ["u"], name="up"),
        node("Add", ["u", "b1"], ["ub"]),
        node("Div", ["ub", "root"], ["d"]),
        node("Erf", ["d"], ["e"]),
        node("Add", ["e", "one"], ["e1"]),
        node("Mul", ["ub", "e1"], ["g"]),
        node("Mul", ["g", "half"], ["h"]),
        node("MatMul", ["h", "w2"], ["z"], name="down"),
        node("Add", ["z", "b2"], ["y"]),
    ]
    weights = {
        "w1": normal(32, hidden) / 5 if w1 is None else w1,
        "w2": normal(hidden, 32, seed=4) / 8 if w2 is None else w2,
        "b1": normal(hidden, seed=7),
        "b2": normal(32, seed=8),
        "root": np.float32(2**0.5),
        "one": np.float32(1),
        "half": np.float32(0.5),
    }
    return save(path, nodes, weights, {"x": ["batch", 5, 32]}, {"y": ["batch", 5, 32]})


def residual(path: Path, width: int = 32, **replaced: np.ndarray) -> Model:
    """A stem, a residual block, a depthwise and a pointwise convolution, a pooled classifier; a free batch."""
    nodes = [
        node("Conv", ["image", "stem", "stem_b"], ["s"], pads=[1, 1, 1, 1]),
        node("Relu", ["s"], ["sr"]),
        node("Conv", ["sr", "k1", "k1_b"], ["a"], pads=[1, 1, 1, 1]),
        node("Clip", ["a", "zero", "six"], ["ar"]),
        node("Conv", ["ar", "k2"], ["b"], pads=[1, 1, 1, 1]),
        node("Add", ["b", "sr"], ["sum"]),
        node("Relu", ["sum"], ["r"]),
        node("Conv", ["r", "dw", "dw_b"], ["dwo"], group=width, strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["dwo"], ["dwr"]),
        node("Conv", ["dwr", "pw"], ["p"]),
        node("BatchNormalization", ["p", "g", "gb", "gm", "gv"], ["n"]),
        node("Relu", ["n"], ["nr"]),
        node("MaxPool", ["nr"], ["mp"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["mp"], ["f"]),
        node("Gemm", ["f", "w", "wb"], ["y"], transB=1),
    ]
    weights: dict[str, Any] = {
        "stem": normal(width, 3, 3, 3) / 5, "stem_b": normal(width), "k1": normal(width, width, 3, 3, seed=4) / 17,
        "k1_b": normal(width, seed=5), "k2": normal(width, width, 3, 3, seed=6) / 17, "dw": normal(width, 1, 3, 3) / 3,
        "dw_b": normal(width, seed=8), "pw": normal(2 * width, width, 1, 1, seed=9) / 6, "g": 1 + normal(2 * width) / 9,
        "gb": normal(2 * width, seed=11), "gm": normal(2 * width, seed=12), "gv": np.ones(2 * width, "f4"),
        "w": normal(10, 8 * width, seed=13) / 16, "wb": normal(10), "zero": np.float32(0), "six": np.float32(6),
    }  # fmt: skip
    return save(path, nodes, weights | replaced, {"image": ["batch", 3, 8, 8]}, {"y": ["batch", 10]})


def attention(
    path: Path, *, fused: bool = False, listed: bool = False, heads: int = 4, **replaced: np.ndarray
) -> Model:
    """Self-attention over 6 tokens, 32 wide, with a residual around it.

    Args:
        path: the file.
        fused: one product for q, k and v, split by Reshape to [batch, 6, 3, heads, size].
        listed: the sizes of a Reshape are put together by Concat, as exporters do for a free batch.
        heads: how many.
        replaced: weights.
    """
    size = 32 // heads
    weights: dict[str, Any] = {"wo": normal(32, 32, seed=4) / 6, "scale": np.float32(size**-0.5)}
    if fused:
        weights |= {"wqkv": normal(32, 96) / 6, "bqkv": normal(96, seed=5), "split": np.array([0, 6, 3, heads, size])}
        weights |= {"merge": np.array([-1, 6, 32])} | {f"i{i}": np.array(i) for i in range(3)}
        weights["split"][0] = -1
        nodes = [
            node("MatMul", ["x", "wqkv"], ["qkv0"]),
            node("Add", ["qkv0", "bqkv"], ["qkv"]),
            node("Reshape", ["qkv", "split"], ["five"]),
            node("Transpose", ["five"], ["turned"], perm=[2, 0, 3, 1, 4]),
            *(node("Gather", ["turned", f"i{i}"], [name], axis=0) for i, name in enumerate("qkv")),
        ]
    else:
        weights |= {f"w{name}": normal(32, 32, seed=i) / 6 for i, name in enumerate("qkv")}
        weights |= {f"b{name}": normal(32, seed=9 + i) for i, name in enumerate("qkv")}
        weights |= {"split": np.array([-1, 6, heads, size]), "merge": np.array([-1, 6, 32])}
        nodes = []
        shape = "split"
        if listed:
            weights |= {"first": np.array([0]), "six": np.array([6]), "sizes": np.array([heads, size])}
            nodes += [
                node("Shape", ["x"], ["whole"]),
                node("Gather", ["whole", "first"], ["batch"]),
                node("Concat", ["batch", "six", "sizes"], ["four"], axis=0),
            ]
            shape = "four"
        for name in "qkv":
            nodes += [
                node("MatMul", ["x", f"w{name}"], [f"{name}0"]),
                node("Add", [f"{name}0", f"b{name}"], [f"{name}1"]),
                node("Reshape", [f"{name}1", shape], [f"{name}2"]),
                node("Transpose", [f"{name}2"], [name], perm=[0, 2, 1, 3]),
            ]
    nodes += [
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "kt"], ["s0"]),
        node("Mul", ["s0", "scale"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["c"]),
        node("Transpose", ["c"], ["ct"], perm=[0, 2, 1, 3]),
        node("Reshape", ["ct", "merge"], ["m"]),
        node("MatMul", ["m", "wo"], ["o"]),
        node("Add", ["o", "x"], ["y"]),
    ]
    return save(path, nodes, weights | replaced, {"x": ["batch", 6, 32]}, {"y": ["batch", 6, 32]})
