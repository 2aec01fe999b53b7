"""Labels: recipes in as few words as tell them apart."""

from __future__ import annotations

import pytest

from portolan.core.labels import label
from portolan.core.recipe import Recipe, Step
from portolan.core.registry import backend, pass_


@pytest.mark.parametrize(
    ("recipe", "passes", "backend"),
    [
        (Recipe(), "-", "onnxruntime"),
        (Recipe((Step("simplify"), Step("quantize"))), "simplify + quantize", "onnxruntime"),
        (Recipe((Step("quantize", {"bits": 8, "mode": "static"}),)), "quantize(mode=static)", "onnxruntime"),
        (Recipe((Step("quantize", {"per_channel": False}),)), "quantize(per_channel=false)", "onnxruntime"),
        (Recipe(backend="openvino", options={"precision": "bf16"}), "-", "openvino(precision=bf16)"),
        (Recipe((Step("gone", {"x": 1}),), "gone", {"y": True}), "gone(x=1)", "gone(y=true)"),
        (Recipe(backend="openvino", options={"no_such_option": 1}), "-", "openvino(no_such_option=1)"),
    ],
)
def test_defaults_go_without_saying(recipe: Recipe, passes: str, backend: str) -> None:
    assert label(recipe) == {"passes": passes, "backend": backend}


def test_all_defaults_are_silent() -> None:
    every = Recipe(
        (Step("quantize", pass_("quantize").schema.check({})),), "openvino", backend("openvino").schema.check({})
    )
    assert label(every) == {"passes": "quantize", "backend": "openvino"}
