"""simplify: trees behind a Scaler compare with what came in, and answer as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper as oh

from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context
from portolan.passes._trees import unscaled
from portolan.passes.simplify import simplify
from portolan.testing.models import this_machine

ML = "ai.onnx.ml"
FLOATS = st.floats(width=32, allow_nan=False)
ORDINARY = st.floats(-(2**20), 2**20, width=32)
FACTORS = st.floats(2**-20, 2**20, width=32)


@given(FLOATS, ORDINARY, ORDINARY, FACTORS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_value_is_on_the_same_side_scaled_or_not(
    value: float, threshold: float, offset: float, scale: float, with_equal: bool
) -> None:
    x, t, o, s = (np.float32([number]) for number in (value, threshold, offset, scale))
    found = unscaled(t, o, s, np.array([with_equal]))
    near = np.concatenate([x, found, np.nextafter(found, np.float32(np.inf)), np.nextafter(found, np.float32(-np.inf))])
    with np.errstate(over="ignore"):
        scaled = (near - o) * s
    if with_equal:
        np.testing.assert_array_equal(near <= found, scaled <= t)
    else:
        np.testing.assert_array_equal(near < found, scaled < t)


def forest(
    folder: Path,
    *,
    mode: str = "BRANCH_LEQ",
    offset: tuple[float, ...] = (0.1, -2.0, 1e-3),
    scale: tuple[float, ...] = (0.7, 3.1, 12.7),
    twice: bool = False,
    double: bool = False,
    without: str = "",
) -> Model:
    """Regression trees of depth 1, one per feature, behind a Scaler. `twice`: what it gives is an output, too."""
    number = onnx.TensorProto.DOUBLE if double else onnx.TensorProto.FLOAT
    count = 3
    tree = {
        "nodes_treeids": [t for t in range(count) for _ in range(3)],
        "nodes_nodeids": [0, 1, 2] * count,
        "nodes_featureids": [f for f in range(count) for _ in range(3)],
        "nodes_modes": [mode, "LEAF", "LEAF"] * count,
        "nodes_values": [v for f in range(count) for v in (0.3 * f - 0.2, 0.0, 0.0)],
        "nodes_truenodeids": [1, 0, 0] * count,
        "nodes_falsenodeids": [2, 0, 0] * count,
        "target_treeids": [t for t in range(count) for _ in range(2)],
        "target_nodeids": [1, 2] * count,
        "target_ids": [0] * 2 * count,
        "target_weights": [float(2**n) for n in range(2 * count)],
    }
    tree.pop(without, None)
    nodes = [
        oh.make_node("Scaler", ["x"], ["s"], domain=ML, offset=offset, scale=scale),
        oh.make_node("TreeEnsembleRegressor", ["s"], ["y"], domain=ML, n_targets=1, **tree),
    ]
    outputs = [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 1])]
    if twice:
        outputs.append(oh.make_tensor_value_info("s", onnx.TensorProto.FLOAT, ["n", count]))
    graph = oh.make_graph(nodes, "g", [oh.make_tensor_value_info("x", number, ["n", count])], outputs)
    opsets = [oh.make_opsetid("", 18), oh.make_opsetid(ML, 3)]
    onnx.save(oh.make_model(graph, opset_imports=opsets, ir_version=9), folder / "forest.onnx")
    return load_model(folder / "forest.onnx")


def simplified(model: Model, folder: Path) -> Model:
    (folder / "out").mkdir()
    return simplify(model, Context(folder / "out", this_machine()))


def answer(model: Model, rows: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(model.path).run(None, {"x": rows})[0]


@pytest.mark.parametrize(
    "given",
    [
        *({"mode": mode} for mode in ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GT", "BRANCH_GTE")),
        {"offset": (0.4,), "scale": (1.3,)},  # one of each for all features
    ],
    ids=str,
)
def test_a_scaler_in_front_of_trees_is_gone_and_the_answers_are_the_same(tmp_path: Path, given: dict) -> None:
    model = forest(tmp_path, **given)
    found = simplified(model, tmp_path)
    assert found.operators == {"TreeEnsembleRegressor": 1}
    nodes = onnx.load(found.path).graph.node[0].attribute
    edges = np.float32(next(a.floats for a in nodes if a.name == "nodes_values"))[::3]
    rows = np.random.default_rng(0).standard_normal((5000, 3)).astype(np.float32)
    near = [np.nextafter(edges, np.float32(side)) for side in (-np.inf, np.inf)]
    odd = [np.full(3, value, np.float32) for value in (np.nan, np.inf, -np.inf, 0.0, 3e38, -3e38)]
    rows = np.concatenate([rows, [edges, *near, *odd]])
    np.testing.assert_array_equal(answer(found, rows), answer(model, rows))
    assert len(np.unique(answer(model, rows))) == 8  # every side of every tree was seen


@pytest.mark.parametrize(
    "kept",
    [
        {"scale": (0.7, -1.0, 1.0)},
        {"scale": (0.7, 0.0, 1.0)},
        {"scale": (0.7, 1.0)},
        {"mode": "BRANCH_EQ"},
        {"without": "nodes_modes"},
        {"twice": True},
        {"double": True},
    ],
    ids=str,
)
def test_a_scaler_stays_where_the_order_is_not_kept_or_others_need_it(tmp_path: Path, kept: dict) -> None:
    model = forest(tmp_path, **kept)
    assert "Scaler" in simplified(model, tmp_path).operators
