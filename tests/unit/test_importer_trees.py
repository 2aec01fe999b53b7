"""Forests through the importer: labels and scores are those of ONNX Runtime, whatever made the forest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from portolan.errors import UnsupportedOperator
from portolan.importers.reading import read
from portolan.importers.torch_ import module

pytestmark = pytest.mark.torch
ROWS = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
TWO = (ROWS[:, 0] * ROWS[:, 1] + ROWS[:, 2] > 0).astype(int)
THREE = TWO + (ROWS[:, 3] > 0.5)
AMOUNT = ROWS[:, 0] - 2 * ROWS[:, 4]


def agree(model: onnx.ModelProto, rows: np.ndarray) -> None:
    """Compares the importer's answers with those of ONNX Runtime."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    wanted = session.run(None, {name: rows})
    found = through_torch(model, rows)
    for mine, right in zip(found, wanted, strict=True):
        assert mine.shape == right.shape
        if right.dtype.kind == "i":
            np.testing.assert_array_equal(mine, right)
        else:
            np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-5)


def through_torch(model: onnx.ModelProto, rows: np.ndarray) -> list[np.ndarray]:
    import torch

    with torch.no_grad():
        return [value.numpy() for value in module(read(model, "forest"))(torch.from_numpy(rows))]


def forests() -> dict[str, Callable[[], Any]]:
    """Fitted estimators of scikit-learn, by what is special about each."""
    from sklearn import ensemble, tree

    return {
        "boosted, two classes": lambda: ensemble.GradientBoostingClassifier(n_estimators=12).fit(ROWS, TWO),
        "boosted, three classes": lambda: ensemble.GradientBoostingClassifier(n_estimators=6).fit(ROWS, THREE),
        "a forest of two classes": lambda: ensemble.RandomForestClassifier(9, max_depth=5).fit(ROWS, TWO),
        "a forest of three classes": lambda: ensemble.RandomForestClassifier(9, max_depth=5).fit(ROWS, THREE),
        "one tree": lambda: tree.DecisionTreeClassifier(max_depth=4).fit(ROWS, THREE),
        "amounts, boosted": lambda: ensemble.GradientBoostingRegressor(n_estimators=12).fit(ROWS, AMOUNT),
        "amounts, averaged": lambda: ensemble.RandomForestRegressor(9, max_depth=5).fit(ROWS, AMOUNT),
        "two amounts at once": lambda: tree.DecisionTreeRegressor(max_depth=4).fit(
            ROWS, np.stack([AMOUNT, -AMOUNT], 1)
        ),
    }


@pytest.mark.parametrize(
    "what",
    [
        "boosted, two classes", "boosted, three classes", "a forest of two classes", "a forest of three classes",
        "one tree", "amounts, boosted", "amounts, averaged", "two amounts at once",
    ],
)  # fmt: skip
def test_what_scikit_learn_fitted(what: str) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    pytest.importorskip("sklearn")
    estimator = forests()[what]()
    classifier = hasattr(estimator, "classes_")
    options = {"zipmap": False} if classifier else None
    agree(skl2onnx.to_onnx(estimator, ROWS[:1], options=options, target_opset={"": 17, "ai.onnx.ml": 3}), ROWS[:64])


def regressor(modes: list[str], **more: Any) -> onnx.ModelProto:
    """Two trees of one test each, on the first feature."""
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml",
        nodes_treeids=[0, 0, 0, 1, 1, 1], nodes_nodeids=[0, 1, 2, 0, 1, 2], nodes_featureids=[0, 0, 0, 1, 0, 0],
        nodes_values=[0.5, 0, 0, -0.25, 0, 0], nodes_modes=[modes[0], "LEAF", "LEAF", modes[1], "LEAF", "LEAF"],
        nodes_truenodeids=[1, 0, 0, 1, 0, 0], nodes_falsenodeids=[2, 0, 0, 2, 0, 0],
        target_treeids=[0, 0, 1, 1], target_nodeids=[1, 2, 1, 2], target_ids=[0, 0, 0, 0],
        target_weights=[1.0, 2.0, 10.0, 20.0], **{"n_targets": 1, **more},
    )  # fmt: skip
    sides = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])] for name, width in (("x", 2), ("y", 1))
    ]
    graph = helper.make_graph([node], "g", *sides)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


EDGES = np.float32([[0.5, -0.25], [0.4, 3], [0.6, -3], [np.nan, 0], [0, np.nan]])


@pytest.mark.parametrize(
    "modes", [["BRANCH_LEQ", "BRANCH_LT"], ["BRANCH_GTE", "BRANCH_GT"], ["BRANCH_EQ", "BRANCH_NEQ"]]
)
@pytest.mark.parametrize("tracks", [[0] * 6, [1, 0, 0, 1, 0, 0]])
def test_every_test_of_a_node_and_values_that_are_missing(modes: list[str], tracks: list[int]) -> None:
    agree(regressor(modes, nodes_missing_value_tracks_true=tracks), EDGES)


@pytest.mark.parametrize("how", ["SUM", "AVERAGE"])
def test_what_the_trees_say_is_joined(how: str) -> None:
    agree(regressor(["BRANCH_LEQ", "BRANCH_LEQ"], aggregate_function=how, base_values=[0.5]), EDGES[:3])


def test_other_ways_to_join_are_refused() -> None:
    with pytest.raises(UnsupportedOperator, match="joins by MAX"):
        through_torch(regressor(["BRANCH_LEQ", "BRANCH_LEQ"], aggregate_function="MAX"), EDGES)
