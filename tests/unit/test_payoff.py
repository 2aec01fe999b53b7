from __future__ import annotations

from pathlib import Path

import pytest
from searching import LOSSY, TARGET, kinds_model, space

from portolan.core import registry
from portolan.core.goal import parse_goals
from portolan.search.payoff import Payoff, wasted
from portolan.study import payoffs
from portolan.study.payoff_layers import LAYERS, layer
from portolan.targets.local import local
from portolan.worker.environments import backends


def row(ratio: float | None, operators: str = "products", **more: object) -> Payoff:
    values: dict[str, object] = {
        "passes": "quantize", "features": ("int8:dynamic",), "operators": operators, "backend": "onnxruntime",
        "ratio": ratio, "lo": ratio and ratio * 0.98, "hi": ratio and ratio * 1.01,
    }  # fmt: skip
    return Payoff(**{**values, **more})  # type: ignore[arg-type]


def said(rows: list[Payoff], *operators: str) -> str | None:
    return wasted(rows, "onnxruntime", ("int8:dynamic",), operators)


def test_what_became_no_faster_is_wasted_and_says_by_how_much() -> None:
    why = "int8:dynamic does not pay on `onnxruntime` here: convolutions run 0.15x as fast, as `portolan doctor --bench` measured"  # noqa: E501
    assert said([row(2.4), row(0.15, "convolutions")], "Conv", "Relu") == why


def test_one_kind_that_gains_is_enough() -> None:
    assert said([row(2.4), row(0.15, "convolutions")], "Conv", "Gemm") is None


def test_the_best_options_speak_for_a_feature() -> None:
    assert said([row(0.7), row(1.4, passes="quantize(bits=8)")], "MatMul") is None


def test_what_was_not_measured_may_pay() -> None:
    assert said([row(0.2, "convolutions")], "MatMul") is None
    assert said([row(0.2)], "MatMul", "Conv") is None
    assert said([row(0.2)], "Gather") is None
    assert wasted([row(0.2)], "openvino", ("int8:dynamic",), ["MatMul"]) is None
    assert wasted([row(0.2)], "onnxruntime", ("int8:static",), ["MatMul"]) is None


def test_what_failed_to_run_is_wasted() -> None:
    assert "products do not run" in str(said([row(None, reason="no kernel")], "MatMul"))


def test_inside_the_noise_nothing_is_known_to_be_gained() -> None:
    assert said([row(1.0)], "MatMul") is not None
    assert said([row(1.02)], "MatMul") is None, "up to 1.03 is inside the interval"


def test_a_search_leaves_out_what_does_not_pay() -> None:
    slow = [row(0.5)]
    assert any(c.recipe.passes and c.refused is None for c in space(LOSSY, model=kinds_model("MatMul")))
    found = space(LOSSY, model=kinds_model("MatMul"), payoffs=slow)
    reasons = [c.refused for c in found if c.recipe.passes and c.refused]
    assert any("does not pay" in str(why) for why in reasons)
    pinned = {"passes": [{"name": "quantize", "mode": "dynamic"}]}
    asked = space(LOSSY, model=kinds_model("MatMul"), payoffs=slow, fixed=pinned)
    assert any(c.recipe.passes and c.refused is None for c in asked), "who asks for it gets it"
    small = space(parse_goals(["cosine >= 0.9", "min size"]), model=kinds_model("MatMul"), payoffs=slow)
    assert not any("does not pay" in str(c.refused) for c in small), "it still saves bytes"


def test_what_is_measured_is_kept_for_the_machine_and_the_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.PASSES.__class__, "names", lambda self: ["quantize"])
    monkeypatch.setattr(payoffs, "_STARTS", 1)
    steps = payoffs._steps
    int8 = ("int8:dynamic",), ("int8:static",)
    monkeypatch.setattr(payoffs, "_steps", lambda *given: [(s, f) for s, f in steps(*given) if f in int8])
    target = local.detect()
    here = {"onnxruntime": backends(target, ["onnxruntime"])["onnxruntime"]}
    lines: list[str] = []
    found = payoffs.payoffs(target, here, lines.append)
    assert {p.operators for p in found} == {"products", "convolutions"}
    assert all(p.ratio is not None and p.lo is not None and p.lo <= p.ratio <= p.hi for p in found if not p.reason)
    assert any(p.features == ("int8:static",) and p.ratio for p in found)
    assert lines
    assert payoffs.kept(target, here, tmp_path) == []
    payoffs.keep(target, here, found, tmp_path)
    assert sorted(map(str, payoffs.kept(target, here, tmp_path))) == sorted(map(str, found))
    assert payoffs.kept(TARGET, here, tmp_path) == [], "another machine"
    assert [Payoff.from_json(p.to_json()) for p in found] == found


def test_every_feature_that_some_option_produces_is_asked_about(tmp_path: Path) -> None:
    model, _ = layer("products", LAYERS["products"](), tmp_path)
    asked = [features for _, features in payoffs._steps(model, local.detect())]
    assert {("sparsity:2:4",), ("shape:tt",), ("weights:int2",), ("bfloat16",)} <= set(asked)
    assert asked.count(("sparsity:2:4",)) == 1
