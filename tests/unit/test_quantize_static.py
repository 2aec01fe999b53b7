"""Static int8: ranges, migration, what goes back to float, and graphs that are made to be difficult."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import types
from pathlib import Path

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
from portolan.core.target import Target
from portolan.errors import ModelError, UsageError
from portolan.passes import _ranges, _smooth, _static, _steps
from portolan.passes._graphs import open_graph
from portolan.passes._int8 import Builder
from portolan.passes._observe import Judge, Seen
from portolan.passes._products import Graph
from portolan.passes.quantize import quantize
from portolan.testing.models import this_machine
from portolan.testing.passes import run

FLOAT = onnx.TensorProto.FLOAT
NARROW = Target("old", "vm", "x86_64", ("avx2",), 2, 2**33)
WIDE = Target("new", "vm", "x86_64", ("avx2", "avx512_vnni"), 2, 2**33)
ARM = Target("arm", "vm", "aarch64", ("asimd",), 2, 2**33)


def normal(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def save(path: Path, nodes: list, weights: dict, inputs: dict, outputs: dict) -> Model:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = [nh.from_array(np.asarray(value), name) for name, value in weights.items()]
    sides = [[oh.make_tensor_value_info(n, FLOAT, s) for n, s in side.items()] for side in (inputs, outputs)]
    graph = oh.make_graph(nodes, "g", *sides, tensors)
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=9), path)
    return load_model(path)


def apply(model: Model, out: Path, data: dict, target: Target | None = None, **options: object) -> Model:
    out.mkdir(parents=True)
    return quantize(model, Context(out, target or this_machine(), data), mode="static", **options)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def seen(rows: np.ndarray) -> Seen:
    return Seen(rows, rows.min(axis=0), rows.max(axis=0))


# Ranges ----------------------------------------------------------------------------------------------------------


def test_each_calibrator_does_what_it_says() -> None:
    values = normal(100_000, 1)
    values[7] = 60.0
    whole = _ranges.choose(seen(values), "minmax")
    assert whole == (float(values.min()), 60.0)
    for calibrator in ("percentile", "entropy", "mse"):
        lo, hi = _ranges.choose(seen(values), calibrator)
        assert lo < 0 < hi < 60, calibrator
    tails = np.percentile(values, [0.005, 99.995])
    assert _ranges.choose(seen(values), "percentile") == pytest.approx(tuple(tails))
    entropy, mse = (_ranges.choose(seen(values), calibrator) for calibrator in ("entropy", "mse"))
    assert entropy == _ranges._entropy(values.ravel(), *whole) != mse
    least = _ranges.error(values, *_ranges.choose(seen(values), "mse"))
    for calibrator in ("minmax", "percentile", "entropy"):
        assert least <= _ranges.error(values, *_ranges.choose(seen(values), calibrator)) * 1.001, calibrator


def test_errors_weigh_by_what_the_weights_make_of_them() -> None:
    rows = normal(2000, 2)
    rows[:, 1] *= 30
    _, careless = _ranges.choose(seen(rows), "mse", np.array([1, 0], "f4"))
    _, careful = _ranges.choose(seen(rows), "mse", np.array([1, 1], "f4"))
    assert careless < careful / 2


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=40), st.sampled_from(["minmax", "percentile", "mse"])
)
@settings(max_examples=60, deadline=None)
def test_zero_is_exact_and_steps_stay_in_range(values: list[float], calibrator: _ranges.Calibrator) -> None:
    rows = np.array(values, "f4")[:, None]
    lo, hi = _ranges.choose(seen(rows), calibrator)
    scale, zero = _ranges.steps(lo, hi)
    assert lo <= 0 <= hi
    assert scale > 0
    assert 0 <= zero <= 255
    if calibrator == "minmax":
        error = np.abs((np.clip(np.round(rows / np.float32(scale)) + zero, 0, 255) - zero) * np.float32(scale) - rows)
        assert error.max() <= scale * 1.01 + 1e-5


# Weights ---------------------------------------------------------------------------------------------------------


def test_the_kind_of_weights_follows_the_target() -> None:
    assert _steps.exact_kinds(WIDE) == ("s8",)
    assert _steps.exact_kinds(ARM) == ("s8",)
    assert _steps.exact_kinds(NARROW) == ("s7", "u8")
    knob = quantize.schema.parameters["weight_type"]
    assert knob.values(NARROW) == ("auto", "u8")
    assert knob.values(WIDE) == ("auto",)


@pytest.mark.parametrize(("kind", "top"), [("s8", 127), ("s7", 63), ("u8", 127)])
def test_weights_are_near_and_sums_fit(kind: _steps.Kind, top: int) -> None:
    weight = normal(64, 16)
    stored = _steps.store(weight, 1, kind)
    values = stored.values.astype("i4") - stored.zero
    assert np.abs(values).max() == top
    assert np.abs(values * stored.scale - weight).max() <= stored.scale.max() / 2 * 1.01
    assert (2 * 255 * np.abs(values).max() < 2**15) == (kind == "s7")


@pytest.mark.parametrize("target", [NARROW, WIDE])
def test_unsigned_weights_keep_eight_bits(tmp_path: Path, target: Target) -> None:
    nodes = [oh.make_node("MatMul", ["x", "w"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, {"w": normal(32, 16)}, {"x": [4, 32]}, {"y": [4, 16]})
    data = {"x": normal(32, 32)}
    errors = {}
    for kind in ("s7", "u8"):
        result = apply(model, tmp_path / kind, data, target, weight_type=kind)
        stored = [t for t in onnx.load(result.path).graph.initializer if len(t.dims) == 2]
        assert [t.data_type for t in stored] == [onnx.TensorProto.UINT8 if kind == "u8" else onnx.TensorProto.INT8]
        errors[kind] = np.abs(run(result, {"x": data["x"][:4]})["y"] - run(model, {"x": data["x"][:4]})["y"]).mean()
    assert errors["u8"] < errors["s7"]


def test_a_channel_of_zeros_or_of_one_constant(tmp_path: Path) -> None:
    kernel = normal(4, 3, 3, 3)
    kernel[1], kernel[2] = 0, 0.25
    nodes = [oh.make_node("Conv", ["x", "k", "b"], ["h"]), oh.make_node("Relu", ["h"], ["y"])]
    weights = {"k": kernel, "b": np.array([0.5, 1e6, -2, 0], "f4")}
    model = save(tmp_path / "m.onnx", nodes, weights, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 6, 6]})
    x = normal(16, 3, 8, 8)
    result = apply(model, tmp_path / "q", {"x": x}, keep_cosine=0.9)
    right, got = run(model, {"x": x[:1]})["y"], run(result, {"x": x[:1]})["y"]
    np.testing.assert_allclose(got[:, 1], right[:, 1], rtol=0.01)
    nothing = save(tmp_path / "z.onnx", nodes, weights | {"k": kernel * 0}, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 6, 6]})
    result = apply(nothing, tmp_path / "z", {"x": x})
    np.testing.assert_allclose(run(result, {"x": x[:1]})["y"], run(nothing, {"x": x[:1]})["y"], rtol=0.01)


# Graphs ----------------------------------------------------------------------------------------------------------


def transformer(path: Path, *, outlier: float = 40.0) -> Model:
    """A normalization whose output has one huge channel, two products, a GELU, and a residual."""
    scale = np.ones(16, "f4")
    scale[5] = outlier
    weights = {"scale": scale, "bias": normal(16), "w1": normal(16, 32), "b1": normal(32), "w2": normal(32, 16)}
    weights["w1"][5] /= outlier
    weights |= {"wq": normal(16, 16, seed=4), "wk": normal(16, 16, seed=5)}
    node = oh.make_node
    nodes = [
        node("LayerNormalization", ["x", "scale", "bias"], ["n"], name="norm"),
        node("MatMul", ["n", "wq"], ["q"], name="query"), node("MatMul", ["n", "wk"], ["k"], name="key"),
        node("Transpose", ["k"], ["t"], perm=[0, 2, 1]), node("MatMul", ["q", "t"], ["s"], name="scores"),
        node("Softmax", ["s"], ["p"]), node("MatMul", ["p", "x"], ["c"], name="context"),
        node("MatMul", ["n", "w1"], ["u"], name="up"), node("Add", ["u", "b1"], ["ub"]), node("Relu", ["ub"], ["g"]),
        node("MatMul", ["g", "w2"], ["d"], name="down"), node("Add", ["d", "c"], ["y"]),
    ]  # fmt: skip
    return save(path, nodes, weights, {"x": ["batch", 6, 16]}, {"y": ["batch", 6, 16]})


def test_migration_is_exact_in_float(tmp_path: Path) -> None:
    graph = Graph(open_graph(transformer(tmp_path / "m.onnx")))
    runs = [{"x": normal(2, 6, 16, seed=i)} for i in range(6)]
    sight = _static.look(graph, runs, "m")
    plan = _static.draft(graph, sight, _static.Options(smooth=0.6))
    assert set(plan.scales) == {"n", "g"}
    # Nothing is quantized: only the migration is left.
    wide = dict.fromkeys(plan.ranges, (-1000000000.0, 1000000000.0))
    built = Builder(graph).build(dataclasses.replace(plan, ranges=wide))
    for node in list(built.graph.node):
        if node.op_type == "QuantizeLinear":
            back = next(n for n in built.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == node.output[0])
            back.CopyFrom(oh.make_node("Identity", [node.input[0]], [back.output[0]], name=back.name))
            built.graph.node.remove(node)
    assert Judge(graph.proto, runs, "m").cosine(built) > 0.9995  # weights are 8-bit all the same


@given(st.floats(0, 1), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_migration_keeps_products(alpha: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((20, 8)) * np.exp(rng.standard_normal(8) * 3)).astype("f4")
    weight = rng.standard_normal((8, 4)).astype("f4")
    rows[:, 2], weight[3] = 0, 0
    scale = _smooth.migration(seen(rows), [weight], alpha)
    assert (scale > 0).all()
    assert np.isfinite(scale).all()
    right = rows.astype("f8") @ weight
    assert np.abs((rows / scale).astype("f8") @ (weight * scale[:, None]) - right).max() <= 1e-4 * np.abs(right).max()


def test_a_migration_is_chosen_where_a_channel_needs_it() -> None:
    rows, weight = normal(2000, 8), normal(8, 16, seed=4)
    assert _smooth.choose(seen(rows), [weight], None, free=False) is None
    rows[:, 3] *= 100
    scale = _smooth.choose(seen(rows), [weight], None, free=False)
    assert scale is not None
    assert scale.argmax() == 3
    assert _smooth.choose(seen(rows), [weight], 0.0, free=True) is None


def test_migration_brings_a_huge_channel_back(tmp_path: Path) -> None:
    model = transformer(tmp_path / "m.onnx")
    x = normal(40, 6, 16)
    right = run(model, {"x": x[32:]})["y"]
    found = {}
    for smooth in (0.0, 0.5, None):
        result = apply(model, tmp_path / str(smooth), {"x": x[:32]}, smooth=smooth, keep_cosine=0)
        found[smooth] = 1 - cosine(run(result, {"x": x[32:]})["y"], right)
    assert found[0.5] < found[0.0]
    assert found[None] <= min(found.values()) * 1.2
    # Where nobody else reads the normalization, it takes the migration over: no node is added for it.
    assert "Mul" not in load_model(tmp_path / "0.5/model.onnx").operators or (
        load_model(tmp_path / "0.5/model.onnx").operators["Mul"] == 1
    )


def integers(proto: onnx.ModelProto) -> dict[str, bool]:
    """Which products take their activation in 8 bits."""
    made = {output: node.op_type for node in proto.graph.node for output in node.output}
    return {n.name: made.get(n.input[0]) == "DequantizeLinear" for n in proto.graph.node if n.op_type == "MatMul"}


def test_the_worst_products_go_back_to_float(tmp_path: Path) -> None:
    model = transformer(tmp_path / "m.onnx", outlier=100.0)
    x = normal(40, 6, 16)
    kept = {}
    for keep in (0.0, 0.98):
        result = apply(model, tmp_path / str(keep), {"x": x[:32]}, smooth=0.0, keep_cosine=keep)
        kept[keep] = cosine(run(result, {"x": x[32:]})["y"], run(model, {"x": x[32:]})["y"])
        proto = onnx.load(result.path)
        assert sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2 for t in proto.graph.initializer) == 4
    assert kept[0.98] > kept[0.0]
    assert kept[0.98] > 0.975
    count = [sum(integers(onnx.load(tmp_path / f"{keep}/model.onnx")).values()) for keep in (0.0, 0.98)]
    assert 0 < count[1] < count[0]


def test_a_limit_that_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot keep a cosine of 1 on `m`: with one product") as caught:
        apply(transformer(tmp_path / "m.onnx"), tmp_path / "q", {"x": normal(16, 6, 16)}, keep_cosine=1.0)
    assert "keep_cosine" in str(caught.value.hint)
    assert list((tmp_path / "q").iterdir()) == []


def test_a_weight_that_two_layers_share(tmp_path: Path) -> None:
    """Each has its own migration, and a third reader needs the float numbers."""
    nodes = [
        oh.make_node("MatMul", ["x", "w"], ["a"]), oh.make_node("Exp", ["a"], ["e"]),
        oh.make_node("MatMul", ["e", "w"], ["y"]), oh.make_node("ReduceSum", ["w"], ["total"], keepdims=0),
    ]  # fmt: skip
    model = save(tmp_path / "m.onnx", nodes, {"w": normal(8, 8) / 4}, {"x": [4, 8]}, {"y": [4, 8], "total": []})
    x = normal(32, 8)
    for smooth in (0.0, 0.5):
        result = apply(model, tmp_path / str(smooth), {"x": x}, smooth=smooth)
        right, got = (run(m, {"x": x[:4]}) for m in (model, result))
        assert cosine(right["y"], got["y"]) > 0.999
        np.testing.assert_allclose(got["total"], right["total"], rtol=1e-6)
        stored = [t for t in onnx.load(result.path).graph.initializer if t.data_type == onnx.TensorProto.INT8]
        assert sum(len(t.dims) == 2 for t in stored) == (1 if smooth == 0 else 2)


def test_weights_as_constant_nodes(tmp_path: Path) -> None:
    w = nh.from_array(normal(8, 4), "w")
    nodes = [oh.make_node("Constant", [], ["w"], value=w), oh.make_node("MatMul", ["x", "w"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, {}, {"x": [2, 8]}, {"y": [2, 4]})
    result = apply(model, tmp_path / "q", {"x": normal(16, 8)})
    assert "Constant" not in result.operators
    assert any(t.data_type == onnx.TensorProto.INT8 for t in onnx.load(result.path).graph.initializer)


def test_products_of_a_kind_that_int8_lacks(tmp_path: Path) -> None:
    nodes = [oh.make_node("Gemm", ["x", "w"], ["y"], alpha=2.0)]
    model = save(tmp_path / "m.onnx", nodes, {"w": normal(8, 4)}, {"x": [2, 8]}, {"y": [2, 4]})
    with pytest.raises(UsageError, match="no float32 product"):
        apply(model, tmp_path / "q", {"x": normal(16, 8)})
    more = [*nodes, oh.make_node("MatMul", ["y", "v"], ["z"])]
    weights = {"w": normal(8, 4), "v": normal(4, 3)}
    result = apply(
        save(tmp_path / "n.onnx", more, weights, {"x": [2, 8]}, {"z": [2, 3]}), tmp_path / "r", {"x": normal(16, 8)}
    )
    assert result.operators == {"QuantizeLinear": 1, "DequantizeLinear": 2, "Gemm": 1, "MatMul": 1}


def test_activations_that_are_constant_or_not_finite(tmp_path: Path) -> None:
    nodes = [oh.make_node("Sub", ["x", "x"], ["o"]), oh.make_node("MatMul", ["o", "w"], ["a"]),
             oh.make_node("MatMul", ["x", "w"], ["b"]), oh.make_node("Add", ["a", "b"], ["y"])]  # fmt: skip
    model = save(tmp_path / "m.onnx", nodes, {"w": normal(8, 4)}, {"x": [2, 8]}, {"y": [2, 4]})
    x = normal(16, 8)
    result = apply(model, tmp_path / "q", {"x": x})
    assert cosine(run(result, {"x": x[:2]})["y"], run(model, {"x": x[:2]})["y"]) > 0.999
    nodes[0] = oh.make_node("Log", ["x"], ["o"])
    broken = save(tmp_path / "b.onnx", nodes, {"w": normal(8, 4)}, {"x": [2, 8]}, {"y": [2, 4]})
    with pytest.raises(UsageError, match="NaN or infinity in `o`"):
        apply(broken, tmp_path / "r", {"x": x})


def test_nodes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    nodes = [oh.make_node("MatMul", ["x", "w"], ["h"], name="n"), oh.make_node("MatMul", ["h", "v"], ["y"], name="n")]
    model = save(tmp_path / "m.onnx", nodes, {"w": normal(8, 8), "v": normal(8, 4)}, {"x": [2, 8]}, {"y": [2, 4]})
    assert apply(model, tmp_path / "q", {"x": normal(16, 8)}).operators["QuantizeLinear"] == 2


def test_a_runtime_that_fails_is_put_into_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("odd graph")

    monkeypatch.setattr("onnxruntime.InferenceSession", fail)
    nodes = [oh.make_node("MatMul", ["x", "w"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, {"w": normal(8, 4)}, {"x": [2, 8]}, {"y": [2, 4]})
    with pytest.raises(ModelError, match="`m` does not run on the calibration data: RuntimeError: odd graph"):
        apply(model, tmp_path / "q", {"x": normal(16, 8)})


def test_embeddings_are_looked_up_in_eight_bits(tmp_path: Path) -> None:
    nodes = [oh.make_node("Cast", ["x"], ["ids"], to=onnx.TensorProto.INT64),
             oh.make_node("Gather", ["table", "ids"], ["e"]), oh.make_node("MatMul", ["e", "w"], ["y"])]  # fmt: skip
    table = normal(2000, 16) * np.exp(normal(2000, 1) / 4)
    model = save(tmp_path / "m.onnx", nodes, {"table": table, "w": normal(16, 8)}, {"x": [4]}, {"y": [4, 8]})
    ids = np.random.default_rng(0).integers(0, 2000, 64).astype("f4")
    result = apply(model, tmp_path / "q", {"x": ids})
    assert result.path.stat().st_size < model.path.stat().st_size / 3
    right, got = (run(m, {"x": ids[:4]})["y"] for m in (model, result))
    assert cosine(right, got) > 0.999


def test_signed_steps(tmp_path: Path) -> None:
    nodes = [oh.make_node("Conv", ["x", "k"], ["h"]), oh.make_node("Relu", ["h"], ["r"]),
             oh.make_node("Conv", ["r", "l"], ["y"])]  # fmt: skip
    weights = {"k": normal(4, 3, 3, 3), "l": normal(2, 4, 1, 1)}
    model = save(tmp_path / "m.onnx", nodes, weights, {"x": [1, 3, 8, 8]}, {"y": [1, 2, 6, 6]})
    x = normal(16, 3, 8, 8)
    for signed in (False, True):
        result = apply(model, tmp_path / str(signed), {"x": x}, signed=signed)
        proto = onnx.load(result.path)
        kinds = {t.name: t.data_type for t in proto.graph.initializer}
        steps = [kinds[n.input[2]] for n in proto.graph.node if n.op_type == "QuantizeLinear"]
        first = onnx.TensorProto.INT8 if signed else onnx.TensorProto.UINT8
        assert steps == [first, onnx.TensorProto.UINT8]  # what is never negative stays unsigned
        assert cosine(run(result, {"x": x[:1]})["y"], run(model, {"x": x[:1]})["y"]) > 0.999


# NNCF ------------------------------------------------------------------------------------------------------------


def test_nncf_that_is_nowhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORTOLAN_PYTHON_NNCF", raising=False)
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    model = transformer(tmp_path / "m.onnx")
    reason = quantize.refuse(model, {"mode": "static", "method": "nncf"}, WIDE)
    assert reason is not None
    assert "`pip install nncf`" in reason
    assert "PORTOLAN_PYTHON_NNCF" in reason
    assert quantize.refuse(model, {"mode": "static"}, WIDE) is None
    monkeypatch.setenv("PORTOLAN_PYTHON_NNCF", "/elsewhere/python")
    assert quantize.refuse(model, {"mode": "static", "method": "nncf"}, WIDE) is None
    assert "`mode=static`" in str(quantize.refuse(model, {"method": "nncf"}, WIDE))
    with pytest.raises(UsageError, match="needs the package `nncf`") as caught:
        apply(model, tmp_path / "q", {"x": normal(16, 6, 16)}, method="nncf")
    assert caught.value.hint == "pip install nncf"


def test_nncf_is_asked_for_a_transformer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def fake(graph: onnx.ModelProto, data: list, **options: object) -> onnx.ModelProto:
        asked.update(options, rows=len(data))
        if asked.get("fail"):
            raise RuntimeError("odd graph")
        return graph

    library = types.ModuleType("nncf")
    library.quantize, library.Dataset = fake, list  # type: ignore[attr-defined]
    library.ModelType = types.SimpleNamespace(TRANSFORMER="transformer")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nncf", library)
    monkeypatch.setenv("PORTOLAN_PYTHON_NNCF", "python")
    model = transformer(tmp_path / "m.onnx")
    result = apply(model, tmp_path / "q", {"x": normal(16, 6, 16)}, method="nncf")
    assert result.features == ("int8:static",)
    assert asked == {"model_type": "transformer", "subset_size": 12, "rows": 12}
    assert sys.modules["openvino_telemetry"] is None
    asked["fail"] = True
    with pytest.raises(ModelError, match="NNCF cannot quantize `m`: RuntimeError: odd graph") as caught:
        apply(model, tmp_path / "r", {"x": normal(16, 6, 16)}, method="nncf")
    assert caught.value.hint == "use `quantize` with `method=auto`"
