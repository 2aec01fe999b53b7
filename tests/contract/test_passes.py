"""The built-in passes keep the contract."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context
from portolan.passes.quantize import quantize
from portolan.passes.simplify import simplify
from portolan.testing.models import perceptron, this_machine, tokens
from portolan.testing.passes import PassContract


def quantized(folder: Path) -> Model:
    model = perceptron(folder).model
    out = folder / "quantized"
    out.mkdir()
    return quantize(load_model(model.path), Context(out, this_machine()))


class TestSimplify(PassContract):
    pass_ = simplify

    def unsuited(self, folder: Path) -> list[tuple[Model, Mapping[str, Any]]]:
        return [(quantized(folder), {})]


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
