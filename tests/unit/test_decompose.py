"""decompose: factors are right, ranks follow the budget, layers keep their attributes, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import apply, constants, low_rank, node, normal, perceptron, residual, save

from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.errors import UsageError
from portolan.frontends.demo import demo_data, folder
from portolan.passes import _tensor_train as tensor_train
from portolan.passes._factor import spectrum, terms
from portolan.passes._moments import Moment, whitener
from portolan.passes._polyadic import polyadic
from portolan.passes._tucker import spectra, tucker
from portolan.passes.decompose import decompose
from portolan.testing.models import this_machine, tokens
from portolan.testing.passes import run

TOKENS = {"x": normal(48, 5, 32)}
plain = {"score": "magnitude"}
files = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
pure = settings(max_examples=40, deadline=None, derandomize=True)


def off(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def error(model: Model, result: Model, inputs: dict[str, np.ndarray]) -> float:
    right, got = (next(iter(run(m, inputs).values())) for m in (model, result))
    assert right.shape == got.shape
    return off(got, right)


def root(size: int) -> np.ndarray:
    x = normal(3 * size, size, seed=9).astype("f8") * np.geomspace(1, 30, size)
    return whitener(Moment(x.T @ x, len(x)), size)


def small_kernel(outputs: int, inputs: int, window: tuple[int, ...], b: int, a: int, seed: int = 1) -> np.ndarray:
    """A kernel of Tucker ranks b and a."""
    core = normal(b, a, *window, seed=seed)
    kernel = np.einsum("ob,ba...,ca->oc...", normal(outputs, b, seed=2), core, normal(inputs, a, seed=3))
    return (kernel / np.sqrt(a * b * inputs)).astype("f4")


def chain(cores: int, rank: int) -> np.ndarray:
    """A matrix [64, 64] that is a tensor train of this rank."""
    sizes = tensor_train.modes(64, 64, cores)
    assert sizes is not None
    ends = [1, *[rank] * (cores - 1), 1]
    parts = [normal(ends[j], k, n, ends[j + 1], seed=j) for j, (k, n) in enumerate(sizes)]
    return (tensor_train.whole(parts) / 8 / rank).astype("f4")


# Algebra


@pure
@given(st.integers(2, 24), st.integers(2, 24), st.booleans())
def test_a_full_rank_reproduces_the_matrix(rows: int, columns: int, aware: bool) -> None:
    w = normal(rows, columns, seed=rows * columns)
    a, b = spectrum(w, root(rows) if aware else np.eye(rows)).factors(min(rows, columns))
    assert off(a @ b, w) < 1e-6


@pure
@given(st.integers(2, 12), st.integers(2, 12), st.sampled_from([(3, 3), (1, 5), (3,), (2, 2, 2)]), st.booleans())
def test_full_ranks_reproduce_the_kernel(outputs: int, inputs: int, window: tuple[int, ...], aware: bool) -> None:
    kernel = normal(outputs, inputs, *window, seed=outputs)
    whole = root(inputs) if aware else np.eye(inputs)
    b = min(outputs, inputs * int(np.prod(window)))
    a = min(inputs, outputs * int(np.prod(window)))
    assert off(tucker(kernel, whole, (b, a)).whole(), kernel) < 1e-5


@pure
@given(st.sampled_from([(12, 20), (16, 16), (30, 8), (36, 60)]), st.sampled_from([2, 3]))
def test_full_ranks_reproduce_the_train(shape: tuple[int, int], cores: int) -> None:
    w = normal(*shape, seed=sum(shape))
    sizes = tensor_train.modes(*shape, cores)
    if sizes is None:
        assert (shape, cores) == ((30, 8), 3) or cores == 3
        return
    ranks = [len(energies) for energies in tensor_train.spectra(w, sizes)]
    train = tensor_train.train(w, sizes, ranks)
    assert off(tensor_train.whole(train), w) < 1e-6
    assert sum(core.size for core in train) == tensor_train.parameters(sizes, ranks)


@pure
@given(st.integers(1, 6))
def test_cp_finds_a_kernel_that_is_one(rank: int) -> None:
    parts = [normal(size, rank, seed=20 + size) for size in (12, 10, 3, 3)]
    kernel = np.einsum("or,cr,hr,wr->ochw", *parts)
    form, reached = polyadic(kernel, root(10), rank + 2)
    assert reached < 0.05
    assert off(form.whole(), kernel) < 0.1


def test_the_error_that_is_reported_is_the_error() -> None:
    kernel, seen = normal(12, 8, 3, 3), root(8)
    form, reached = polyadic(kernel, seen, 10)
    left, right = (np.einsum("dc,oc...->od...", seen, k) for k in (form.whole(), kernel))
    assert off(left, right) == pytest.approx(reached, rel=1e-6)
    energies = spectra(kernel, seen)
    assert all(e.sum() == pytest.approx((right**2).sum()) for e in energies)
    matrix = spectrum(kernel[:, :, 0, 0].T, seen)
    a, b = matrix.factors(3)
    exact = kernel[:, :, 0, 0].T
    expected = np.sqrt(matrix.energies[3:].sum() / matrix.energies.sum())
    assert off(seen @ a @ b, seen @ exact) == pytest.approx(expected, rel=1e-5)


def test_cp_stops_where_it_was_told_to() -> None:
    """At an error that is enough, where one is out of reach, and when its time is over: with what it has by then."""
    kernel, seen = normal(24, 24, 3, 3), root(24)
    sweeps: list[int] = []

    def counted(limit: int | None = None, **options: float) -> float:
        sweeps.append(0)

        def over() -> bool:
            sweeps[-1] += 1
            return limit is not None and sweeps[-1] >= limit

        form, reached = polyadic(kernel, seen, 32, over=over, **options)
        left, right = (np.einsum("dc,oc...->od...", seen, k) for k in (form.whole(), kernel))
        assert off(left, right) == pytest.approx(reached, rel=1e-6)
        return reached

    best, early = counted(), counted(3)
    assert sweeps[1] == 3 < sweeps[0]
    assert best < early
    assert best <= counted(enough=early) <= early
    assert counted(enough=best / 2) > best
    assert max(sweeps[2:]) < sweeps[0], "both were cut short"


def test_cp_keeps_to_its_time(tmp_path: Path) -> None:
    """What there was no time for: with `keep` a form after one sweep, with `error` the layer as it is."""
    model = save(
        tmp_path / "c.onnx", [node("Conv", ["x", "k"], ["y"])], {"k": normal(24, 24, 3, 3)},
        {"x": ["n", 24, 8, 8]}, {"y": ["n", 24, 6, 6]},
    )  # fmt: skip
    options = {"method": "cp", "align": 1, **plain}
    early = apply(decompose, model, tmp_path / "k", keep=0.5, seconds=1e-9, **options)
    whole = apply(decompose, model, tmp_path / "l", keep=0.5, **options)
    assert early.operators == whole.operators
    pictures = {"x": normal(3, 24, 8, 8)}
    assert error(model, whole, pictures) < error(model, early, pictures)
    with pytest.raises(UsageError, match="no layer that `cp` makes smaller"):
        apply(decompose, model, tmp_path / "e", error=0.9, seconds=1e-9, **options)


def test_how_many_terms_an_error_needs() -> None:
    energies = np.array([16.0, 9.0, 4.0, 1.0])
    assert [terms(energies, e) for e in (1, 0.7, 0.41, 0.2, 0.1, 0)] == [0, 1, 2, 3, 4, 4]
    assert terms(np.array([1.0, 1.0, 1e-17]), 0) == 2


def test_looking_at_activations_loses_less_at_equal_size() -> None:
    seen, w = root(24), normal(24, 20).astype("f8")
    aware, blind = (spectrum(w, r).factors(6) for r in (seen, np.eye(24)))
    assert off(seen @ aware[0] @ aware[1], seen @ w) < 0.5 * off(seen @ blind[0] @ blind[1], seen @ w)


def test_sizes_split_into_near_factors() -> None:
    assert [tensor_train.split(n, 2) for n in (64, 48, 10, 7)] == [(8, 8), (6, 8), (2, 5), (1, 7)]
    assert tensor_train.split(512, 3) == (8, 8, 8)
    assert tensor_train.modes(64, 7, 2) is None
    assert tensor_train.modes(64, 48, 2) == ((8, 8), (8, 6))


# Layers


@pytest.mark.parametrize(
    "attributes",
    [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}, {"transB": 1, "alpha": 3.0}],
)
@pytest.mark.parametrize("method", ["svd", "tt"])
def test_a_gemm_of_low_rank(tmp_path: Path, attributes: dict[str, Any], method: str) -> None:
    w = low_rank(64, 64, 4) if method == "svd" else chain(2, 2)
    stored = w.T.copy() if attributes.get("transB") else w
    nodes = [node("Gemm", ["x", "w", "c"], ["y"], **attributes)]
    model = save(tmp_path / "m.onnx", nodes, {"w": stored, "c": normal(64)}, {"x": ["n", 64]}, {"y": ["n", 64]})
    result = apply(decompose, model, tmp_path / "d", method=method, error=1e-3, align=1, **plain)
    assert error(model, result, {"x": normal(9, 64)}) < 1e-4
    assert result.path.stat().st_size < 0.6 * model.path.stat().st_size


def test_a_gemm_that_turns_its_input_is_left(tmp_path: Path) -> None:
    nodes = [node("Gemm", ["x", "w"], ["y"], transA=1)]
    model = save(tmp_path / "m.onnx", nodes, {"w": low_rank(64, 64, 4)}, {"x": [64, 3]}, {"y": [3, 64]})
    with pytest.raises(UsageError, match="no layer for `svd`: looked for a MatMul, Gemm or 1x1 Conv"):
        apply(decompose, model, tmp_path / "d", **plain)


@pytest.mark.parametrize("shape", [["n", 64], ["n", 5, 64], ["n", "t", 64], [2, 3, 4, 64]])
@pytest.mark.parametrize("cores", [2, 3])
def test_a_tensor_train_keeps_every_axis(tmp_path: Path, shape: list[int | str], cores: int) -> None:
    w = chain(cores, 2)
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, {"w": w}, {"x": shape}, {"y": shape})
    result = apply(decompose, model, tmp_path / "d", method="tt", error=1e-3, align=1, cores=cores)
    assert result.features == ("shape:tt",)
    assert result.path.stat().st_size < 0.5 * model.path.stat().st_size
    for extra in (1, 7):
        x = normal(*(size if isinstance(size, int) else extra for size in shape))
        got = run(result, {"x": x})["y"]
        assert got.shape == x.shape
        assert off(got, x @ w) < 1e-4


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 1, 1, 1]},
        {"strides": [2, 1], "pads": [0, 1, 2, 1]},
        {"dilations": [2, 1], "pads": [2, 1, 2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"group": 2, "pads": [1, 1, 1, 1]},
    ],
)
@pytest.mark.parametrize("method", ["tucker", "cp"])
def test_a_convolution_moves_as_before(tmp_path: Path, attributes: dict[str, Any], method: str) -> None:
    groups = attributes.get("group", 1)
    if method == "cp" and groups > 1:
        return
    if method == "cp":
        parts = (normal(32, 2), normal(32, 2, seed=4), normal(3, 2, seed=5), normal(3, 2, seed=6))
        kernel = (np.einsum("or,cr,hr,wr->ochw", *parts) / 10).astype("f4")
    else:
        each = [small_kernel(32 // groups, 32 // groups, (3, 3), 3, 2, seed=i) for i in range(groups)]
        kernel = np.concatenate(each)
    model = save(
        tmp_path / "m.onnx", [node("Conv", ["x", "k", "c"], ["y"], **attributes)], {"k": kernel, "c": normal(32)},
        {"x": ["n", 32, 9, 8]}, {"y": ["n", 32, "h", "w"]},
    )  # fmt: skip
    result = apply(decompose, model, tmp_path / "d", method=method, error=0.01, align=1, **plain)
    assert error(model, result, {"x": normal(3, 32, 9, 8)}) < (0.03 if method == "cp" else 1e-4)
    assert len(onnx.load(result.path).graph.node) == (4 if method == "cp" else 3)
    assert result.path.stat().st_size < 0.5 * model.path.stat().st_size


@pytest.mark.parametrize("attributes", [{}, {"strides": [2, 2]}, {"pads": [1, 1, 1, 1]}, {"group": 2}])
@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_a_pointwise_convolution(tmp_path: Path, attributes: dict[str, Any], method: str) -> None:
    groups = attributes.get("group", 1)
    parts = [low_rank(32 // groups, 32 // groups, 3, seed=i) for i in range(groups)]
    kernel = np.concatenate(parts)[:, :, None, None]
    model = save(
        tmp_path / "m.onnx", [node("Conv", ["x", "k", "c"], ["y"], **attributes)], {"k": kernel, "c": normal(32)},
        {"x": ["n", 32, 6, 6]}, {"y": ["n", 32, "h", "w"]},
    )  # fmt: skip
    result = apply(decompose, model, tmp_path / "d", {"x": normal(9, 32, 6, 6)}, method=method, error=0.001, align=1)
    assert error(model, result, {"x": normal(3, 32, 6, 6)}) < 1e-2
    assert shapes_of(result) == [(3 * groups, 32 // groups, 1, 1), (32, 3, 1, 1)]


def shapes_of(model: Model) -> list[tuple[int, ...]]:
    found = constants(model)
    return [found[n.input[1]].shape for n in onnx.load(model.path).graph.node if n.op_type in ("Conv", "MatMul")]


def test_a_convolution_in_one_dimension(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "k"], ["y"], pads=[1, 1])]
    model = save(
        tmp_path / "m.onnx", nodes, {"k": small_kernel(32, 24, (3,), 4, 3)}, {"x": ["n", 24, 9]}, {"y": ["n", 32, 9]}
    )
    result = apply(decompose, model, tmp_path / "d", method="tucker", error=1e-3, align=1, **plain)
    assert error(model, result, {"x": normal(2, 24, 9)}) < 1e-4
    with pytest.raises(UsageError, match="no layer for `cp`"):
        apply(decompose, model, tmp_path / "c", method="cp", **plain)


# Budgets


@pytest.mark.parametrize("method", ["svd", "tucker", "cp", "tt"])
@pytest.mark.parametrize("keep", [0.35, 0.6])
@pytest.mark.parametrize("align", [1, 8])
def test_what_is_kept_is_what_was_asked(tmp_path: Path, method: str, keep: float, align: int) -> None:
    dense = method in ("svd", "tt")
    align = 2 if method == "tt" else align  # large ranks of small cores are more work than the layer
    model = perceptron(tmp_path / "m.onnx", 512) if dense else residual(tmp_path / "m.onnx")
    result = apply(decompose, model, tmp_path / "d", method=method, keep=keep, align=align, **plain)
    assert result.features == ({"svd": "shape:lowrank"}.get(method, f"shape:{method}"),)
    before, after = (constants(m) for m in (model, result))
    gone = sum(array.size for name, array in before.items() if name not in after and array.ndim > 1)
    new = sum(a.size for name, a in after.items() if name not in before and a.ndim > 1 and a.dtype == np.float32)
    kept = sum(array.size for name, array in before.items() if name in after and array.ndim > 1)
    assert new < gone
    if dense:
        assert new + kept <= keep * (gone + kept) * 1.001
    for name, array in after.items():
        if name.endswith((".a", ".in")) and align > 1:
            rank, inputs = array.shape[:2] if name.endswith(".in") else array.shape[::-1]
            assert rank % align == 0 or rank == inputs


@files
@given(st.floats(0.05, 0.6), st.sampled_from([1, 4]))
def test_the_error_stays_below_what_was_allowed(tmp_path: Path, allowed: float, align: int) -> None:
    w = (low_rank(64, 64, 6) + 0.05 * low_rank(64, 64, 64, seed=8)).astype("f4")
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, {"w": w}, {"x": ["n", 64]}, {"y": ["n", 64]})
    out = tmp_path / f"d{len(list(tmp_path.iterdir()))}"
    result = apply(decompose, model, out, error=allowed, align=align, **plain)
    found = constants(result)
    assert off(found["w.a"] @ found["w.b"], w) <= allowed * 1.001
    assert found["w.a"].shape[1] % align == 0


def test_layers_of_low_rank_give_more(tmp_path: Path) -> None:
    model = perceptron(tmp_path / "m.onnx", 64, w1=low_rank(32, 64, 3))
    found = constants(apply(decompose, model, tmp_path / "d", keep=0.5, align=1, **plain))
    assert found["w1.a"].shape[1] <= 3
    assert found["w2.a"].shape[1] > 10


def test_calibration_makes_the_same_size_better(tmp_path: Path) -> None:
    model = perceptron(tmp_path / "m.onnx", 64)
    mix = np.eye(32) + normal(32, 32, seed=9) / 4
    x = (normal(80, 5, 32) * np.geomspace(0.05, 4, 32) @ mix).astype("f4")
    aware = apply(decompose, model, tmp_path / "a", {"x": x[:50]}, keep=0.5, align=8)
    blind = apply(decompose, model, tmp_path / "b", keep=0.5, align=8, **plain)
    assert abs(aware.path.stat().st_size / blind.path.stat().st_size - 1) < 0.05
    assert error(model, aware, {"x": x[50:]}) < 0.8 * error(model, blind, {"x": x[50:]})


def test_a_trained_network_keeps_its_answers(tmp_path: Path) -> None:
    model, images = load_model(folder() / "digits.onnx"), dict(np.load(demo_data("digits")))
    calibration, held_out = {"image": images["image"][:128]}, {"image": images["image"][128:]}

    def accuracy(result: Model) -> float:
        return float((run(result, held_out)["logits"].argmax(1) == images["labels"][128:]).mean())

    aware = apply(decompose, model, tmp_path / "a", calibration, method="tucker", keep=0.25)
    blind = apply(decompose, model, tmp_path / "b", method="tucker", keep=0.25, **plain)
    assert accuracy(aware) > accuracy(model) - 0.03
    assert accuracy(aware) > accuracy(blind) + 0.05
    assert aware.path.stat().st_size < 0.3 * model.path.stat().st_size


# What is shared, and what is left


def test_a_shared_weight_is_taken_apart_once(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["u"]), node("Tanh", ["u"], ["t"]), node("MatMul", ["t", "w"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, {"w": low_rank(64, 64, 5)}, {"x": ["n", 64]}, {"y": ["n", 64]})
    result = apply(decompose, model, tmp_path / "d", {"x": normal(40, 64)}, error=1e-3, align=1)
    assert error(model, result, {"x": normal(9, 64)}) < 1e-2
    assert {name: a.shape for name, a in constants(result).items()} == {"w.a": (64, 5), "w.b": (5, 64)}


@pytest.mark.parametrize("use", ["table", "output", "turned"])
def test_a_weight_with_another_use_stays_whole(tmp_path: Path, use: str) -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    outputs: dict[str, list[int | str]] = {"y": ["n", 64]}
    weights: dict[str, Any] = {"w": low_rank(64, 64, 5)}
    if use == "table":
        nodes.append(node("Gather", ["w", "one"], ["z"]))
        weights["one"] = np.array([1])
        outputs["z"] = [1, 64]
    elif use == "output":
        nodes.append(node("Identity", ["w"], ["z"]))
        outputs["z"] = [64, 64]
    else:
        nodes.append(node("Gemm", ["x", "w"], ["z"], transB=1))
        outputs["z"] = ["n", 64]
    model = save(tmp_path / "m.onnx", nodes, weights, {"x": ["n", 64]}, outputs)
    with pytest.raises(UsageError, match="no layer for `svd`"):
        apply(decompose, model, tmp_path / "d", **plain)


def test_weights_as_constant_nodes(tmp_path: Path) -> None:
    model = perceptron(tmp_path / "m.onnx", 128)
    proto = onnx.load(model.path)
    made = [node("Constant", [], [t.name], value=t) for t in proto.graph.initializer]
    other = save(tmp_path / "c.onnx", [*made, *proto.graph.node], {}, {"x": ["batch", 5, 32]}, {"y": ["batch", 5, 32]})
    a, b = (apply(decompose, m, tmp_path / m.name, TOKENS, align=8) for m in (model, other))
    np.testing.assert_array_equal(run(a, TOKENS)["y"], run(b, TOKENS)["y"])


def test_refusals_name_their_reason(tmp_path: Path) -> None:
    model, machine = perceptron(tmp_path / "m.onnx"), this_machine()
    assert "quantized" in str(decompose.refuse(dataclasses.replace(model, features=("int8:static",)), {}, machine))
    assert "tucker takes Conv apart" in str(decompose.refuse(model, {"method": "tucker"}, machine))
    assert decompose.refuse(model, {}, machine) is None
    lookup = load_model(tokens(tmp_path).model.path)
    for method in ("svd", "tt", "cp"):
        with pytest.raises(UsageError, match="cannot be decomposed") as caught:
            apply(decompose, lookup, tmp_path / method, method=method)
        assert caught.value.hint
    assert decompose.needs({}) == "calibration"
    assert decompose.needs(plain) == decompose.needs({"method": "tt"}) == "nothing"


def test_options_out_of_range(tmp_path: Path) -> None:
    model = perceptron(tmp_path / "m.onnx")
    for i, wrong in enumerate(
        ({"keep": 0.0}, {"keep": 1.0}, {"error": 1.0}, {"error": -0.1}, {"align": 0}, {"cores": 4}, {"seconds": 0.0})
    ):
        with pytest.raises(UsageError, match=f"`{next(iter(wrong))}` of `decompose`") as caught:
            apply(decompose, model, tmp_path / str(i), **wrong, **plain)
        assert caught.value.hint


def test_nothing_gets_smaller(tmp_path: Path) -> None:
    small = save(
        tmp_path / "s.onnx", [node("MatMul", ["x", "w"], ["y"])], {"w": normal(20, 20)}, {"x": [2, 20]}, {"y": [2, 20]}
    )
    with pytest.raises(UsageError, match=r"no layer that `svd` makes smaller.* and found 1"):
        apply(decompose, small, tmp_path / "d", **plain)
    with pytest.raises(UsageError, match="no layer that `svd` makes smaller"):
        apply(decompose, perceptron(tmp_path / "m.onnx"), tmp_path / "e", error=0.0, align=1, **plain)
    odd = save(
        tmp_path / "o.onnx", [node("MatMul", ["x", "w"], ["y"])], {"w": normal(19, 23)}, {"x": [2, 19]}, {"y": [2, 23]}
    )
    with pytest.raises(UsageError, match=r"no layer for `tt`: .* whose sizes have factors"):
        apply(decompose, odd, tmp_path / "f", method="tt")


def test_calibration_data_that_will_not_do(tmp_path: Path) -> None:
    model = perceptron(tmp_path / "m.onnx")
    broken = TOKENS["x"].copy()
    broken[3] = np.nan
    cases = {
        "`decompose` needs calibration data": None,
        "at least 8 calibration samples, got 5": {"x": TOKENS["x"][:5]},
        "NaN or infinite values, first in sample 3": {"x": broken},
        "all calibration samples are equal": {"x": np.ones((9, 5, 32), "f4")},
    }
    for i, (message, data) in enumerate(cases.items()):
        with pytest.raises(UsageError, match=message) as caught:
            apply(decompose, model, tmp_path / str(i), data)
        assert caught.value.hint
        assert list((tmp_path / str(i)).iterdir()) == []


def test_inputs_that_are_always_zero(tmp_path: Path) -> None:
    """A layer that calibration never reached keeps what its weights say."""
    nodes = [node("Mul", ["x", "no"], ["z"]), node("MatMul", ["z", "w"], ["y"])]
    weights = {"w": low_rank(64, 64, 5), "no": np.float32(0)}
    model = save(tmp_path / "m.onnx", nodes, weights, {"x": ["n", 64]}, {"y": ["n", 64]})
    found = constants(apply(decompose, model, tmp_path / "d", {"x": normal(20, 64)}, error=1e-3, align=1))
    assert off(found["w.a"] @ found["w.b"], weights["w"]) < 1e-3
