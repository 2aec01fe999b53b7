"""mixed_precision: sensitive layers keep their bits, budgets hold, and what cannot be chosen is said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper as oh
from onnx import numpy_helper as nh

from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context
from portolan.errors import UsageError
from portolan.passes._sensitivity import Choice, within_budget, within_bytes
from portolan.passes._weights import Layer
from portolan.passes.mixed_precision import halves, mixed_precision
from portolan.testing.models import this_machine
from portolan.testing.passes import run

FLOAT = onnx.TensorProto.FLOAT


def apply(model: Model, out: Path, calibration: object, **options: object) -> Model:
    out.mkdir(parents=True)
    return mixed_precision(model, Context(out, this_machine(), calibration), **options)  # type: ignore[arg-type]


def normal(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def branches(path: Path) -> Model:
    """Two branches of equal size that are added; what comes out of `loud` is thirty times larger."""
    nodes = [
        oh.make_node("MatMul", ["x", "loud"], ["a"]),
        oh.make_node("MatMul", ["x", "quiet"], ["b"]),
        oh.make_node("Add", ["a", "b"], ["y"]),
    ]
    weights = {"loud": normal(64, 64), "quiet": normal(64, 64, seed=4) / 30}
    sides = [[oh.make_tensor_value_info(name, FLOAT, ["n", 64])] for name in "xy"]
    graph = oh.make_graph(nodes, "g", *sides, [nh.from_array(w, name) for name, w in weights.items()])
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=9), path)
    return load_model(path)


def bits_of(model: Model) -> dict[str, int]:
    sizes = {onnx.TensorProto.UINT8: 8, onnx.TensorProto.UINT4: 4, onnx.TensorProto.UINT2: 2, FLOAT: 32}
    tensors = onnx.load(model.path).graph.initializer
    return {t.name.split(".")[0]: sizes[t.data_type] for t in tensors if len(t.dims) == 2 and t.dims[0] == 64}


def loss(model: Model, original: Model, x: np.ndarray) -> float:
    a, b = (run(m, {"x": x})["y"] for m in (model, original))
    return float(1 - ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())


@pytest.mark.parametrize("method", ["gptq", "hqq", "rtn"])
def test_the_branch_that_nobody_hears_gets_fewer_bits(tmp_path: Path, method: str) -> None:
    model, x = branches(tmp_path / "m.onnx"), normal(96, 64, seed=9)
    result = apply(model, tmp_path / "q", {"x": x[:64]}, budget=0.001, lowest=2, method=method, group=32)
    assert bits_of(result) == {"loud": 8, "quiet": 2}
    assert loss(result, model, x[64:]) < 0.002
    assert result.features == ("weights:int2",)


def test_a_ratio_is_reached_with_the_least_damage(tmp_path: Path) -> None:
    model, x = branches(tmp_path / "m.onnx"), normal(64, 64, seed=9)
    result = apply(model, tmp_path / "q", {"x": x}, smaller=5.0, group=64)
    assert bits_of(result) == {"loud": 8, "quiet": 4}
    with pytest.raises(UsageError, match="cannot become so small") as caught:
        apply(model, tmp_path / "r", {"x": x}, smaller=9.0)
    assert "lowest" in str(caught.value.hint)
    only = apply(model, tmp_path / "8", {"x": x}, lowest=8)
    assert bits_of(only) == {"loud": 8, "quiet": 8}


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    model, x = branches(tmp_path / "m.onnx"), normal(64, 64)
    with pytest.raises(UsageError, match="no layer of `m` can have fewer bits") as caught:
        apply(model, tmp_path / "a", {"x": x}, budget=0.0)
    assert "budget" in str(caught.value.hint)
    for i, options in enumerate(({"budget": -1.0}, {"group": 4}, {"smaller": 0.5})):
        with pytest.raises(UsageError, match="cannot use") as caught:
            apply(model, tmp_path / f"b{i}", {"x": x}, **options)
        assert caught.value.hint
    with pytest.raises(UsageError, match="mixed precision needs calibration data"):
        apply(model, tmp_path / "c", None)
    with pytest.raises(UsageError, match="at least 8"):
        apply(model, tmp_path / "d", {"x": x[:4]})
    nodes = [oh.make_node("MatMul", ["a", "b"], ["y"])]
    sides = [[oh.make_tensor_value_info(n, FLOAT, ["n", 4, 4]) for n in names] for names in ("ab", "y")]
    onnx.save(oh.make_model(oh.make_graph(nodes, "g", *sides), ir_version=9,
                            opset_imports=[oh.make_opsetid("", 18)]), tmp_path / "p.onnx")  # fmt: skip
    products = load_model(tmp_path / "p.onnx")
    with pytest.raises(UsageError, match="no constant weights"):
        apply(products, tmp_path / "e", {"a": normal(8, 4, 4), "b": normal(8, 4, 4)})


def test_answers_that_are_no_floats_show_no_error(tmp_path: Path) -> None:
    nodes = [oh.make_node("MatMul", ["x", "w"], ["s"]), oh.make_node("ArgMax", ["s"], ["y"], axis=1, keepdims=0)]
    graph = oh.make_graph(
        nodes, "g", [oh.make_tensor_value_info("x", FLOAT, ["n", 8])],
        [oh.make_tensor_value_info("y", onnx.TensorProto.INT64, ["n"])], [nh.from_array(normal(8, 4), "w")],
    )  # fmt: skip
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="no output of `m` is float32") as caught:
        apply(load_model(tmp_path / "m.onnx"), tmp_path / "q", {"x": normal(16, 8)})
    assert "mode=weights" in str(caught.value.hint)


def test_bits_are_chosen_on_samples_that_nothing_was_fitted_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[bytes]] = {}

    def noted(name: str, place: int) -> None:
        used = getattr(module, name)

        def call(*given: Any) -> Any:
            seen[name] = {run["x"].tobytes() for run in given[place]}
            return used(*given)

        monkeypatch.setattr(module, name, call)

    module = sys.modules["portolan.passes.mixed_precision"]
    noted("hessians", 2)
    noted("Switchboard", 3)
    apply(branches(tmp_path / "m.onnx"), tmp_path / "q", {"x": normal(64, 64, seed=9)}, group=32)
    assert min(len(seen["hessians"]), len(seen["Switchboard"])) >= 8
    assert not seen["hessians"] & seen["Switchboard"]


def test_fitting_and_choosing_see_different_samples() -> None:
    runs = [{"x": normal(4, seed=i // 2)} for i in range(60)]
    fitting, judging = halves(runs)
    seen = [{tuple(r["x"].tolist()) for r in part} for part in (fitting, judging)]
    assert not seen[0] & seen[1]
    assert len(seen[0]) == 15
    assert len(judging) == 15
    with pytest.raises(UsageError, match="different samples"):
        halves(runs[:2])


def layer(i: int) -> Layer:
    return Layer(f"w{i}", "product", False, (8, 8), ((f"y{i}", 1),), ("x",))


@st.composite
def tables(draw: st.DrawFn) -> dict[Layer, list[Choice]]:
    found = {}
    for i in range(draw(st.integers(1, 6))):
        size = draw(st.integers(10, 500))
        damages = sorted(draw(st.lists(st.floats(0, 1), min_size=3, max_size=3)))
        rest = [Choice(b, size * b, d) for b, d in zip((8, 4, 2), damages, strict=True)]
        found[layer(i)] = [Choice(32, size * 32, 0.0), *rest]
    return found


@settings(max_examples=60, deadline=None)
@given(tables(), st.floats(0, 2))
def test_no_choice_exceeds_its_budget(choices: dict[Layer, list[Choice]], budget: float) -> None:
    plan = within_budget(choices, budget)
    picked = list(plan.values())
    assert all(plan[x] in options for x, options in choices.items())
    assert sum(c.damage for c in picked) <= budget + 1e-9
    same = sum(c.stored for c in picked)
    assert sum(c.stored for c in within_bytes(choices, same).values()) <= same
