"""Ensembles of decision trees by chance, as ONNX says them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GT", "BRANCH_GTE")


@dataclass
class Grown:
    """Attributes of an ensemble's nodes and votes, tree by tree.

    Args:
        random: where chance comes from.
        features: how many there are to compare.
        modes: of inner nodes.
        missing: whether NaN may go with what is below.
    """

    random: np.random.Generator
    features: int
    modes: tuple[str, ...] = ("BRANCH_LEQ",)
    missing: bool = False
    nodes: dict[str, list[Any]] = field(default_factory=dict)
    votes: dict[str, list[Any]] = field(default_factory=dict)

    def tree(self, number: int, depth: int, targets: tuple[int, ...], positive: bool = False) -> None:
        """One more tree of at most that depth, whose leaves vote for all of these targets."""
        count = 0

        def grow(left: int) -> int:
            nonlocal count
            mine, count = count, count + 1
            leaf = left == 0 or self.random.random() < 0.2
            row = {
                "treeids": number, "nodeids": mine, "featureids": 0, "values": 0.0, "modes": "LEAF",
                "truenodeids": 0, "falsenodeids": 0, "hitrates": 1.0, "missing_value_tracks_true": 0,
            }  # fmt: skip
            place = len(self.nodes.setdefault("nodeids", []))
            for name, value in row.items():
                self.nodes.setdefault(name, []).insert(place, value)
            if leaf:
                for target in targets:
                    weight = self.random.random() if positive else self.random.normal()
                    for name, value in (("treeids", number), ("nodeids", mine), ("ids", target), ("weights", weight)):
                        self.votes.setdefault(name, []).append(value)
                return mine
            self.nodes["modes"][place] = str(self.random.choice(self.modes))
            self.nodes["featureids"][place] = int(self.random.integers(self.features))
            self.nodes["values"][place] = float(np.float32(self.random.integers(-2, 3) / 2))
            self.nodes["missing_value_tracks_true"][place] = int(self.missing and self.random.random() < 0.5)
            self.nodes["truenodeids"][place] = grow(left - 1)
            self.nodes["falsenodeids"][place] = grow(left - 1)
            return mine

        grow(depth)

    def classifier(self, classes: int, **attributes: Any) -> onnx.ModelProto:
        """A model with a label and scores."""
        return self._model(
            "TreeEnsembleClassifier", "class", {"classlabels_int64s": [7 * i - 7 for i in range(classes)]} | attributes,
            {"label": (TensorProto.INT64, ["n"]), "scores": (TensorProto.FLOAT, ["n", classes])},
        )  # fmt: skip

    def regressor(self, targets: int, **attributes: Any) -> onnx.ModelProto:
        """A model with sums."""
        outputs = {"sums": (TensorProto.FLOAT, ["n", targets])}
        return self._model("TreeEnsembleRegressor", "target", {"n_targets": targets} | attributes, outputs)

    def _model(self, operator: str, kind: str, attributes: dict[str, Any], outputs: dict[str, Any]) -> onnx.ModelProto:
        given = {f"nodes_{name}": value for name, value in self.nodes.items()}
        given |= {f"{kind}_{name}": value for name, value in self.votes.items()}
        node = helper.make_node(operator, ["x"], list(outputs), domain="ai.onnx.ml", **given, **attributes)
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", self.features])]
        results = [helper.make_tensor_value_info(name, *rest) for name, rest in outputs.items()]
        graph = helper.make_graph([node], "ensemble", inputs, results)
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
        return helper.make_model(graph, opset_imports=imports, ir_version=9)


def rows(random: np.random.Generator, count: int, features: int, missing: bool = True) -> np.ndarray:
    """Numbers on, just below and just above thresholds; infinities, and NaN where asked."""
    x = (random.integers(-3, 4, (count, features)) / 2).astype(np.float32)
    aside = random.integers(-1, 2, x.shape)
    x = np.where(aside == 0, x, np.nextafter(x, np.where(aside < 0, -np.inf, np.inf).astype(np.float32)))
    odd = random.random(x.shape)
    x[odd < 0.04] = np.inf
    x[odd > 0.96] = -np.inf
    if missing:
        x[(odd > 0.45) & (odd < 0.5)] = np.nan
    return x


def boosted(random: np.random.Generator, features: int = 5) -> onnx.ModelProto:
    """Two classes by one sum, as boosting has it."""
    grown = Grown(random, features)
    for number in range(50):
        grown.tree(number, 3, (0,))
    return grown.classifier(2, post_transform="LOGISTIC", base_values=[0.25])


def voting(random: np.random.Generator, features: int = 4) -> onnx.ModelProto:
    """Shares of votes for three classes, as random forests have them, with values that may be missing."""
    grown = Grown(random, features, MODES, missing=True)
    for number in range(20):
        grown.tree(number, 6, (0, 1, 2), positive=True)
    return grown.classifier(3)


def reference(proto: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    """What ONNX Runtime answers, row by row: with several rows it shares trees out, and adds in another order."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    found = [session.run(None, {"x": x[i : i + 1]}) for i in range(len(x))]
    return {
        o.name: np.concatenate(rows) for o, rows in zip(session.get_outputs(), zip(*found, strict=True), strict=True)
    }
