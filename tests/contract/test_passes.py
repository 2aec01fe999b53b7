"""The built-in passes keep the contract."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context
from portolan.passes.mixed_precision import mixed_precision
from portolan.passes.quantize import quantize
from portolan.passes.simplify import simplify
from portolan.testing.models import Case, cases, perceptron, this_machine, tokens
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
        {"mode": "dynamic", "per_channel": False},
    )

    def unsuited(self, folder: Path) -> list[tuple[Model, Mapping[str, Any]]]:
        lookup = load_model(tokens(folder).model.path)
        done = quantized(folder)
        return [(lookup, {}), (lookup, {"mode": "static"}), (done, {}), (done, {"mode": "static"})]


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
