"""trim: answers stay the same, work on padding goes, and models that padding matters to are left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import apply

from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context
from portolan.errors import UsageError
from portolan.passes.quantize import quantize
from portolan.passes.trim import trim
from portolan.testing.models import this_machine
from portolan.testing.passes import run
from support.padded import LENGTH, SPLITS, encoder, sentences

DATA = sentences([3, 5, 8, 9, 2, 11, 4, 7, 12, 6, 3, 5])


def watched(model: Model, tensor: str, inputs: dict[str, np.ndarray], tmp_path: Path) -> np.ndarray:
    """A tensor inside a model."""
    proto = onnx.load(model.path)
    proto.graph.output.append(onnx.ValueInfoProto(name=tensor))
    onnx.save(proto, tmp_path / "watched.onnx")
    import onnxruntime as ort

    session = ort.InferenceSession(str(tmp_path / "watched.onnx"), providers=["CPUExecutionProvider"])
    return session.run([tensor], inputs)[0]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("pool", ["mean", "first", "range"])
@pytest.mark.parametrize("causal", [False, True])
def test_answers_stay_and_work_on_padding_goes(tmp_path: Path, pool: str, split: str, causal: bool) -> None:
    model = encoder(tmp_path / "m.onnx", pool, split=split, causal=causal)
    result = apply(trim, model, tmp_path / "t", DATA)
    assert result.features == ("length:trimmed",)
    for lengths in ([1], [3, 9], [LENGTH, 2], [16], [17, 17]):
        inputs = sentences(lengths, seed=len(lengths))
        np.testing.assert_allclose(run(result, inputs)["y"], run(model, inputs)["y"], rtol=1e-5, atol=1e-5)
        attention = watched(result, "a", inputs, tmp_path)
        size = min(-(-max(lengths) // 8) * 8, LENGTH)
        assert attention.shape == (len(lengths), 2, size, size)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mask_gives_the_same_answer(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Also masks with holes, padded on the left, and rows of nothing but padding."""
    folder = tmp_path_factory.getbasetemp() / "any mask"
    if not folder.exists():
        apply(trim, encoder(folder / "m.onnx"), folder / "t", DATA, multiple=1)
    rows = data.draw(st.lists(st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH), min_size=1, max_size=3))
    inputs = sentences([1] * len(rows), seed=data.draw(st.integers(0, 9))) | {"mask": np.array(rows).astype(np.int64)}
    right, got = (run(load_model(path), inputs)["y"] for path in (folder / "m.onnx", folder / "t" / "model.onnx"))
    np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-4)


def test_a_row_of_nothing_but_padding_keeps_the_full_length(tmp_path: Path) -> None:
    """Its attention is even over all positions, so its first one depends on how many there are."""
    model = encoder(tmp_path / "m.onnx", "first")
    result = apply(trim, model, tmp_path / "t", DATA)
    inputs = sentences([4, 0])
    np.testing.assert_allclose(run(result, inputs)["y"], run(model, inputs)["y"], rtol=1e-5, atol=1e-5)
    assert watched(result, "a", inputs, tmp_path).shape[-1] == LENGTH


@pytest.mark.parametrize(("multiple", "size"), [(1, 5), (4, 8), (16, 16), (100, LENGTH)])
def test_lengths_are_rounded_up(tmp_path: Path, multiple: int, size: int) -> None:
    result = apply(trim, encoder(tmp_path / "m.onnx"), tmp_path / "t", DATA, multiple=multiple)
    assert watched(result, "a", sentences([5]), tmp_path).shape[-1] == size


@pytest.mark.parametrize("opset", [17, 18])
def test_older_operator_sets_have_axes_as_attributes(tmp_path: Path, opset: int) -> None:
    model = encoder(tmp_path / "m.onnx", opset=opset)
    result = apply(trim, model, tmp_path / "t", DATA)
    np.testing.assert_allclose(run(result, sentences([5]))["y"], run(model, sentences([5]))["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, "n"])
def test_a_free_length_is_cut_at_the_inputs_alone(tmp_path: Path, batch: int | str) -> None:
    model = encoder(tmp_path / "m.onnx", length="t", batch=batch)
    result = apply(trim, model, tmp_path / "t", DATA)
    for size in (10, 40):
        inputs = sentences([3], size)
        np.testing.assert_allclose(run(result, inputs)["y"], run(model, inputs)["y"], rtol=1e-5, atol=1e-5)
        assert watched(result, "a", inputs, tmp_path).shape[-1] == 8


def test_padding_may_be_a_token(tmp_path: Path) -> None:
    model = encoder(tmp_path / "m.onnx", mask="ids")
    ids = np.where(DATA["mask"] == 1, DATA["ids"], 1)
    assert "has no input that says" in (trim.refuse(model, {}, this_machine()) or "")
    result = apply(trim, model, tmp_path / "t", {"ids": ids}, mask="ids", padding=1)
    np.testing.assert_allclose(run(result, {"ids": ids})["y"], run(model, {"ids": ids})["y"], rtol=1e-5, atol=1e-5)
    assert watched(result, "a", {"ids": ids[:1]}, tmp_path).shape[-1] == 8


def test_what_is_trimmed_can_be_quantized_and_not_the_other_way_round(tmp_path: Path) -> None:
    model = encoder(tmp_path / "m.onnx", batch=1)
    trimmed = apply(trim, model, tmp_path / "t", DATA)
    smaller = apply(quantize, trimmed, tmp_path / "q", DATA, mode="static")
    assert smaller.features == ("length:trimmed", "int8:static")
    one = sentences([5])
    right, got = run(model, one)["y"].ravel(), run(smaller, one)["y"].ravel()
    assert right @ got / np.linalg.norm(right) / np.linalg.norm(got) > 0.98
    assert "trimmed already" in (trim.refuse(trimmed, {}, this_machine()) or "")
    other = apply(quantize, model, tmp_path / "other", DATA, mode="static")
    assert "trim first" in (trim.refuse(other, {}, this_machine()) or "")


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ("everything", "its output `y` depends on the padding"),
        ("average", "takes the mean over all positions, padding included"),
        ("second", "takes other positions than the first"),
        ("hidden", "`y` holds an entry for each position, padding included"),
    ],
)
def test_models_that_padding_matters_to(tmp_path: Path, pool: str, said: str) -> None:
    model = encoder(tmp_path / "m.onnx", pool)
    (tmp_path / "t").mkdir()
    with pytest.raises(UsageError, match="`m` cannot be trimmed") as raised:
        trim(model, Context(tmp_path / "t", this_machine(), DATA))
    assert said in str(raised.value)
    assert list((tmp_path / "t").iterdir()) == []


def test_a_free_length_that_comes_out_is_refused_unread(tmp_path: Path) -> None:
    model = encoder(tmp_path / "m.onnx", "hidden", length="t")
    assert "`y` holds an entry for each position" in (trim.refuse(model, {}, this_machine()) or "")


def test_a_free_length_that_another_input_does_not_share(tmp_path: Path) -> None:
    """Under another name it is another length, which is not cut: what then does not fit is told as `trim`'s reason."""
    model = encoder(tmp_path / "m.onnx", length="t")
    proto = onnx.load(model.path)
    next(value for value in proto.graph.input if value.name == "mask").type.tensor_type.shape.dim[1].dim_param = "u"
    onnx.save(proto, model.path)
    (tmp_path / "t").mkdir()
    with pytest.raises(UsageError, match="`m` cannot be trimmed: it does not run at other lengths"):
        trim(load_model(model.path), Context(tmp_path / "t", this_machine(), DATA))
    assert list((tmp_path / "t").iterdir()) == []


def test_data_without_padding(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with pytest.raises(UsageError, match="100% of the positions in the calibration data are no padding"):
        trim(encoder(tmp_path / "m.onnx"), Context(tmp_path / "t", this_machine(), sentences([LENGTH] * 8)))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"multiple": 0}, "`multiple` of `trim` is at least 1"), ({"mask": "maks"}, "has no input `maks` of two axes")],
)
def test_options_out_of_range(tmp_path: Path, options: dict[str, object], said: str) -> None:
    (tmp_path / "t").mkdir()
    with pytest.raises(UsageError, match=said):
        trim(encoder(tmp_path / "m.onnx"), Context(tmp_path / "t", this_machine(), DATA), **options)


def test_the_share_that_is_left(tmp_path: Path) -> None:
    model = encoder(tmp_path / "m.onnx")
    rows = [{name: array[i : i + 1] for name, array in DATA.items()} for i in range(3)]
    assert trim.left({}, model, rows) == (3 / LENGTH) ** 2
    assert trim.left({}, model, [sentences([0, 3])]) == 1.0
    assert quantize.left({}, model, rows) == 1.0
