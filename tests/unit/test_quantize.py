"""quantize: what becomes int8, what stays float, what is refused, and which calibration data will do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime.quantization
import pytest
from onnx import helper as oh
from onnx import numpy_helper as nh

from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context
from portolan.core.target import Target
from portolan.errors import ModelError, PortolanError, UsageError
from portolan.frontends.demo import demo_data, folder
from portolan.passes import _calibration
from portolan.passes._products import attends
from portolan.passes.quantize import quantize
from portolan.testing.models import convolutions, external, free_batch, perceptron, this_machine
from portolan.testing.passes import contents, run

FLOAT = onnx.TensorProto.FLOAT
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def apply(
    model: Model, out: Path, calibration: object = None, target: Target | None = None, **options: object
) -> Model:
    out.mkdir(parents=True)
    return quantize(model, Context(out, target or this_machine(), calibration), **options)  # type: ignore[arg-type]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype("f4")


def save(path: Path, nodes: list, weights: dict, inputs: dict, outputs: dict, opset: int = 18) -> Model:
    tensors = [nh.from_array(np.asarray(value), name) for name, value in weights.items()]
    sides = [[oh.make_tensor_value_info(n, FLOAT, s) for n, s in side.items()] for side in (inputs, outputs)]
    graph = oh.make_graph(nodes, "g", *sides, tensors)
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=9), path)
    return load_model(path)


def block(path: Path) -> Model:
    """One head of attention and a feed-forward block with GELU, 16 wide, 6 tokens."""
    node = oh.make_node
    nodes = [
        node("MatMul", ["x", "wq"], ["q"], name="query"),
        node("MatMul", ["x", "wk"], ["k"], name="key"),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1], name="turn"),
        node("MatMul", ["q", "kt"], ["s"], name="scores"),
        node("Add", ["s", "mask"], ["sm"], name="masked"),
        node("Softmax", ["sm"], ["p"], axis=-1, name="softmax"),
        node("MatMul", ["p", "x"], ["c"], name="context"),
        node("LayerNormalization", ["c", "scale"], ["n"], name="norm"),
        node("MatMul", ["n", "w1"], ["u"], name="up"),
        node("Add", ["u", "b1"], ["ub"], name="up bias"),
        node("Div", ["ub", "root"], ["d"], name="div"),
        node("Erf", ["d"], ["e"], name="erf"),
        node("Add", ["e", "one"], ["e1"], name="plus"),
        node("Mul", ["ub", "e1"], ["g"], name="gate"),
        node("Mul", ["g", "half"], ["h"], name="gelu"),
        node("MatMul", ["h", "w2"], ["f"], name="down"),
        node("MatMul", ["f", "w3"], ["y"], name="head"),
    ]
    shapes = {"wq": (16, 16), "wk": (16, 16), "w1": (16, 64), "w2": (64, 16), "w3": (16, 8)}
    rng = np.random.default_rng(5)
    weights = {name: (rng.standard_normal(shape) / 4).astype("f4") for name, shape in shapes.items()}
    weights |= {"scale": np.ones(16, "f4"), "b1": normal(64), "mask": np.array([0, 0, 0, 0, 0, -1e4], "f4")}
    weights |= {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    return save(path, nodes, weights, {"x": ["batch", 6, 16]}, {"y": ["batch", 6, 8]})


@pytest.fixture(scope="module")
def digits() -> Model:
    return load_model(folder() / "digits.onnx")


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    return dict(np.load(demo_data("digits")))


def accuracy(model: Model, data: dict[str, np.ndarray]) -> float:
    return float((run(model, {"image": data["image"]})["logits"].argmax(1) == data["labels"]).mean())


def test_static_int8_keeps_the_digits_network_right(digits: Model, images: dict, tmp_path: Path) -> None:
    calibration = {"image": images["image"][:64]}
    evaluation = {name: array[64:] for name, array in images.items()}
    result = apply(digits, tmp_path / "s", calibration, mode="static")
    assert result.features == ("int8:static",)
    assert result.path.stat().st_size < 0.3 * digits.path.stat().st_size
    # One standard error of the accuracy is about half a point here.
    assert accuracy(digits, evaluation) - accuracy(result, evaluation) <= 0.015
    proto = onnx.load(result.path)
    made = {output: node.op_type for node in proto.graph.node for output in node.output}
    convolutions_ = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert len(convolutions_) == 6
    assert {made[name] for node in convolutions_ for name in node.input[:2]} == {"DequantizeLinear"}


def test_weights_get_a_scale_per_output_channel(digits: Model, images: dict, tmp_path: Path) -> None:
    for per_channel in (True, False):
        out = tmp_path / str(per_channel)
        result = apply(digits, out, {"image": images["image"][:16]}, mode="static", per_channel=per_channel)
        proto = onnx.load(result.path)
        tensors = {t.name: t for t in proto.graph.initializer}
        weights = [
            (tensors[n.input[0]], tensors[n.input[1]])
            for n in proto.graph.node
            if n.op_type == "DequantizeLinear" and n.input[0] in tensors and len(tensors[n.input[0]].dims) == 4
        ]
        assert len(weights) == 6
        assert all((list(scale.dims) == [weight.dims[0]]) == per_channel for weight, scale in weights)


def test_dynamic_weights_get_a_scale_per_output_channel(tmp_path: Path) -> None:
    """One scale for all costs MiniLM three points of cosine."""
    w, x = normal(16, 24) * np.geomspace(0.01, 1, 24, dtype="f4"), normal(9, 16)
    nodes = [oh.make_node("MatMul", ["x", "w"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, {"w": w}, {"x": ["n", 16]}, {"y": ["n", 24]})
    right, off = run(model, {"x": x})["y"], {}
    for per_channel in (True, False):
        result = apply(model, tmp_path / str(per_channel), per_channel=per_channel)
        scales = [nh.to_array(t) for t in onnx.load(result.path).graph.initializer if t.name.endswith("_scale")]
        assert [scale.size for scale in scales] == [24 if per_channel else 1]
        quiet = slice(0, 6)  # the channels of small weights
        moved = run(result, {"x": x})["y"][:, quiet] - right[:, quiet]
        off[per_channel] = float(np.linalg.norm(moved) / np.linalg.norm(right[:, quiet]))
    assert off[True] < 0.03 < off[False]


def test_dynamic_leaves_convolutions_alone(digits: Model, tmp_path: Path) -> None:
    result = apply(digits, tmp_path / "d")
    assert result.operators["Conv"] == digits.operators["Conv"]
    assert result.operators["MatMulInteger"] == 1
    assert "ConvInteger" not in result.operators


def test_a_transformer_block_in_static_int8(tmp_path: Path) -> None:
    model = block(tmp_path / "block.onnx")
    x = normal(40, 6, 16)
    result = apply(model, tmp_path / "s", {"x": x[:16]}, mode="static")
    proto = onnx.load(result.path)
    made = {output: node for node in proto.graph.node for output in node.output}
    inputs = {node.name: [made[name].op_type if name in made else "-" for name in node.input] for node in made.values()}
    for name in ("query", "key", "up", "down", "head"):
        assert inputs[name] == ["DequantizeLinear", "DequantizeLinear"], name
    # The scores too, the key's steps standing in front of the transposition; nothing else.
    assert inputs["scores"] == ["DequantizeLinear", "Transpose"]
    assert inputs["turn"] == ["DequantizeLinear"]
    floats = ("masked", "softmax", "context", "norm", "up bias", "div", "erf", "plus", "gate", "gelu")
    assert not any("DequantizeLinear" in inputs[name] for name in floats)
    right, got = run(model, {"x": x[16:]})["y"], run(result, {"x": x[16:]})["y"]
    cosine = (right * got).sum() / np.linalg.norm(right) / np.linalg.norm(got)
    assert cosine > 0.999


def test_what_counts_as_attention(tmp_path: Path) -> None:
    assert attends(onnx.load(block(tmp_path / "block.onnx").path))
    assert not attends(onnx.load(folder() / "digits.onnx"))
    assert not attends(onnx.load(convolutions(tmp_path).model.path))


@pytest.mark.parametrize(
    ("arch", "features", "largest"),
    [("x86_64", ("avx2",), 64), ("x86_64", ("avx2", "avx_vnni"), 127), ("aarch64", ("asimd",), 127)],
)
@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_seven_bits_where_sums_would_overflow(
    tmp_path: Path, arch: str, features: tuple[str, ...], largest: int, mode: str
) -> None:
    target = Target("other", "vm", arch, features, 2, 2**33)
    model = load_model(perceptron(tmp_path).model.path)
    result = apply(model, tmp_path / "q", {"x": normal(64, 32)}, target, mode=mode)
    stored = [nh.to_array(t) for t in onnx.load(result.path).graph.initializer if t.data_type == onnx.TensorProto.INT8]
    weights = [array for array in stored if array.ndim == 2]
    assert weights
    assert max(int(np.abs(array.astype(int)).max()) for array in weights) == pytest.approx(largest, abs=1)


def test_refusals_name_their_reason(digits: Model, tmp_path: Path) -> None:
    machine = this_machine()
    browser = dataclasses.replace(machine, arch="wasm32", features=())
    assert "WebAssembly" in str(quantize.refuse(digits, {}, browser))
    lookup = dataclasses.replace(digits, operators={"Gather": 1, "Add": 2})
    assert "neither" in str(quantize.refuse(lookup, {"mode": "dynamic"}, machine))
    assert "no Conv, MatMul or Gemm" in str(quantize.refuse(lookup, {"mode": "static"}, machine))
    convolutional = dataclasses.replace(digits, operators={"Conv": 3})
    assert "neither" in str(quantize.refuse(convolutional, {"mode": "dynamic"}, machine))
    assert quantize.refuse(convolutional, {"mode": "static"}, machine) is None
    assert "already" in str(quantize.refuse(dataclasses.replace(digits, features=("int8:static",)), {}, machine))
    foreign = dataclasses.replace(digits, operators={"MatMul": 1, "com.microsoft.MatMulNBits": 4})
    assert "already" in str(quantize.refuse(foreign, {}, machine))
    assert quantize.needs({"mode": "static"}) == "calibration"
    assert quantize.needs({"mode": "dynamic"}) == "nothing"


def test_products_of_two_activations_are_not_enough(tmp_path: Path) -> None:
    nodes = [oh.make_node("MatMul", ["a", "b"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, {}, {"a": [4, 8], "b": [8, 4]}, {"y": [4, 4]})
    with pytest.raises(UsageError, match="no Gemm, MatMul in it has constant weights"):
        apply(model, tmp_path / "d")
    with pytest.raises(UsageError, match="constant weights"):
        apply(model, tmp_path / "s", {"a": normal(8, 4, 8), "b": normal(8, 8, 4)}, mode="static")


def test_weights_behind_a_transpose_count_as_constant(tmp_path: Path) -> None:
    nodes = [oh.make_node("Transpose", ["w"], ["t"], perm=[1, 0]), oh.make_node("MatMul", ["x", "t"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, {"w": normal(4, 8)}, {"x": [2, 8]}, {"y": [2, 4]})
    assert apply(model, tmp_path / "d").operators["MatMulInteger"] == 1


def test_a_weight_that_is_a_table_and_transposed_a_product(tmp_path: Path) -> None:
    """Language models tie the two; each gets its own int8 copy."""
    nodes = [
        oh.make_node("Cast", ["x"], ["ids"], to=onnx.TensorProto.INT64),
        oh.make_node("Gather", ["table", "ids"], ["e"]),
        oh.make_node("Transpose", ["table"], ["t"]),
        oh.make_node("MatMul", ["e", "t"], ["y"]),
    ]
    model = save(tmp_path / "m.onnx", nodes, {"table": normal(50, 8)}, {"x": [3]}, {"y": [3, 50]})
    result = apply(model, tmp_path / "d")
    assert result.operators["MatMulInteger"] == 1
    assert all(t.data_type != FLOAT or len(t.raw_data) <= 200 for t in onnx.load(result.path).graph.initializer)
    x = np.array([3, 7, 49], "f4")
    np.testing.assert_allclose(run(result, {"x": x})["y"], run(model, {"x": x})["y"], atol=0.3)


def test_an_old_file_is_converted_first(tmp_path: Path) -> None:
    model = load_model(LIGHT / "light_squeezenet.onnx")
    assert model.opset < 13
    spec = model.signature.inputs[0]
    image = normal(8, *spec.shape[1:])  # type: ignore[misc]
    result = apply(model, tmp_path / "s", {spec.name: image}, mode="static")
    assert result.opset >= 13
    assert result.signature == model.signature
    assert contents(result.path)[1]["int8"] >= 26
    right, got = (next(iter(run(m, {spec.name: image[:1]}).values())) for m in (model, result))
    np.testing.assert_allclose(got, right, atol=0.05 * float(np.abs(right).max()))


def test_external_weights_end_in_one_file(tmp_path: Path) -> None:
    model = load_model(external(tmp_path).model.path)
    result = apply(model, tmp_path / "d")
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["model.onnx"]
    assert result.features == ("int8:dynamic",)


def test_calibration_data_that_will_not_do(digits: Model, images: dict, tmp_path: Path) -> None:
    good = images["image"][:16]
    broken = good.copy()
    broken[5, 0, 3, 3] = np.nan
    endless = good.copy()
    endless[7] = np.inf
    cases = {
        "needs calibration data": None,
        "at least 8 calibration samples, got 7": {"image": good[:7]},
        "at least 8 calibration samples, got 0": {},
        "NaN or infinite values, first in sample 5": {"image": broken},
        "NaN or infinite values, first in sample 7": {"image": endless},
        "all calibration samples are equal": {"image": np.repeat(good[:1], 16, axis=0)},
        "lack `image`": {"picture": good},
        "has type float64": {"image": good.astype("f8")},
        "has shape 1x1x7x8": {"image": good[:, :, 1:]},
    }
    for i, (message, calibration) in enumerate(cases.items()):
        with pytest.raises(UsageError, match=message) as caught:
            apply(digits, tmp_path / str(i), calibration, mode="static")
        assert caught.value.hint
        assert list((tmp_path / str(i)).iterdir()) == []


def test_how_many_samples_are_used_and_none_twice(digits: Model, tmp_path: Path) -> None:
    many = normal(1000, 1, 8, 8)
    fit, select = _calibration.divided(digits, {"image": many})
    assert (len(fit), len(select)) == (96, 32)
    assert not {run_["image"].tobytes() for run_ in fit} & {run_["image"].tobytes() for run_ in select}
    fit, select = _calibration.divided(load_model(perceptron(tmp_path).model.path), {"x": normal(20, 32)})
    assert [run_["x"].shape for run_ in (*fit, *select)] == [(8, 32)] * 3


def test_a_failing_library_is_a_model_error(
    digits: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **options: object) -> None:
        print("noise")
        raise RuntimeError("odd graph")

    monkeypatch.setattr(onnxruntime.quantization, "quantize_dynamic", fail)
    with pytest.raises(ModelError, match="cannot quantize `digits`: RuntimeError: odd graph"):
        apply(digits, tmp_path / "d")
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_cannot_be_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(graph: object, version: int) -> None:
        raise RuntimeError("no adapter")

    nodes = [oh.make_node("MatMul", ["x", "w"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, {"w": normal(8, 4)}, {"x": [2, 8]}, {"y": [2, 4]}, opset=11)
    monkeypatch.setattr(onnx.version_converter, "convert_version", fail)
    with pytest.raises(ModelError, match="operator set 13") as caught:
        apply(model, tmp_path / "d")
    assert "opset_version=13" in str(caught.value.hint)


def test_options_are_checked(tmp_path: Path) -> None:
    model = load_model(free_batch(tmp_path).model.path)
    for wrong in ({"bits": 3}, {"mode": "both"}, {"calibrator": "best"}):
        with pytest.raises(PortolanError, match="cannot be"):
            apply(model, tmp_path / str(wrong), **wrong)
    for wrong in ({"smooth": 1.5}, {"keep_cosine": -0.1}):
        with pytest.raises(UsageError, match="from 0 to 1"):
            apply(model, tmp_path / str(wrong), mode="static", **wrong)
    target = Target("here", "vm", "x86_64", ("avx_vnni",), 2, 2**33)
    tried = {name: p.values(target) for name, p in quantize.schema.parameters.items()}
    assert {name: values for name, values in tried.items() if len(values) > 1} == {
        "bits": (8, 4, 2),
        "mode": ("dynamic", "static", "weights", "float16", "bfloat16"),
        "keep_cosine": (0.99, 0.998),
    }
    assert tried["calibrator"] == ("minmax",)
