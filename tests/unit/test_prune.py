"""prune: zeros where they should be, shapes that shrink with their meaning kept, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import apply, attention, constants, node, normal, perceptron, residual, save
from onnx import helper as oh

from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.errors import UsageError
from portolan.frontends.demo import demo_data, folder
from portolan.passes._coupling import couple
from portolan.passes._surgery import Constants, opened
from portolan.passes.prune import prune
from portolan.testing.models import this_machine, tokens
from portolan.testing.passes import run

TOKENS = {"x": normal(48, 5, 32)}
IMAGES = {"image": normal(48, 3, 8, 8)}
WORDS = {"x": normal(48, 6, 32)}
slow_files = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def error(model: Model, result: Model, inputs: dict[str, np.ndarray]) -> float:
    right, got = (next(iter(run(m, inputs).values())) for m in (model, result))
    return float(np.linalg.norm(got - right) / np.linalg.norm(right))


def fresh(tmp_path: Path) -> Path:
    return tmp_path / f"out{len(list(tmp_path.iterdir()))}"


# Zeros


@pytest.mark.parametrize("score", ["activation", "magnitude"])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_the_share_of_zeros_is_what_was_asked(tmp_path: Path, score: str, scope: str, ratio: float) -> None:
    model = perceptron(tmp_path / "m.onnx")
    data = TOKENS if score == "activation" else None
    result = apply(prune, model, tmp_path / "p", data, ratio=ratio, score=score, scope=scope)
    assert result.features == ("sparsity:unstructured",)
    before, after = constants(model), constants(result)
    assert {name: a.shape for name, a in before.items()} == {name: a.shape for name, a in after.items()}
    zeros = {name: float((after[name] == 0).mean()) for name in ("w1", "w2")}
    if scope == "layer":
        assert all(share == pytest.approx(ratio, abs=1e-3) for share in zeros.values())
    assert sum(zeros.values()) / 2 == pytest.approx(ratio, abs=1e-3)
    np.testing.assert_array_equal(before["b1"], after["b1"])


def test_magnitude_drops_the_smallest(tmp_path: Path) -> None:
    model = perceptron(tmp_path / "m.onnx")
    before = constants(model)["w1"]
    after = constants(apply(prune, model, tmp_path / "p", ratio=0.5, score="magnitude"))["w1"]
    assert np.abs(before[after == 0]).max() <= np.abs(before[after != 0]).min()
    np.testing.assert_array_equal(after[after != 0], before[after != 0])


@pytest.mark.parametrize("score", ["activation", "magnitude"])
def test_two_of_four_along_the_summed_axis(tmp_path: Path, score: str) -> None:
    data = IMAGES if score == "activation" else None
    original = residual(tmp_path / "m.onnx")
    result = apply(prune, original, tmp_path / "p", data, kind="2:4", score=score)
    assert result.features == ("sparsity:2:4",)
    found = constants(result)
    products = [n.input[1] for n in onnx.load(result.path).graph.node if n.op_type in ("Conv", "Gemm")]
    assert len(products) == 6
    for name in (products[1], products[2], products[4], products[5]):  # outputs, inputs, window
        w = found[name]
        rows = np.moveaxis(w.reshape(w.shape[0], w.shape[1], -1), 1, 2)
        fours = rows.reshape(-1, 4)
        assert ((fours == 0).sum(1) >= 2).all(), name
        if score == "magnitude" and name in ("k1", "k2"):
            old = np.abs(np.moveaxis(constants(original)[name].reshape(*w.shape[:2], -1), 1, 2).reshape(-1, 4))
            gone, left = np.where(fours == 0, old, 0).max(1), np.where(fours == 0, np.inf, old).min(1)
            assert (gone <= left).all(), "the two smaller of each four go"
    assert (found["stem"] != 0).all(), "3 inputs are no multiple of 4"
    assert (found["dw"] != 0).all(), "each of a depthwise convolution's few weights counts"
    model = perceptron(tmp_path / "p.onnx")
    w1 = constants(apply(prune, model, tmp_path / "q", TOKENS, kind="2:4"))["w1"]  # inputs, outputs
    assert ((w1.T.reshape(-1, 4) == 0).sum(1) == 2).all()


def skewed(path: Path) -> tuple[Model, dict[str, np.ndarray]]:
    """Inputs of very different sizes that depend on each other: size alone misleads."""
    model = perceptron(path)
    scales = np.geomspace(0.02, 5, 32).astype("f4")
    return model, {"x": (normal(64, 5, 32) @ (np.eye(32) + normal(32, 32, seed=9) / 8) * scales).astype("f4")}


@pytest.mark.parametrize("options", [{}, {"kind": "2:4"}, {"kind": "neurons"}, {"scope": "global"}])
def test_activations_know_better_than_sizes(tmp_path: Path, options: dict) -> None:
    model, data = skewed(tmp_path / "m.onnx")
    calibration, other = {"x": data["x"][:40]}, {"x": data["x"][40:]}
    aware = apply(prune, model, tmp_path / "a", calibration, **options)
    plain = apply(prune, model, tmp_path / "b", score="magnitude", **options)
    assert aware.path.stat().st_size == plain.path.stat().st_size
    assert error(model, aware, other) < 0.8 * error(model, plain, other)


# Shapes that shrink


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in constants(model).items()}


@pytest.mark.parametrize(("ratio", "align", "left"), [(0.25, 8, 48), (0.5, 8, 32), (0.3, 16, 48), (0.3, 1, 45)])
def test_neurons_go_with_their_biases_and_inputs(tmp_path: Path, ratio: float, align: int, left: int) -> None:
    model = perceptron(tmp_path / "m.onnx")
    for score, data in (("activation", TOKENS), ("magnitude", None)):
        result = apply(prune, model, tmp_path / score, data, kind="neurons", ratio=ratio, align=align, score=score)
        assert result.features == ("shape:pruned",)
        found = shapes(result)
        assert (found["w1"], found["b1"], found["w2"], found["b2"]) == ((32, left), (left,), (left, 32), (32,))
        assert run(result, {"x": normal(3, 5, 32)})["y"].shape == (3, 5, 32)


def test_what_dropped_neurons_gave_is_taken_over(tmp_path: Path) -> None:
    """Every neuron is there twice: without one of each pair nothing has to be lost."""
    half = normal(32, 24) / 5
    nodes = [node("MatMul", ["x", "w1"], ["u"]), node("Relu", ["u"], ["h"]), node("MatMul", ["h", "w2"], ["y"])]
    weights = {"w1": np.concatenate([half, half], 1), "w2": normal(48, 32, seed=4) / 7}
    model = save(tmp_path / "m.onnx", nodes, weights, {"x": ["n", 32]}, {"y": ["n", 32]})
    data = {"x": normal(200, 32, seed=8)}
    result = apply(prune, model, tmp_path / "p", data, kind="neurons", ratio=0.5, align=8)
    assert constants(result)["w1"].shape == (32, 24)
    assert error(model, result, {"x": normal(50, 32, seed=77)}) < 0.2


def test_channels_go_through_a_residual_and_a_depthwise_convolution(tmp_path: Path) -> None:
    model = residual(tmp_path / "m.onnx")
    result = apply(prune, model, tmp_path / "p", IMAGES, kind="channels", ratio=0.25)
    found = shapes(result)
    assert found["stem"] == (24, 3, 3, 3)
    assert found["k1"] == (24, 24, 3, 3)
    assert found["k2"] == (24, 24, 3, 3)
    assert found["dw"] == (24, 1, 3, 3)
    assert found["w"] == (10, 4 * 48)
    assert next(a.i for n in onnx.load(result.path).graph.node for a in n.attribute if a.name == "group") == 24
    assert run(result, {"image": normal(2, 3, 8, 8)})["y"].shape == (2, 10)


@pytest.mark.parametrize("how", [{}, {"fused": True}, {"listed": True}])
def test_whole_heads_go(tmp_path: Path, how: dict) -> None:
    model = attention(tmp_path / "m.onnx", **how)
    for score, data in (("activation", WORDS), ("magnitude", None)):
        result = apply(prune, model, tmp_path / score, data, kind="heads", ratio=0.25, score=score)
        found = shapes(result)
        assert found["wo"] == (24, 32)
        assert found["wqkv" if "fused" in how else "wv"] == (32, 72 if "fused" in how else 24)
        assert run(result, {"x": normal(5, 6, 32)})["y"].shape == (5, 6, 32)


def test_which_axes_are_one_channel(tmp_path: Path) -> None:
    _, graph = opened(residual(tmp_path / "m.onnx"))
    groups = list(couple(graph, Constants(graph), heads=False).groups())
    touching = {tuple(sorted({name for name, _ in g.positions})) for g in groups if len(g.positions) > 2}
    wide = next(names for names in touching if "stem" in names)
    assert {"stem", "k1", "k2", "dw", "s", "sr", "b", "sum", "r", "dwo"} <= set(wide)
    inner = next(names for names in touching if "k1_b" in names)
    assert {"k1", "k2", "a", "ar"} <= set(inner)
    assert "stem" not in inner
    last = next(g for g in groups if ("w", 1) in g.positions)
    np.testing.assert_array_equal(last.positions["w", 1][1], [4, 5, 6, 7])  # four positions of the picture per channel


def test_what_mixes_channels_keeps_them(tmp_path: Path) -> None:
    """A normalisation over the channels between the two products, or an outside reader, forbids dropping any."""
    weights = {"w1": normal(16, 32), "w2": normal(32, 16), "scale": np.ones(32, "f4")}
    nodes = [
        node("MatMul", ["x", "w1"], ["u"]),
        node("LayerNormalization", ["u", "scale"], ["n"]),
        node("MatMul", ["n", "w2"], ["y"]),
    ]
    model = save(tmp_path / "m.onnx", nodes, weights, {"x": ["b", 16]}, {"y": ["b", 16]})
    with pytest.raises(UsageError, match="no neurons that can be dropped safely: looked for the outputs of a MatMul"):
        apply(prune, model, tmp_path / "p", kind="neurons", score="magnitude")
    nodes[1] = node("Relu", ["u"], ["n"])
    del weights["scale"]
    read = save(tmp_path / "r.onnx", nodes, weights, {"x": ["b", 16]}, {"y": ["b", 16], "u": ["b", 32]})
    with pytest.raises(UsageError, match="dropped safely"):
        apply(prune, read, tmp_path / "q", kind="neurons", score="magnitude")
    free = save(tmp_path / "f.onnx", nodes, weights, {"x": ["b", 16]}, {"y": ["b", 16]})
    assert shapes(apply(prune, free, tmp_path / "s", kind="neurons", score="magnitude"))["w1"] == (16, 16)


def test_an_operator_without_a_rule_keeps_what_it_touches(tmp_path: Path) -> None:
    weights = {"w1": normal(16, 32), "w2": normal(32, 16)}
    nodes = [
        node("MatMul", ["x", "w1"], ["u"]),
        node("CumSum", ["u", "axis"], ["n"]),
        node("MatMul", ["n", "w2"], ["y"]),
    ]
    model = save(tmp_path / "m.onnx", nodes, {**weights, "axis": np.array(1)}, {"x": ["b", 16]}, {"y": ["b", 16]})
    with pytest.raises(UsageError, match="dropped safely"):
        apply(prune, model, tmp_path / "p", kind="neurons", score="magnitude")


def test_concatenated_and_split_channels(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "a"], ["ua"]),
        node("MatMul", ["x", "b"], ["ub"]),
        node("Relu", ["ua"], ["ra"]),
        node("Concat", ["ra", "ub"], ["u"], axis=-1),
        node("Split", ["u", "sizes"], ["s1", "s2"], axis=-1),
        node("MatMul", ["s1", "c"], ["y1"]),
        node("MatMul", ["s2", "d"], ["y2"]),
        node("Add", ["y1", "y2"], ["y"]),
    ]
    weights = {"a": normal(16, 32), "b": normal(16, 16), "c": normal(32, 8), "d": normal(16, 8)}
    weights["sizes"] = np.array([32, 16])
    model = save(tmp_path / "m.onnx", nodes, weights, {"x": ["n", 16]}, {"y": ["n", 8]})
    found = shapes(apply(prune, model, tmp_path / "p", {"x": normal(40, 16)}, kind="neurons"))
    assert (found["a"], found["b"], found["c"], found["d"]) == ((16, 16), (16, 8), (16, 8), (8, 8))


def test_shared_weights_stay_right(tmp_path: Path) -> None:
    """A matrix used by two blocks is cut for both at once; one that is also an output stays whole."""
    nodes = []
    for i, (source, target) in enumerate((("x", "t"), ("t", "y"))):
        nodes += [
            node("MatMul", [source, "w1"], [f"u{i}"]),
            node("Relu", [f"u{i}"], [f"r{i}"]),
            node("MatMul", [f"r{i}", "w2"], [target]),
        ]
    weights = {"w1": normal(16, 32) / 4, "w2": normal(32, 16, seed=4) / 4}
    weights["w1"][:, 5:21] = 0
    model = save(tmp_path / "m.onnx", nodes, weights, {"x": ["n", 16]}, {"y": ["n", 16]})
    data = {"x": normal(40, 16)}
    result = apply(prune, model, tmp_path / "p", data, kind="neurons")
    assert shapes(result) == {"w1": (16, 16), "w2": (16, 16)}
    assert error(model, result, {"x": normal(9, 16)}) < 1e-4
    assert error(model, apply(prune, model, tmp_path / "z", data, ratio=0.25), data) < 0.5
    also = [*nodes, node("Identity", ["w1"], ["copy"])]
    tied = save(tmp_path / "t.onnx", also, weights, {"x": ["n", 16]}, {"y": ["n", 16], "copy": [16, 32]})
    with pytest.raises(UsageError, match="dropped safely"):
        apply(prune, tied, tmp_path / "q", kind="neurons", score="magnitude")


def test_weights_as_constant_nodes(tmp_path: Path) -> None:
    model = perceptron(tmp_path / "m.onnx")
    proto = onnx.load(model.path)
    made = [node("Constant", [], [t.name], value=t) for t in proto.graph.initializer]
    nodes = [*made, *proto.graph.node]
    other = save(tmp_path / "c.onnx", nodes, {}, {"x": ["batch", 5, 32]}, {"y": ["batch", 5, 32]})
    for kind in ("neurons", "unstructured"):
        a, b = (apply(prune, m, fresh(tmp_path), TOKENS, kind=kind) for m in (model, other))
        np.testing.assert_array_equal(run(a, TOKENS)["y"], run(b, TOKENS)["y"])


# Invariants


@slow_files
@given(st.data())
def test_neurons_that_do_nothing_can_go(tmp_path: Path, data: st.DataObject) -> None:
    """Dropped channels that were exactly zero change no output, however they are judged."""
    hidden = data.draw(st.sampled_from([16, 24, 40]))
    dead = data.draw(st.lists(st.integers(0, hidden - 1), min_size=8, max_size=8, unique=True))
    w1, w2 = normal(32, hidden, seed=hidden) / 5, normal(hidden, 32, seed=hidden + 1) / 5
    if data.draw(st.booleans()):
        w2[dead] = 0  # nobody listens
        model = perceptron(tmp_path / "m.onnx", hidden, w1, w2)
    else:
        w1[:, dead] = 0
        model = perceptron(tmp_path / "m.onnx", hidden, w1, w2)
        proto = onnx.load(model.path)
        bias = next(t for t in proto.graph.initializer if t.name == "b1")
        values = onnx.numpy_helper.to_array(bias).copy()
        values[dead] = 0
        bias.CopyFrom(onnx.numpy_helper.from_array(values, "b1"))
        onnx.save(proto, model.path)
        model = load_model(model.path)
    score = data.draw(st.sampled_from(["activation", "magnitude"]))
    samples = TOKENS if score == "activation" else None
    result = apply(prune, model, fresh(tmp_path), samples, kind="neurons", ratio=8 / hidden, score=score)
    assert shapes(result)["w1"] == (32, hidden - 8)
    np.testing.assert_array_equal(constants(result)["b1"], np.delete(constants(model)["b1"], sorted(dead)))
    assert error(model, result, {"x": normal(7, 5, 32, seed=1)}) < 1e-4


@slow_files
@given(st.data())
def test_channels_that_are_zero_can_go(tmp_path: Path, data: st.DataObject) -> None:
    width = data.draw(st.sampled_from([16, 24]))
    dead = data.draw(st.lists(st.integers(0, width - 1), min_size=8, max_size=8, unique=True))
    inner = data.draw(st.lists(st.integers(0, width - 1), min_size=8, max_size=8, unique=True))
    weights = constants(residual(tmp_path / "m.onnx", width))
    names = {n.input[1]: n for n in onnx.load(tmp_path / "m.onnx").graph.node if n.op_type == "Conv"}
    replaced = {name: weights[name].copy() for name in (*names, "stem_b", "k1_b", "dw_b", "gb", "gm")}
    for name in ("stem", "k2", "stem_b", "dw_b", "dw"):
        replaced[name][dead] = 0
    for name in ("k1", "k1_b"):
        replaced[name][inner] = 0
    for name in ("pw", "gb", "gm"):
        replaced[name][: width // 2 + width // 2] = 0
    replaced["gb"][:width] = replaced["gm"][:width] = 0
    model = residual(tmp_path / "m.onnx", width, **replaced)
    score = data.draw(st.sampled_from(["activation", "magnitude"]))
    samples = IMAGES if score == "activation" else None
    result = apply(prune, model, fresh(tmp_path), samples, kind="channels", ratio=8 / width, score=score)
    assert shapes(result)["k1"] == (width - 8, width - 8, 3, 3)
    assert error(model, result, {"image": normal(5, 3, 8, 8, seed=1)}) < 1e-3


@slow_files
@given(st.integers(0, 3), st.booleans(), st.sampled_from([{}, {"fused": True}, {"listed": True}]))
def test_a_head_that_is_ignored_can_go(tmp_path: Path, dead: int, aware: bool, how: dict) -> None:
    wo = normal(32, 32, seed=4) / 6
    wo[8 * dead : 8 * dead + 8] = 0
    model = attention(tmp_path / "m.onnx", wo=wo, **how)
    score = "activation" if aware else "magnitude"
    result = apply(prune, model, fresh(tmp_path), WORDS if aware else None, kind="heads", ratio=0.25, score=score)
    assert shapes(result)["wo"] == (24, 32)
    assert error(model, result, {"x": normal(4, 6, 32, seed=1)}) < 1e-4


# Trained models


def test_a_trained_network_keeps_its_answers(tmp_path: Path) -> None:
    model, images = load_model(folder() / "digits.onnx"), dict(np.load(demo_data("digits")))
    calibration, held_out = {"image": images["image"][:128]}, {"image": images["image"][128:]}

    def accuracy(result: Model) -> float:
        return float((run(result, held_out)["logits"].argmax(1) == images["labels"][128:]).mean())

    aware = apply(prune, model, tmp_path / "a", calibration, kind="channels", ratio=0.25)
    plain = apply(prune, model, tmp_path / "b", kind="channels", ratio=0.25, score="magnitude")
    assert accuracy(aware) > accuracy(model) - 0.03
    assert accuracy(aware) > accuracy(plain) + 0.1
    assert aware.path.stat().st_size < 0.6 * model.path.stat().st_size


# Bad input


def test_refusals_name_their_reason(tmp_path: Path) -> None:
    model, machine = perceptron(tmp_path / "m.onnx"), this_machine()
    assert "quantized" in str(prune.refuse(dataclasses.replace(model, features=("int8:static",)), {}, machine))
    assert "no Conv" in str(prune.refuse(model, {"kind": "channels"}, machine))
    assert "no Softmax to drop heads" in str(prune.refuse(model, {"kind": "heads"}, machine))
    lookup = load_model(tokens(tmp_path).model.path)
    for kind in ("unstructured", "2:4", "neurons"):
        with pytest.raises(UsageError, match="cannot be pruned: it has no") as caught:
            apply(prune, lookup, fresh(tmp_path), kind=kind)
        assert caught.value.hint
    assert prune.refuse(model, {}, machine) is None


def test_options_out_of_range(tmp_path: Path) -> None:
    model = perceptron(tmp_path / "m.onnx")
    for wrong in ({"ratio": 0.0}, {"ratio": 1.0}, {"kind": "2:4", "ratio": 0.25}, {"align": 0}, {"kind": "rows"}):
        with pytest.raises(UsageError):
            apply(prune, model, fresh(tmp_path), TOKENS, **wrong)


def test_calibration_data_that_will_not_do(tmp_path: Path) -> None:
    model = perceptron(tmp_path / "m.onnx")
    broken = TOKENS["x"].copy()
    broken[3] = np.nan
    cases = {
        "`prune` needs calibration data": None,
        "at least 8 calibration samples, got 5": {"x": TOKENS["x"][:5]},
        "NaN or infinite values, first in sample 3": {"x": broken},
        "all calibration samples are equal": {"x": np.ones((9, 5, 32), "f4")},
        "NaN or infinite activations": {"x": np.concatenate([TOKENS["x"], np.full((1, 5, 32), 3e38, "f4")])},
    }
    for message, data in cases.items():
        out = fresh(tmp_path)
        with pytest.raises(UsageError, match=message) as caught:
            apply(prune, model, out, data, kind="neurons")
        assert caught.value.hint
        assert list(out.iterdir()) == []


def test_nothing_to_drop(tmp_path: Path) -> None:
    small = perceptron(tmp_path / "m.onnx", hidden=8)
    with pytest.raises(UsageError, match="none of the 1 groups of neurons of `m` gets smaller in steps of 8"):
        apply(prune, small, tmp_path / "a", TOKENS, kind="neurons", ratio=0.25)
    odd = save(
        tmp_path / "o.onnx", [node("MatMul", ["x", "w"], ["y"])], {"w": normal(6, 4)}, {"x": [2, 6]}, {"y": [2, 4]}
    )
    with pytest.raises(UsageError, match="has nothing for `2:4`: looked for a MatMul, Gemm or Conv with at least 16"):
        apply(prune, odd, tmp_path / "b", kind="2:4", score="magnitude")
    two = save(
        tmp_path / "t.onnx", [oh.make_node("MatMul", ["a", "b"], ["y"])], {}, {"a": [4, 8], "b": [8, 4]}, {"y": [4, 4]}
    )
    with pytest.raises(UsageError, match="has nothing for `unstructured`"):
        apply(prune, two, tmp_path / "c", score="magnitude")
