"""`finetune` and `distill`: what they recover, what they keep, and what they refuse."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from portolan.core.data import Data
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context, Pass, misplaced
from portolan.errors import ModelError, PortolanError, UnsupportedOperator, UsageError
from portolan.passes import _training
from portolan.passes._training import divide
from portolan.passes.distill import distill
from portolan.passes.finetune import finetune
from portolan.passes.quantize import quantize
from portolan.testing.models import case, this_machine
from portolan.testing.passes import run

pytestmark = pytest.mark.torch
DEMO = Path(__file__).parents[2] / "src" / "portolan" / "demo"
ROWS = 160


@pytest.fixture(scope="module")
def digits() -> Data:
    with np.load(DEMO / "digits.npz") as archive:
        return Data({"image": archive["image"]}, archive["labels"], "")


@pytest.fixture(scope="module")
def original() -> Model:
    return load_model(DEMO / "digits.onnx")


def changed(model: Model, folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> Model:
    """The model with every kernel and matrix changed."""
    proto = onnx.load(model.path)
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim > 1 and values.dtype == np.float32 and values.size > 500:
            tensor.CopyFrom(numpy_helper.from_array(change(values).astype(np.float32), tensor.name))
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, folder / "changed.onnx")
    return load_model(folder / "changed.onnx")


def smallest_dropped(share: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: np.where(abs(values) < np.quantile(abs(values), share), 0, values)


def two_of_four(values: np.ndarray) -> np.ndarray:
    groups = values.copy().reshape(-1, 4) if values.size % 4 == 0 else values
    if groups is not values:
        np.put_along_axis(groups, np.argsort(abs(groups), 1)[:, :2], 0, 1)
    return groups.reshape(values.shape)


def zeros(model: Model) -> dict[str, np.ndarray]:
    tensors = onnx.load(model.path).graph.initializer
    return {t.name: v == 0 for t in tensors if (v := numpy_helper.to_array(t)).ndim > 1 and v.dtype.kind == "f"}


def context(
    folder: Path, inputs: Mapping[str, np.ndarray] | None, labels: np.ndarray | None, original: Model | None
) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(folder, this_machine(), inputs, labels, original)


def accuracy(model: Model, data: Data) -> float:
    """On the rows that training does not get here."""
    scores = run(model, {"image": data.inputs["image"][ROWS:]})["logits"]
    assert data.labels is not None
    return float((scores.argmax(-1) == data.labels[ROWS:]).mean())


def trained(
    pass_: Pass, student: Model, teacher: Model | None, data: Data, folder: Path, labels: bool, **options: Any
) -> Model:
    rows = data.labels[:ROWS] if labels and data.labels is not None else None
    options = {"steps": 200, "learning_rate": 3e-3, "threads": 1} | options
    return pass_(student, context(folder, {"image": data.inputs["image"][:ROWS]}, rows, teacher), **options)


# What they recover ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pass_", "labels"), [(finetune, True), (finetune, False), (distill, True), (distill, False)])
def test_a_sparse_network_recovers_and_stays_as_sparse(
    pass_: Pass, labels: bool, digits: Data, original: Model, tmp_path: Path
) -> None:
    sparse = changed(original, tmp_path / "sparse", smallest_dropped(0.8))
    result = trained(pass_, sparse, original, digits, tmp_path / "out", labels)
    assert accuracy(sparse, digits) < 0.8
    assert accuracy(result, digits) > 0.9
    before, after = zeros(sparse), zeros(result)
    assert all((after[name] >= mask).all() for name, mask in before.items())


def test_two_of_four_stays_two_of_four(digits: Data, original: Model, tmp_path: Path) -> None:
    sparse = changed(original, tmp_path / "sparse", two_of_four)
    sparse = dataclasses.replace(sparse, features=("sparsity:2:4",))
    result = trained(finetune, sparse, original, digits, tmp_path / "out", True, steps=40)
    assert result.features == ("sparsity:2:4",)
    assert accuracy(result, digits) > accuracy(sparse, digits)
    before, after = zeros(sparse), zeros(result)
    assert all((after[name] >= mask).all() for name, mask in before.items())
    assert sum(mask.sum() for mask in before.values()) > 0.45 * sum(mask.size for mask in before.values())


def narrowed(model: Model, folder: Path) -> Model:
    """The digits network without half of the channels inside its last block."""
    proto = onnx.load(model.path)
    tensors = {t.name: t for t in proto.graph.initializer}
    convs = [n for n in proto.graph.node if n.op_type == "Conv"]
    first, second = convs[-2], convs[-1]
    weight = numpy_helper.to_array(tensors[first.input[1]])
    keep = np.sort(np.argsort(-abs(weight).sum((1, 2, 3)))[: len(weight) // 2])
    for name, axis in ((first.input[1], 0), (first.input[2], 0), (second.input[1], 1)):
        values = np.take(numpy_helper.to_array(tensors[name]), keep, axis)
        tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))
    del proto.graph.value_info[:]
    folder.mkdir()
    onnx.save(proto, folder / "narrow.onnx")
    return load_model(folder / "narrow.onnx")


def test_a_network_without_half_its_channels_recovers(digits: Data, original: Model, tmp_path: Path) -> None:
    narrow = narrowed(original, tmp_path / "narrow")
    result = trained(distill, narrow, original, digits, tmp_path / "out", False, steps=60)
    assert accuracy(result, digits) > max(0.97, accuracy(narrow, digits))
    shapes = [[list(t.dims) for t in onnx.load(m.path).graph.initializer] for m in (narrow, result)]
    assert shapes[0] == shapes[1]


def test_low_rank_weights_recover_a_transformers_outputs(tmp_path: Path) -> None:
    """A feed-forward block on tokens, whose matrices became products of two thin ones."""
    random = np.random.default_rng(0)
    table = random.standard_normal((30, 16)).astype(np.float32)
    # A spectrum that falls, as that of trained matrices does.
    full = (random.standard_normal((16, 16)) * 0.7 ** np.arange(16) @ random.standard_normal((16, 16))).astype("f4")
    u, s, v = np.linalg.svd(full)
    names = ("table", "w", "scale", "shift")
    ones, none = np.ones(16, np.float32), np.zeros(16, np.float32)
    ids = random.integers(0, 30, (64, 6))

    def build(name: str, weights: dict[str, np.ndarray]) -> Model:
        product = [helper.make_node("MatMul", ["e", "w"], ["p"])]
        if "a" in weights:
            product = [helper.make_node("MatMul", ["e", "a"], ["m"]), helper.make_node("MatMul", ["m", "b"], ["p"])]
        nodes = [
            helper.make_node("Gather", ["table", "ids"], ["e"]),
            *product,
            helper.make_node("Add", ["p", "e"], ["sum"]),
            helper.make_node("LayerNormalization", ["sum", "scale", "shift"], ["y"]),
        ]
        side = helper.make_tensor_value_info
        tensors = [numpy_helper.from_array(np.ascontiguousarray(w), k) for k, w in weights.items()]
        body = helper.make_graph(
            nodes, "g", [side("ids", 7, ["n", 6])], [side("y", 1, ["n", 6, 16])], tensors
        )  # fmt: skip
        return case(tmp_path, name, body, {"ids": ids[:3]}).model

    whole = build("whole", dict(zip(names, (table, full, ones, none), strict=True)))
    thin = {"table": table, "a": (u[:, :6] * s[:6]).astype("f4"), "b": v[:6].astype("f4"), "scale": ones, "shift": none}
    student = build("thin", thin)
    result = distill(
        student, context(tmp_path / "out", {"ids": ids[:48]}, None, whole), steps=150, learning_rate=3e-3, threads=1
    )
    right, before, after = (run(m, {"ids": ids[48:]})["y"] for m in (whole, student, result))
    assert ((after - right) ** 2).mean() < 0.6 * ((before - right) ** 2).mean()


def test_labels_that_are_values_are_learned(tmp_path: Path) -> None:
    side = helper.make_tensor_value_info
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"])]
    tensors = [numpy_helper.from_array(np.zeros(s, np.float32), n) for n, s in (("w", (3, 1)), ("b", (1,)))]
    body = helper.make_graph(nodes, "g", [side("x", 1, ["n", 3])], [side("y", 1, ["n", 1])], tensors)
    x = np.random.default_rng(0).standard_normal((80, 3)).astype(np.float32)
    model = case(tmp_path, "line", body, {"x": x[:2]}).model
    right = (x @ np.float32([[1.0], [-2.0], [0.5]]) + 3).astype(np.float32)
    # Its matrix is all zeros, which are kept: only the bias can learn.
    result = finetune(model, context(tmp_path / "out", {"x": x}, right, None), steps=200, learning_rate=0.1)
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(result.path).graph.initializer}
    assert not weights["w"].any()
    assert weights["b"][0] == pytest.approx(right.mean(), abs=0.3)


# What they keep -------------------------------------------------------------------------------------------------------


def test_never_worse_than_before_and_says_so(digits: Data, original: Model, tmp_path: Path) -> None:
    """The original against itself has nothing to gain; a step far too long only loses."""
    with pytest.warns(UserWarning, match="`distill` found no better weights for `digits`"):
        same = trained(distill, original, original, digits, tmp_path / "same", False)
    with pytest.warns(UserWarning, match="`finetune` found no better weights for `digits`"):
        wild = trained(finetune, original, original, digits, tmp_path / "wild", True, learning_rate=3.0, steps=5)
    tensors = onnx.load(original.path).graph.initializer
    for result in (same, wild):
        for new, old in zip(onnx.load(result.path).graph.initializer, tensors, strict=True):
            assert numpy_helper.to_array(new).tobytes() == numpy_helper.to_array(old).tobytes()


def test_equal_seeds_give_equal_bytes_and_torch_is_left_as_it_was(
    digits: Data, original: Model, tmp_path: Path
) -> None:
    import torch

    sparse = changed(original, tmp_path / "sparse", smallest_dropped(0.8))
    torch.set_num_threads(2)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    found = []
    for i, seed in enumerate((0, 0, 1)):
        result = trained(finetune, sparse, original, digits, tmp_path / str(i), True, steps=8, seed=seed)
        found.append(result.path.read_bytes())
    assert found[0] == found[1] != found[2]
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert bool((torch.get_rng_state() == state).all())


def test_the_time_limit_ends_it(digits: Data, original: Model, tmp_path: Path) -> None:
    import time

    sparse = changed(original, tmp_path / "sparse", smallest_dropped(0.8))
    begin = time.monotonic()
    trained(finetune, sparse, original, digits, tmp_path / "out", True, steps=10**6, seconds=1.0)
    assert time.monotonic() - begin < 20


def test_recovery_stands_between_structure_and_precision() -> None:
    for pass_ in (finetune, distill):
        assert pass_.stage({}) == "recovery"
        assert pass_.lossy({})
        assert pass_.produces({}) == ()
    assert misplaced("structure", "recovery") is None
    assert misplaced("recovery", "precision") is None
    assert misplaced("precision", "recovery")


def test_a_run_steps_on_other_rows_than_it_chooses_by(
    digits: Data, original: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped, chosen = set[int](), set[int]()
    step = _training._Run._step

    def noted(run: Any, optimizer: Any, rows: np.ndarray, rate: float) -> None:
        stepped.update(rows.tolist())
        chosen.update(run._select)
        step(run, optimizer, rows, rate)

    monkeypatch.setattr(_training._Run, "_step", noted)
    sparse = changed(original, tmp_path / "sparse", smallest_dropped(0.8))
    trained(finetune, sparse, original, digits, tmp_path / "out", True, steps=4)
    assert min(len(stepped), len(chosen)) >= 32
    assert not stepped & chosen


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=8, max_size=60).filter(lambda v: len(set(v)) >= 8), st.randoms())
def test_rows_to_choose_with_are_not_trained_on(values: list[int], random: Any) -> None:
    """Neither are copies of them, and their order decides nothing."""
    array = np.array(values, np.int64)[:, None]
    train, select = divide(Data({"x": array}, None, ""))
    assert sorted(train + select) == list(range(len(values)))
    assert train
    assert select
    chosen = {values[r] for r in select}
    assert not chosen & {values[r] for r in train}
    shuffled = list(values)
    random.shuffle(shuffled)
    _, again = divide(Data({"x": np.array(shuffled, np.int64)[:, None]}, None, ""))
    assert {shuffled[r] for r in again} == chosen


# What they refuse -----------------------------------------------------------------------------------------------------


def refused(pass_: Pass, model: Model, around: Context, match: str, **options: Any) -> PortolanError:
    with pytest.raises(UsageError, match=match) as caught:
        pass_(model, around, **options)
    assert caught.value.hint
    assert list(around.folder.iterdir()) == []
    return caught.value


@pytest.mark.parametrize("pass_", [finetune, distill])
def test_data_that_do_not_fit(pass_: Pass, digits: Data, original: Model, tmp_path: Path) -> None:
    images, labels = digits.inputs["image"][:20], digits.labels
    assert labels is not None
    few = np.repeat(images[:7], 4, axis=0)
    bad = images.copy()
    bad[3, 0, 2] = np.nan

    def at(inputs: Mapping[str, np.ndarray] | None, right: np.ndarray | None, teacher: Model | None = original) -> Any:
        return context(tmp_path, inputs, right, teacher)

    good = {"image": images}
    refused(pass_, original, at(None, None), "needs training data")
    refused(pass_, original, at({"x": images}, None), "training data lack `image`")
    refused(pass_, original, at({"image": few}, None), "at least 8 different samples, got 7")
    refused(pass_, original, at({"image": bad}, None), "`image` hold NaN or infinite values, first in sample 3")
    refused(pass_, original, at(good, None, None), "needs the original model")
    refused(pass_, original, at(good, labels[:19]), "there are 19 labels for 20 training samples")
    refused(pass_, original, at(good, np.int64(3)), "there are 1 labels for 20")
    refused(pass_, original, at(good, labels[:20] + 5), "labels run from")
    refused(pass_, original, at(good, np.array(["a"] * 20)), "labels of type <U1 cannot be trained on")
    refused(pass_, original, at(good, np.full(20, np.nan)), "labels hold NaN")
    refused(pass_, original, at(good, labels[:20] + 0.5), "no float output fits labels of shape 20: `logits` 20x10")
    refused(pass_, original, at(good, np.zeros((20, 3), np.int64)), "no float output fits labels of shape 20x3")


def test_settings_that_do_not_fit(digits: Data, original: Model, tmp_path: Path) -> None:
    around = context(tmp_path, {"image": digits.inputs["image"][:20]}, None, original)
    wrong = {"steps": 0, "batch": 0, "threads": -1, "seed": -1, "seconds": 0, "learning_rate": 0}
    for key, value in wrong.items():
        refused(finetune, original, around, f"`{key}` of `finetune`", **{key: value})
    for key, value in (("alpha", 1.5), ("temperature", 0), ("hidden", -1)):
        refused(distill, original, around, f"`{key}` of `distill` cannot be {value}", **{key: value})


def test_a_loss_that_is_no_number_stops_it(digits: Data, original: Model, tmp_path: Path) -> None:
    around = context(tmp_path, {"image": digits.inputs["image"][:40]}, digits.labels[:40], original)  # type: ignore[index]
    wild = {"learning_rate": 1e38, "threads": 1}
    error = refused(finetune, original, around, "training `digits` stopped: the loss is not a number", **wild)
    assert error.hint == "lower the learning rate: `learning_rate=1e+37`"


def test_models_that_cannot_be_trained(digits: Data, original: Model, tmp_path: Path) -> None:
    around = context(tmp_path / "out", {"image": digits.inputs["image"][:20]}, None, original)
    (tmp_path / "small").mkdir()
    small = quantize(original, Context(tmp_path / "small", this_machine()))
    refused(finetune, small, around, "its weights are quantized")
    for feature in ("weights:int4", "float16"):
        refused(distill, dataclasses.replace(original, features=(feature,)), around, "quantized or rounded")
    refused(
        finetune,
        dataclasses.replace(original, operators={"ImageDecoder": 1}),
        around,
        "does not know the operator `ImageDecoder`",
    )
    refused(finetune, dataclasses.replace(original, operators={"Relu": 1}), around, "no operator with weights to train")


def test_an_integer_model_has_nothing_to_train(tmp_path: Path) -> None:
    side = helper.make_tensor_value_info
    tensors = [numpy_helper.from_array(np.arange(4), "w")]
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    body = helper.make_graph(nodes, "g", [side("x", 7, ["n", 4])], [side("y", 7, ["n", 4])], tensors)
    x = np.random.default_rng(0).integers(0, 9, (20, 4))
    model = case(tmp_path, "whole", body, {"x": x[:2]}).model
    around = context(tmp_path / "out", {"x": x}, None, model)
    refused(finetune, model, around, "no float output with an axis of samples")


def test_half_precision_weights_are_not_trained(tmp_path: Path) -> None:
    side = helper.make_tensor_value_info
    tensors = [numpy_helper.from_array(np.ones((4, 3), np.float16), "w")]
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=1),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    body = helper.make_graph(nodes, "g", [side("x", 1, ["n", 4])], [side("y", 1, ["n", 3])], tensors)
    x = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    model = case(tmp_path, "half", body, {"x": x[:2]}).model
    refused(finetune, model, context(tmp_path / "out", {"x": x}, None, model), "no float32 weights to train")


def test_outputs_that_are_no_numbers_teach_nothing(tmp_path: Path) -> None:
    side = helper.make_tensor_value_info
    tensors = [numpy_helper.from_array(np.ones((4, 3), np.float32), "w")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Log", ["m"], ["y"])]
    body = helper.make_graph(nodes, "g", [side("x", 1, ["n", 4])], [side("y", 1, ["n", 3])], tensors)
    x = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    model = case(tmp_path, "logs", body, {"x": abs(x[:2])}).model
    with pytest.raises(ModelError, match="`y` of `logs` holds NaN or infinite values"):
        finetune(model, context(tmp_path / "out", {"x": x}, None, model))


def test_an_operator_hidden_in_a_function_is_named(
    digits: Data, original: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`refuse` reads counts only, so what they do not show is an error of the importer's."""
    from portolan.passes import _training

    monkeypatch.setattr(_training, "unsupported", lambda operators: [])
    proto = onnx.load(original.path)
    proto.graph.node.append(helper.make_node("ImageDecoder", ["image"], ["unused"]))
    (tmp_path / "in").mkdir()
    onnx.save(proto, tmp_path / "in" / "m.onnx")
    around = context(tmp_path / "out", {"image": digits.inputs["image"][:20]}, None, original)
    with pytest.raises(UnsupportedOperator, match="no operator `ImageDecoder`"):
        finetune(load_model(tmp_path / "in" / "m.onnx"), around)


def test_without_torch_it_says_how_to_get_it(original: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n == "torch" or n.startswith("torch.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)  # type: ignore[arg-type]
    assert importlib.util.find_spec("torch") is None
    for pass_ in (finetune, distill):
        reason = pass_.refuse(original, {}, this_machine())
        assert reason is not None
        assert 'pip install "portolan[torch]"' in reason
        refused(pass_, original, context(tmp_path, None, None, None), "which is not installed")
