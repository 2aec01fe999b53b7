"""The trees' own backend keeps the contract, for ensembles of each kind; nets are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from portolan.backends.forest import forest
from portolan.core import registry
from portolan.testing.backend import BackendContract
from portolan.testing.models import Case, perceptron
from support.ensembles import Grown, boosted, reference, rows, voting


def case(folder: Path, name: str, proto: onnx.ModelProto, count: int = 40) -> Case:
    """Rows of an ensemble and another number of them, with ONNX Runtime's answers."""
    folder = folder / name
    folder.mkdir()
    onnx.save(proto, folder / f"{name}.onnx")
    model = registry.FRONTENDS.get("onnx").load(str(folder / f"{name}.onnx"), folder)
    features = int(model.signature.inputs[0].shape[1])
    some, more = ({"x": rows(np.random.default_rng(n), n, features)} for n in (count, 11 * count))
    other = Case(f"{name}, more rows", model, more, reference(proto, more["x"]))
    return Case(name, model, some, reference(proto, some["x"]), other)


class TestForest(BackendContract):
    backend = forest
    refused = ("perceptron",)

    def cases(self, folder: Path) -> list[Case]:
        """A boosted classifier behind a scaler, votes of many classes with missing values, several sums, and a net."""
        random = np.random.default_rng(0)
        scaled = boosted(random)
        node = scaled.graph.node[0]
        node.input[0] = "scaled"
        factors = {"offset": random.normal(size=5).tolist(), "scale": (0.5 + random.random(5)).tolist()}
        scaled.graph.node.insert(0, helper.make_node("Scaler", ["x"], ["scaled"], domain="ai.onnx.ml", **factors))
        many = Grown(random, 3)
        for number in range(30):
            many.tree(number, 5, (0, 1))
        return [
            case(folder, "scaled", scaled),
            case(folder, "voting", voting(random)),
            case(folder, "sums", many.regressor(2, base_values=[0.5, -1.0])),
            perceptron(folder),
        ]
