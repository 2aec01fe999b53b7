"""Weights in 8, 4 and 2 bits and in 16-bit floats: the grids, the graphs that hold them, and what is refused."""

from __future__ import annotations

import dataclasses
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
from portolan.core.silence import runtime
from portolan.errors import ModelError, UsageError
from portolan.passes import _graphs, _lowbits, _moments
from portolan.passes._floats import _bfloat16
from portolan.passes._opset import at_opset
from portolan.passes._round import group_of, rounded
from portolan.passes._weights import layers, store
from portolan.passes.quantize import quantize
from portolan.testing.models import free_batch, perceptron, this_machine
from portolan.testing.passes import run

FLOAT = onnx.TensorProto.FLOAT


def apply(model: Model, out: Path, calibration: object = None, **options: object) -> Model:
    out.mkdir(parents=True)
    options = {"mode": "weights", **options}
    return quantize(model, Context(out, this_machine(), calibration), **options)  # type: ignore[arg-type]


def normal(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def save(path: Path, nodes: list, weights: dict, inputs: dict, outputs: dict, opset: int = 18) -> Model:
    tensors = [nh.from_array(np.asarray(value), name) for name, value in weights.items()]
    kinds = {"ids": onnx.TensorProto.INT64}
    sides = [
        [oh.make_tensor_value_info(n, kinds.get(n, FLOAT), s) for n, s in side.items()] for side in (inputs, outputs)
    ]
    graph = oh.make_graph(nodes, "g", *sides, tensors)
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=9), path)
    return load_model(path)


def floated(graph: onnx.ModelProto, codes: dict) -> onnx.ModelProto:
    """The float graph with weights replaced by what their codes stand for."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    for tensor in copy.graph.initializer:
        if tensor.name in codes:
            tensor.CopyFrom(nh.from_array(codes[tensor.name], tensor.name))
    return copy


def answers(path: Path, inputs: dict) -> np.ndarray:
    """ONNX Runtime's answer with float activations: its own default rounds them to 8 bits."""
    ort = runtime("onnxruntime")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def everything(path: Path) -> tuple[Model, dict]:
    """Each kind of layer: MatMul, Gemm of every sort, a table, convolutions, a recurrent layer."""
    node = oh.make_node
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("MatMul", ["e", "w1"], ["h1"]),
        node("Reshape", ["h1", "flat"], ["f"]),
        node("Gemm", ["f", "w2", "b2"], ["h2"], transB=1, alpha=0.5, beta=2.0),
        node("Gemm", ["h2", "w3"], ["h3"], alpha=2.0),
        node("Gemm", ["h3", "w4", "b4"], ["h4"]),
        node("Reshape", ["h4", "image"], ["i"]),
        node("Conv", ["i", "k", "kb"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("ConvTranspose", ["c", "t"], ["ct"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Reshape", ["ct", "sequence"], ["s"]),
        node("LSTM", ["s", "lw", "lr"], ["", "y"], hidden_size=8),
    ]
    weights = {
        "table": normal(30, 32), "w1": normal(32, 64) / 6, "w2": normal(32, 64) / 6, "b2": normal(32),
        "w3": normal(32, 48) / 6, "w4": normal(48, 64) / 6, "b4": normal(64), "k": normal(32, 4, 3, 3) / 4,
        "kb": normal(32), "t": normal(32, 16, 2, 2) / 4, "lw": normal(1, 32, 64) / 6, "lr": normal(1, 32, 8) / 6,
        "flat": np.array([-1, 64]), "image": np.array([-1, 4, 4, 4]), "sequence": np.array([16, -1, 64]),
    }  # fmt: skip
    model = save(path, nodes, weights, {"ids": ["n", 2]}, {"y": None})
    return model, weights


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_every_kind_of_layer_computes_with_its_codes(tmp_path: Path, bits: int) -> None:
    model, weights = everything(tmp_path / "all.onnx")
    _, graph = _lowbits.opened_for_layers(model)
    found = layers(graph)
    assert [layer.name for layer in found] == ["table", "w1", "w2", "w3", "w4", "k", "t", "lw", "lr"]
    codes = {layer: rounded(layer.matrix(weights[layer.name]), bits, layer.group(bits, 32)) for layer in found}
    right = floated(graph, {layer.name: layer.array(c.matrix()) for layer, c in codes.items()})
    onnx.save(right, tmp_path / "right.onnx")
    result = store(graph, list(codes.items()), "all")
    onnx.checker.check_model(result, full_check=True)
    onnx.save(result, tmp_path / "codes.onnx")
    ids = np.random.default_rng(0).integers(0, 30, (3, 2))
    want, got = (answers(tmp_path / f"{name}.onnx", {"ids": ids}) for name in ("right", "codes"))
    np.testing.assert_allclose(got, want, atol=2e-5)
    big = [t for t in result.graph.initializer if t.data_type == FLOAT and np.prod(t.dims) > 100]
    assert big == []
    for layer, c in codes.items():
        assert abs(layer.stored(bits, 32) - c.stored) <= c.scale.size


@pytest.mark.parametrize("bits", [8, 4])
def test_openvino_computes_the_same(tmp_path: Path, bits: int) -> None:
    model, _ = everything(tmp_path / "all.onnx")
    result = apply(model, tmp_path / "q", bits=bits, method="rtn", group=32)
    ids = np.random.default_rng(0).integers(0, 30, (3, 2))
    settings_ = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = runtime("openvino").Core().compile_model(str(result.path), "CPU", settings_)
    np.testing.assert_allclose(compiled({"ids": ids})[0], answers(result.path, {"ids": ids}), atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([8, 4, 2]), rows=st.integers(1, 80), columns=st.integers(1, 9), seed=st.integers(0, 99),
    method=st.sampled_from(["rtn", "hqq", "gptq"]), size=st.sampled_from([1e-9, 1e-3, 1.0, 1e6]),
)  # fmt: skip
def test_a_code_is_near_its_weight(bits: int, rows: int, columns: int, seed: int, method: str, size: float) -> None:
    """Whatever the size of weights: codes are in range, and the error is below that of all zeros."""
    w = normal(rows, columns, seed=seed) * np.float32(size)
    x = normal(20, rows, seed=seed + 1).astype("f8")
    codes = rounded(w, bits, group_of(rows, 32, bits), method, x.T @ x if method == "gptq" else None)
    assert codes.codes.max() < 2**bits
    assert codes.zero.max() < 2**bits
    assert np.isfinite(codes.scale).all()
    assert (codes.scale > 0).all()
    assert codes.half == (size in (1e-3, 1.0) and bool((codes.scale >= 6e-5).all())) or size not in (1e-9,)
    if method != "gptq":
        assert np.square(codes.matrix() - w).sum() <= np.square(w).sum()


def test_gptq_beats_rounding_and_hqq_the_p_norm() -> None:
    w, basis = normal(128, 40), normal(16, 128, seed=1)
    x = (normal(400, 16, seed=2) @ basis + 0.1 * normal(400, 128, seed=4)).astype("f8")
    moments = x.T @ x
    for bits in (4, 2):

        def error(method: str) -> float:
            d = rounded(w, bits, 32, method, moments if method == "gptq" else None).matrix() - w  # noqa: B023
            return float(np.trace(d.T @ moments @ d))

        assert error("gptq") < 0.5 * error("rtn")
        norms = {m: (np.abs(rounded(w, bits, 32, m).matrix() - w) ** 0.7).sum() for m in ("rtn", "hqq")}
        assert norms["hqq"] < norms["rtn"]


def test_moments_that_say_nothing_or_are_singular() -> None:
    w = normal(32, 5)
    plain = rounded(w, 4, 32)
    assert (rounded(w, 4, 32, "gptq", np.zeros((32, 32))).codes == plain.codes).all()
    one = np.zeros((32, 32))
    one[3, 3] = 1.0
    assert np.isfinite(rounded(w, 4, 32, "gptq", one).matrix()).all()


def test_zeros_stay_zero() -> None:
    w = np.zeros((32, 4), "f4")
    for method in ("rtn", "hqq"):
        codes = rounded(w, 4, 16, method)
        assert not codes.matrix().any()
        assert codes.half


@pytest.mark.parametrize(
    ("rows", "asked", "bits", "group"),
    [(384, 128, 4, 128), (576, 128, 4, 64), (100, 128, 4, 100), (384, 128, 8, 384), (48, 100, 2, 16), (8, 64, 4, 8)],
)
def test_groups_divide_the_rows(rows: int, asked: int, bits: int, group: int) -> None:
    assert group_of(rows, asked, bits) == group


@pytest.mark.parametrize(("bits", "least"), [(8, 3.95), (4, 7.5), (2, 14.0)])
def test_stored_bytes_of_a_model_that_is_weights(tmp_path: Path, bits: int, least: float) -> None:
    nodes = [oh.make_node("MatMul", ["x", "w"], ["h"]), oh.make_node("MatMul", ["h", "v"], ["y"])]
    weights = {"w": normal(512, 1024), "v": normal(1024, 512)}
    model = save(tmp_path / "m.onnx", nodes, weights, {"x": ["n", 512]}, {"y": ["n", 512]})
    result = apply(model, tmp_path / "q", bits=bits, method="rtn")
    assert model.path.stat().st_size / result.path.stat().st_size >= least
    assert result.features == (f"weights:int{bits}",)


def test_a_table_that_is_a_product_too(tmp_path: Path) -> None:
    """Language models tie the two; and a weight that two products share is stored once."""
    nodes = [
        oh.make_node("Gather", ["table", "ids"], ["e"]),
        oh.make_node("MatMul", ["e", "w"], ["a"]),
        oh.make_node("Tanh", ["a"], ["t"]),
        oh.make_node("MatMul", ["t", "w"], ["b"]),
        oh.make_node("Gemm", ["b", "table"], ["y"], transB=1),
    ]
    weights = {"table": normal(50, 32), "w": normal(32, 32) / 6}
    model = save(tmp_path / "m.onnx", nodes, weights, {"ids": [3]}, {"y": [3, 50]})
    _, graph = _lowbits.opened_for_layers(model)
    assert [(x.name, x.role, len(x.users)) for x in layers(graph)] == [
        ("table", "table", 1), ("w", "product", 2), ("table", "product", 1)
    ]  # fmt: skip
    runs = [{"ids": np.array([i, i + 1, i + 2])} for i in range(16)]
    h = _moments.hessians(graph, layers(graph), runs, "m")
    e = np.concatenate([weights["table"][r["ids"]] for r in runs])
    t = np.tanh(e @ weights["w"])
    np.testing.assert_allclose(h["w"], e.T @ e + t.T @ t, rtol=1e-3)
    ids = np.stack([run["ids"] for run in runs])
    result = apply(model, tmp_path / "q", {"ids": ids}, bits=4)
    assert sum(t.data_type == onnx.TensorProto.UINT4 for t in onnx.load(result.path).graph.initializer) == 4
    x = np.array([3, 7, 49])
    right, got = (answers(m.path, {"ids": x}) for m in (model, result))
    assert np.square(got - right).sum() < 0.05 * np.square(right).sum()


def test_constants_inside_nodes_count_and_floats_that_others_need_stay(tmp_path: Path) -> None:
    nodes = [
        oh.make_node("Constant", [], ["w"], value=nh.from_array(normal(16, 8))),
        oh.make_node("MatMul", ["x", "w"], ["h"]),
        oh.make_node("Gemm", ["h", "v"], ["g"], transA=1),
        oh.make_node("Identity", ["w"], ["same"]),
        oh.make_node("Add", ["g", "g"], ["y"]),
    ]
    outputs = {"y": [8, 3], "same": [16, 8]}
    model = save(tmp_path / "m.onnx", nodes, {"v": normal(4, 3)}, {"x": [4, 16]}, outputs)
    result = apply(model, tmp_path / "q")
    assert result.operators["DequantizeLinear"] == 1
    x = {"x": normal(4, 16)}
    right, got = run(model, x), run(result, x)
    np.testing.assert_array_equal(got["same"], right["same"])
    np.testing.assert_allclose(got["y"], right["y"], atol=0.05 * float(np.abs(right["y"]).max()))


def test_ids_of_unknown_rank(tmp_path: Path) -> None:
    model = load_model(save(tmp_path / "m.onnx", [oh.make_node("Gather", ["t", "ids"], ["y"])],
                            {"t": normal(9, 64)}, {"ids": ["a", "b"]}, {"y": ["a", "b", 64]}).path)  # fmt: skip
    _, graph = _lowbits.opened_for_layers(model)
    (layer,) = layers(graph)
    codes = rounded(layer.matrix(normal(9, 64)), 4, 16)
    graph.graph.node[0].input[1] = "raw"
    graph.graph.input[0].name = "raw"
    graph.graph.input[0].type.tensor_type.ClearField("shape")
    result = store(graph, [(layer, codes)], "m")
    assert [n.op_type for n in result.graph.node if n.op_type in ("Shape", "Reshape")] == ["Shape", "Reshape"]
    result.graph.input[0].CopyFrom(oh.make_tensor_value_info("raw", onnx.TensorProto.INT64, ["a", "b"]))
    onnx.save(result, tmp_path / "r.onnx")
    got = answers(tmp_path / "r.onnx", {"raw": np.array([[1, 8]])})
    np.testing.assert_allclose(got[0], layer.array(codes.matrix())[[1, 8]], atol=1e-6)


def test_odd_entries_have_eight_bits(tmp_path: Path) -> None:
    nodes = [oh.make_node("Gather", ["t", "ids"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, {"t": normal(9, 13)}, {"ids": [2]}, {"y": [2, 13]})
    result = apply(model, tmp_path / "q", bits=2, method="rtn")
    x = np.array([1, 8])
    np.testing.assert_allclose(answers(result.path, {"ids": x}), answers(model.path, {"ids": x}), atol=0.02)


@pytest.mark.parametrize("columns", [10, 11, 12])
def test_products_of_two_bits_repeat_themselves(tmp_path: Path, columns: int) -> None:
    """ONNX Runtime reads beyond 2-bit codes whose columns do not fill bytes; those get 4 bits."""
    nodes = [oh.make_node("MatMul", ["x", "w"], ["y"])]
    w = normal(64, columns)
    model = save(tmp_path / "m.onnx", nodes, {"w": w}, {"x": [4, 64]}, {"y": [4, columns]})
    result = apply(model, tmp_path / "q", bits=2, method="rtn", group=16)
    kind = onnx.TensorProto.UINT2 if columns == 12 else onnx.TensorProto.UINT4
    assert kind in {t.data_type for t in onnx.load(result.path).graph.initializer}
    x = {"x": normal(4, 64)}
    first, second = (answers(result.path, x) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    right = x["x"] @ w
    assert np.square(first - right).sum() < 0.3 * np.square(right).sum()


def test_embeddings_can_stay_and_padding_does_not_count(tmp_path: Path) -> None:
    nodes = [
        oh.make_node("Gather", ["t", "ids"], ["e"]),
        oh.make_node("Mul", ["e", "m"], ["em"]),
        oh.make_node("MatMul", ["em", "w"], ["y"]),
    ]
    # `attention_mask` is a float here: what counts is its name and shape.
    nodes.insert(1, oh.make_node("Unsqueeze", ["attention_mask", "last"], ["m"]))
    weights = {"t": normal(9, 16), "w": normal(16, 4), "last": np.array([-1])}
    model = save(tmp_path / "m.onnx", nodes, weights, {"ids": [1, 5], "attention_mask": [1, 5]}, {"y": [1, 5, 4]})
    _, graph = _lowbits.opened_for_layers(model)
    assert [layer.role for layer in layers(graph, embeddings=False)] == ["product"]
    inputs = {"ids": np.array([[1, 2, 3, 0, 0]]), "attention_mask": np.array([[1, 1, 1, 0, 0]], "f4")}
    e = weights["t"][[1, 2, 3]]
    h = _moments.hessians(graph, layers(graph), [inputs], "m")
    np.testing.assert_allclose(h["w"], e.T @ e, rtol=1e-4)
    result = apply(model, tmp_path / "q", embeddings=False)
    assert result.operators["Gather"] == 1


def test_what_is_refused(tmp_path: Path) -> None:
    model = load_model(perceptron(tmp_path).model.path)
    machine = this_machine()
    adds = dataclasses.replace(model, operators={"Add": 2})
    weights = {"mode": "weights"}
    assert "no operator with weights" in str(quantize.refuse(adds, weights, machine))
    assert quantize.refuse(model, {"mode": "weights", "bits": 4}, machine) is None
    assert "activations need 8 bits" in str(quantize.refuse(model, {"bits": 4}, machine))
    assert "activations need 8 bits" in str(quantize.refuse(model, {"bits": 2, "mode": "static"}, machine))
    assert "16 of its own" in str(quantize.refuse(model, {"bits": 4, "mode": "float16"}, machine))
    for feature in ("weights:int4", "int8:dynamic"):
        done = dataclasses.replace(model, features=(feature,))
        assert "already" in str(quantize.refuse(done, weights, machine))
    short = dataclasses.replace(model, features=("bfloat16",))
    assert "bfloat16 already" in str(quantize.refuse(short, weights, machine))
    assert "bfloat16 already" in str(quantize.refuse(short, {}, machine))
    again = apply(model, tmp_path / "q")
    for options in (weights, {"mode": "float16"}, {}):
        assert "already" in str(quantize.refuse(again, options, machine))
        (tmp_path / f"again {options}").mkdir()
        with pytest.raises(UsageError, match="already"):
            quantize(again, Context(tmp_path / f"again {options}", machine, None), **options)
    assert quantize.needs({"mode": "weights", "bits": 4}) == "calibration"
    assert quantize.needs({"mode": "weights", "bits": 4, "method": "hqq"}) == "nothing"
    assert quantize.needs({"mode": "weights"}) == "nothing"
    with pytest.raises(UsageError, match="`group` cannot be 8") as caught:
        apply(model, tmp_path / "g", group=8)
    assert "16 or more" in str(caught.value.hint)


def test_nothing_to_quantize(tmp_path: Path) -> None:
    nodes = [oh.make_node("MatMul", ["a", "b"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, {}, {"a": [4, 8], "b": [8, 4]}, {"y": [4, 4]})
    for options, message in (({}, "constant weights"), ({"mode": "float16"}, "no float32 weights")):
        with pytest.raises(UsageError, match=message) as caught:
            apply(model, tmp_path / str(options), **options)
        assert caught.value.hint
        assert list((tmp_path / str(options)).iterdir()) == []


def test_calibration_data_that_will_not_do(tmp_path: Path) -> None:
    model = load_model(free_batch(tmp_path).model.path)
    bad = normal(16, 16)
    bad[3, 2] = np.nan
    cases = {"GPTQ needs calibration data": None, "GPTQ needs at least 8": {"x": normal(7, 16)}, "NaN": {"x": bad}}
    for i, (message, data) in enumerate(cases.items()):
        with pytest.raises(UsageError, match=message) as caught:
            apply(model, tmp_path / str(i), data, bits=4)
        assert caught.value.hint
    nodes = [oh.make_node("Log", ["x"], ["l"]), oh.make_node("MatMul", ["l", "w"], ["y"])]
    logs = save(tmp_path / "log.onnx", nodes, {"w": normal(16, 4)}, {"x": ["n", 16]}, {"y": ["n", 4]})
    with pytest.raises(UsageError, match="NaN or infinite activations"):
        apply(logs, tmp_path / "log", {"x": normal(16, 16)}, bits=4)


@pytest.mark.parametrize("options", [{}, {"bits": 4, "method": "hqq"}, {"mode": "float16"}, {"mode": "bfloat16"}])
def test_weights_that_are_nan(tmp_path: Path, options: dict) -> None:
    w = normal(16, 8)
    w[3, 3] = np.nan
    nodes = [oh.make_node("MatMul", ["x", "w"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, {"w": w}, {"x": [2, 16]}, {"y": [2, 8]})
    with pytest.raises(ModelError, match="`w` holds NaN") as caught:
        apply(model, tmp_path / "q", **options)
    assert caught.value.hint


def test_a_graph_that_cannot_be_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(graph: object, version: int) -> None:
        raise RuntimeError("no adapter")

    model = load_model(perceptron(tmp_path).model.path)
    monkeypatch.setattr(onnx.version_converter, "convert_version", fail)
    with pytest.raises(ModelError, match="operator set 21") as caught:
        apply(model, tmp_path / "q", bits=4, method="rtn")
    assert "bits=8" in str(caught.value.hint)


def test_graphs_that_onnx_runtime_cannot_load_or_run(tmp_path: Path) -> None:
    model = load_model(perceptron(tmp_path).model.path)
    _, graph = _lowbits.opened_for_layers(model)
    found = layers(graph)
    with pytest.raises(ModelError, match="`m` does not run on the calibration data") as caught:
        _moments.hessians(graph, found, [{"x": normal(8, 3)}], "m")
    assert caught.value.hint
    graph.graph.node[0].op_type = "Mystery"
    with pytest.raises(ModelError, match=r"`m` does not run on the calibration data: .*Mystery"):
        _moments.hessians(graph, found, [{"x": normal(8, 32)}], "m")


def test_too_little_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(_lowbits, "rounded", fail)
    with pytest.raises(ModelError, match="not enough memory"):
        apply(load_model(perceptron(tmp_path).model.path), tmp_path / "q")


def test_weights_beyond_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """External data in, and out where one file would be too large for protobuf: here the limit is 4 KiB."""
    nodes = [oh.make_node("MatMul", ["x", "w"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, {"w": normal(256, 128)}, {"x": [2, 256]}, {"y": [2, 128]})
    (tmp_path / "e").mkdir()
    onnx.save(
        onnx.load(model.path), tmp_path / "e/m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    write = _graphs.write
    monkeypatch.setattr(_graphs, "write", lambda proto, path: write(proto, path, 4096))
    outside = load_model(tmp_path / "e/m.onnx")
    for options in ({"bits": 4, "method": "rtn"}, {"bits": 2, "method": "rtn"}, {"mode": "float16"}):
        result = apply(outside, tmp_path / str(options), **options)
        assert {p.name for p in result.path.parent.iterdir()} == {"model.onnx", "model.data"}
        assert answers(result.path, {"x": normal(2, 256)}).shape == (2, 128)


@pytest.mark.parametrize(("kind", "error"), [("float16", 6e-4), ("bfloat16", 5e-3)])
def test_sixteen_bits(tmp_path: Path, kind: str, error: float) -> None:
    model, _ = everything(tmp_path / "all.onnx")
    result = apply(model, tmp_path / "q", mode=kind)
    assert result.features == (kind,)
    kinds = {onnx.TensorProto.DataType.Name(t.data_type) for t in onnx.load(result.path).graph.initializer
             if np.prod(t.dims) >= 64}  # fmt: skip
    assert kinds == {kind.upper()}
    ids = {"ids": np.random.default_rng(0).integers(0, 30, (3, 2))}
    right = answers(model.path, ids)
    np.testing.assert_allclose(answers(result.path, ids), right, atol=10 * error)
    compiled = runtime("openvino").Core().compile_model(str(result.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled(ids)[0], right, atol=10 * error)


def test_what_float16_cannot_hold_stays_float32(tmp_path: Path) -> None:
    nodes = [oh.make_node("MatMul", ["x", "w"], ["h"]), oh.make_node("MatMul", ["h", "v"], ["y"])]
    weights = {"w": normal(16, 16) * 1e5, "v": normal(16, 8)}
    model = save(tmp_path / "m.onnx", nodes, weights, {"x": [2, 16]}, {"y": [2, 8]})
    result = apply(model, tmp_path / "q", mode="float16")
    kinds = {t.name: t.data_type for t in onnx.load(result.path).graph.initializer}
    assert kinds["w"] == FLOAT
    assert kinds["v.float16"] == onnx.TensorProto.FLOAT16


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_bfloat16_is_the_nearest(values: list[float]) -> None:
    array = np.array(values, "f4")
    back = (_bfloat16(array).astype(np.uint32) << np.uint32(16)).view(np.float32)
    assert np.isfinite(back).all()
    tiny = np.finfo(np.float32).smallest_normal
    assert (np.abs(back.astype("f8") - array) <= np.maximum(np.abs(array.astype("f8")) / 128, tiny)).all()


def test_conversion_leaves_large_constants_out(tmp_path: Path) -> None:
    model, weights = everything(tmp_path / "all.onnx")
    graph = onnx.load(model.path)
    later = at_opset(graph, 21, "all")
    assert {o.version for o in later.opset_import} == {21}
    assert {t.name for t in later.graph.initializer} == set(weights)
    assert [v.name for v in later.graph.input] == ["ids"]
