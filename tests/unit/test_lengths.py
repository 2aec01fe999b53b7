"""Where operators let a length through: what a rule says of an operator is what the operator does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper as nh
from onnx.reference import ReferenceEvaluator

from portolan.passes._cutting import Cutter
from portolan.passes._lengths import Stuck, follow
from portolan.passes._surgery import Constants

FULL = 6
#: Each operator over `x`, of [2, 6, 4] with positions in the middle, and where positions are in `y`.
THROUGH = {
    "y = Relu (x)": {1},
    "y = Add (x, row)": {1},
    "y = Add (table, x)": {1},
    "y = Where (flags, x, row)": {1},
    "y = Transpose <perm=[2,0,1]> (x)": {2},
    "y = Transpose (x)": {1},
    "y = MatMul (x, w)": {1},
    "z = Transpose <perm=[0,2,1]> (x) y = MatMul (x, z)": {1, 2},
    "z = Transpose <perm=[0,2,1]> (x) y = MatMul (z, x)": set(),
    "z = Transpose <perm=[0,2,1]> (x) y = MatMul (z, mix)": set(),
    "s = Shape <start=0, end=1> (x) t = Concat <axis=0> (s, six, two, two) y = Reshape (x, t)": {1},
    "y = Reshape (x, heads)": {1},
    "z = Slice (x, nil, one, nil) y = Reshape (z, rows)": {0},
    "y = Unsqueeze (x, one)": {2},
    "z = Unsqueeze (x, one) y = Squeeze (z, one)": {1},
    "z = Unsqueeze (x, one) y = Expand (z, wide)": {2},
    "y = Softmax <axis=1> (x)": {1},
    "y = LayerNormalization <axis=-1> (x, scale)": {1},
    "y = ReduceSum <keepdims=0> (x, one)": set(),
    "y = ReduceMax <keepdims=1> (x, two)": {1},
    "y = ReduceMean <keepdims=0> (x, nil)": {0},
    "y = ArgMax <axis=1, keepdims=0> (x)": set(),
    "y = Concat <axis=2> (x, x)": {1},
    "y = Concat <axis=2> (x, table)": {1},
    "y, z = Split <axis=2, num_outputs=2> (x)": {1},
    "y = Slice (x, nil, one, two)": {1},
    "y = Slice (x, nil, one, one)": set(),
    "y = Gather <axis=2> (x, nil)": {1},
    "y = Gather <axis=1> (x, nil)": set(),
    "z = ArgMax <axis=2, keepdims=0> (x) y = Gather <axis=0> (w, z)": {1},
    "z = ArgMax <axis=2, keepdims=1> (x) y = GatherElements <axis=2> (x, z)": {1},
    "y = CumSum (x, one0)": {1},
    "y = Shape (x)": set(),
    "y = Attention <q_num_heads=2, kv_num_heads=2> (x, table, table)": {1},
    "y = Attention <q_num_heads=2, kv_num_heads=2> (table, x, x)": set(),
    "y = Attention <q_num_heads=2, kv_num_heads=2> (x, x, x, square)": {1},
    "z = Reshape (x, split) u = Transpose <perm=[0,2,1,3]> (z) y = Attention (u, u, u, square)": {2},
    "y = RotaryEmbedding <num_heads=2> (x, angles, angles)": {1},
    "y = RotaryEmbedding <num_heads=2> (x, turns, turns, order)": {1},
}
STUCK = {
    "y = Reshape (x, flat)": "puts positions on one axis with something else",
    "y = Reshape (x, joined)": "puts positions on one axis with something else",
    "y = LayerNormalization <axis=1> (x, scale2)": "normalises over all positions",
    "y = ReduceMean <keepdims=0> (x, one)": "takes the mean over all positions",
    "y = Concat <axis=1> (x, x)": "puts something before or behind the positions",
    "y, z = Split <axis=1, num_outputs=2> (x)": "splits the positions",
    "y = Slice (x, one, two, one)": "takes other positions than the first",
    "y = Gather <axis=1> (x, one)": "takes other positions than the first",
    "y = GatherElements <axis=1> (x, places)": "takes positions by number",
    "y = Attention <q_num_heads=2, kv_num_heads=2> (x, x, x, , past, past)": "has other positions than those",
    "y, k, v = Attention <q_num_heads=2, kv_num_heads=2> (x, x, x)": "gives its output 1, which grows",
    "z = Transpose <perm=[0,2,1]> (x) y = RotaryEmbedding <num_heads=1> (z, row, row)": "has other positions",
    "y = Conv (x, filter)": "no rule says what Conv",
    "z = Identity (table) w2 = Softmax <axis=-1> (z) y = Add (x, w2)": "whose length is its own",
}
CONSTANTS = {
    "row": np.random.default_rng(1).standard_normal((FULL, 4)).astype("f4"),
    "table": np.random.default_rng(2).standard_normal((2, FULL, 4)).astype("f4"),
    "flags": np.random.default_rng(3).random((2, FULL, 1)) > 0.5,
    "w": np.random.default_rng(4).standard_normal((4, 3)).astype("f4"),
    "mix": np.random.default_rng(5).standard_normal((FULL, 5)).astype("f4"),
    "filter": np.random.default_rng(6).standard_normal((3, FULL, 1)).astype("f4"),
    "scale": np.ones(4, "f4"),
    "scale2": np.ones((FULL, 4), "f4"),
    "square": np.triu(np.full((FULL, FULL), -1e4, "f4"), 1),
    "past": np.zeros((2, 2, 3, 2), "f4"),
    "angles": np.random.default_rng(7).standard_normal((2, FULL, 1)).astype("f4"),
    "turns": np.random.default_rng(8).standard_normal((9, 1)).astype("f4"),
    "order": np.tile(np.arange(FULL), (2, 1)),
    "split": np.array([2, FULL, 2, 2]),
    "heads": np.array([2, FULL, 2, 2]),
    "joined": np.array([2 * FULL, 4]),
    "rows": np.array([FULL, 4]),
    "flat": np.array([2, FULL * 4]),
    "wide": np.array([2, 3, FULL, 4]),
    "places": np.zeros((2, FULL, 4), np.int64),
    "nil": np.array([0]), "one": np.array([1]), "two": np.array([2]), "six": np.array([FULL]), "one0": np.array(1),
}  # fmt: skip


def small(text: str) -> onnx.ModelProto:
    """A graph of few operators over `x`, whose middle axis holds the positions that `mask` says are real."""
    head = f'<ir_version: 11, opset_import: ["": 23]> net (float[2,{FULL},4] x, int64[2,{FULL}] mask) => (float[n] y)'
    model = onnx.parser.parse_model(f"{head} {{ {text} }}")
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name="y"))
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(nh.from_array(a, n) for n, a in CONSTANTS.items() if n in used)
    return model


def answer(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return ReferenceEvaluator(model).run(["y"], feeds)[0]


@pytest.mark.parametrize("text", THROUGH)
def test_a_rule_says_what_its_operator_does(text: str) -> None:
    """Cut before it or behind it, an operator gives the same, where it does not mix positions."""
    model = small(text)
    x, mask = np.random.default_rng(0).standard_normal((2, FULL, 4)).astype("f4"), np.zeros((2, FULL), np.int64)
    mask[:, :4] = 1
    whole = answer(model, {"x": x, "mask": mask})
    constants = Constants(model)
    lengths, cutter = follow(model, constants, ["x"], 1, FULL), Cutter(model, constants)
    assert lengths.at("y") == THROUGH[text]
    cutter.measure("mask", 0, FULL, 1)
    cutter.fit(lengths)
    cutter.shorten(["x"], 1)
    cutter.finish()
    got = answer(model, {"x": x, "mask": mask})
    if THROUGH[text] and "Softmax" not in text:
        kept = whole[tuple(slice(4) if axis in THROUGH[text] else slice(None) for axis in range(whole.ndim))]
        np.testing.assert_allclose(got, kept, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", STUCK)
def test_where_a_length_cannot_go(text: str) -> None:
    model = small(text)
    with pytest.raises(Stuck, match=STUCK[text]):
        follow(model, Constants(model), ["x"], 1, FULL)
