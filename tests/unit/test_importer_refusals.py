"""What the importer says it does not do, where ONNX's own cases do not ask for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from test_importer import graph, run

from portolan.errors import ModelError
from portolan.importers.reading import read

pytestmark = pytest.mark.torch
F = np.float32


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, F)


def tree(**changed: Any) -> dict[str, Any]:
    """One test of one feature, and two leaves."""

    def tensor(name: str, values: list[int], kind: int) -> onnx.TensorProto:
        return helper.make_tensor(name, kind, [len(values)], values)

    parts: dict[str, Any] = {
        "nodes_featureids": [0], "nodes_modes": tensor("modes", [0], TensorProto.UINT8),
        "nodes_splits": tensor("splits", [0], TensorProto.FLOAT), "nodes_truenodeids": [0], "nodes_trueleafs": [1],
        "nodes_falsenodeids": [1], "nodes_falseleafs": [1], "tree_roots": [0], "leaf_targetids": [0, 0],
        "leaf_weights": tensor("weights", [1, 2], TensorProto.FLOAT), "n_targets": 1,
    }  # fmt: skip
    modes = {"unknown test": tensor("modes", [9], TensorProto.UINT8)}
    return parts | {key: modes.get(value, value) if isinstance(value, str) else value for key, value in changed.items()}


GRAMS = {
    "mode": "TF", "min_gram_length": 1, "max_gram_length": 1, "max_skip_count": 0, "ngram_counts": [0],
    "ngram_indexes": [0], "pool_strings": ["a"],
}  # fmt: skip
#: Operator, inputs, attributes, operator set, and words of the refusal; every input is an array of ones.
CASES: dict[str, tuple[str, dict[str, np.ndarray], dict[str, Any], int, str]] = {
    "batches": ("com.microsoft.FusedMatMul", {"x": ones(2, 2), "w": ones(2, 2)}, {"transBatchA": 1}, 18, "batches"),
    "volumes": (
        "DeformConv", {"x": ones(1, 1, 3, 3, 3), "w": ones(1, 1, 2, 2, 2), "o": ones(1, 24, 2, 2, 2)}, {}, 19,
        "`DeformConv` over other than two axes",
    ),
    "old groups": (
        "GroupNormalization", {"x": ones(1, 2, 3), "s": ones(1), "b": ones(1)}, {"num_groups": 1}, 18,
        "before operator set 21",
    ),
    "no size": ("Resize", {"x": ones(1, 1, 2, 2)}, {}, 18, "without sizes or scales"),
    "a convolution over four axes": (
        "Conv", {"x": ones(1, 1, 2, 2, 2, 2), "w": ones(1, 1, 1, 1, 1, 1)}, {}, 18, "over 4 axes",
    ),
    "labels of strings": (
        "ai.onnx.ml.LabelEncoder", {"x": np.ones(2, np.int64)}, {"keys_strings": ["a"], "values_int64s": [1]}, 18,
        "`LabelEncoder` of strings",
    ),
    "words": ("TfIdfVectorizer", {"x": np.ones(2, np.int64)}, GRAMS, 18, "`TfIdfVectorizer` of strings"),
    "a last step": ("ai.onnx.ml.TreeEnsemble", {"x": ones(1, 1)}, tree(post_transform=4), 18, "with that last step"),
    "a test": (
        "ai.onnx.ml.TreeEnsemble", {"x": ones(1, 1)}, tree(nodes_modes="unknown test"), 18, "tests cannot be read",
    ),
}  # fmt: skip


def refusal(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> ModelError:
    with pytest.raises(ModelError) as caught:
        run(read(proto, "m"), feeds)
    assert caught.value.exit_code == 5
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", CASES)
def test_operators(name: str) -> None:
    full, feeds, attributes, opset, words = CASES[name]
    domain, _, operator = full.rpartition(".")
    made = helper.make_node(operator, list(feeds), ["y"], domain=domain, **attributes)
    proto = graph([made], feeds, {}, opset=opset)
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 5))
    assert words in refusal(proto, feeds).message


def test_a_loop_without_a_round_collects_nothing() -> None:
    truth = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    number = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    rows = helper.make_tensor_value_info("row", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["row"])]
    body = helper.make_graph(
        nodes, "b", [number, truth], [helper.make_tensor_value_info("on", TensorProto.BOOL, []), rows]
    )
    made = helper.make_node("Loop", ["rounds", ""], ["y"], body=body)
    proto = graph([made], {"x": ones(2)}, {"rounds": np.array(0)})
    assert "a loop without a round" in refusal(proto, {"x": ones(2)}).message


def test_scans_of_old_with_lengths() -> None:
    row = helper.make_tensor_value_info("r", TensorProto.FLOAT, [2])
    body = helper.make_graph(
        [helper.make_node("Identity", ["r"], ["s"])],
        "b",
        [row],
        [helper.make_tensor_value_info("s", TensorProto.FLOAT, [2])],
    )
    feeds = {"n": np.ones(1, np.int64), "x": ones(1, 3, 2)}
    made = helper.make_node("Scan", ["n", "x"], ["y"], body=body, num_scan_inputs=1)
    assert "`Scan` of operator set 8 with lengths" in refusal(graph([made], feeds, {}, opset=8), feeds).message


def test_an_optional_value_that_holds_nothing() -> None:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
    nodes = [
        helper.make_node("Optional", [], ["o"], type=kind),
        helper.make_node("OptionalGetElement", ["o"], ["e"]),
        helper.make_node("Add", ["e", "x"], ["y"]),
    ]
    assert "holds nothing" in refusal(graph(nodes, {"x": ones(2)}, {}), {"x": ones(2)}).message
