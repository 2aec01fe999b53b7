"""Data: reading it, refusing it in one line, dividing it by content, making it up."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portolan.core.data import Data, feeds, generate, load_data, sample, save_npz, timed
from portolan.core.signature import Dim, Signature, TensorSpec
from portolan.errors import UnknownName, UsageError


def signature(*specs: tuple[str, str, tuple[Dim, ...]]) -> Signature:
    return Signature(tuple(TensorSpec(*spec) for spec in specs), (TensorSpec("y", "float32", ("batch", 2)),))


IMAGE = signature(("x", "float32", ("batch", 3, 4)))
TEXT = signature(("ids", "int64", ("batch", "tokens")), ("mask", "int64", ("batch", "tokens")))


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 3, 4)).astype(np.float32)


def refused(source: Path | str, spec: Signature = IMAGE) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_data(source, spec)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


# reading


def test_npz_with_labels(tmp_path: Path) -> None:
    x = images(10)
    np.savez(tmp_path / "d.npz", x=x, labels=np.arange(10))
    data = load_data(tmp_path / "d.npz", IMAGE)
    np.testing.assert_array_equal(data.inputs["x"], x)
    assert data.labels is not None
    assert data.labels.tolist() == list(range(10))
    assert (data.rows, data.synthetic, data.notes) == (10, False, ())


def test_the_hash_follows_content_names_and_labels(tmp_path: Path) -> None:
    hashes = set()
    for i, arrays in enumerate(
        [{"x": images(4)}, {"x": images(4, 1)}, {"x": images(4), "labels": np.zeros(4)}, {"x": images(4)[::-1]}]
    ):
        np.savez(tmp_path / f"{i}.npz", **arrays)
        hashes.add(load_data(tmp_path / f"{i}.npz", IMAGE).sha256)
    assert len(hashes) == 4
    np.savez_compressed(tmp_path / "same.npz", x=images(4))
    assert load_data(tmp_path / "same.npz", IMAGE).sha256 == load_data(tmp_path / "0.npz", IMAGE).sha256


def test_an_input_called_labels_is_an_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", labels=np.zeros((3, 2), np.float32))
    data = load_data(tmp_path / "d.npz", signature(("labels", "float32", ("n", 2))))
    assert data.labels is None
    assert data.rows == 3


def test_folder_of_npz_in_name_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", x=images(2, 1), labels=np.array([2, 3]))
    np.savez(tmp_path / "a.npz", x=images(2, 0), labels=np.array([0, 1]))
    data = load_data(tmp_path, IMAGE)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(data.inputs["x"], np.concatenate([images(2, 0), images(2, 1)]))


def test_folder_of_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.zeros((3, 5), np.int64))
    np.save(tmp_path / "mask.npy", np.ones((3, 5), np.int64))
    np.save(tmp_path / "labels.npy", np.arange(3))
    data = load_data(str(tmp_path), TEXT)
    assert list(data.inputs) == ["ids", "mask"]
    assert data.labels is not None


def test_strings(tmp_path: Path) -> None:
    spec = signature(("text", "string", ("n",)))
    np.savez(tmp_path / "d.npz", text=np.array(["one", "two"]))
    data = load_data(tmp_path / "d.npz", spec)
    fed = sample(data, 1, spec)["text"]
    assert fed.dtype == object
    assert fed.tolist() == ["two"]
    assert len(set(data._digests)) == 2


def test_nan_is_noted(tmp_path: Path) -> None:
    x = images(1000)
    x[3, 0, 0], x[5, 1, 1] = np.nan, np.inf
    np.savez(tmp_path / "d.npz", x=x)
    assert load_data(tmp_path / "d.npz", IMAGE).notes == ("input `x` holds NaN or infinity in 2 of 1,000 samples",)


# refusing


def test_missing(tmp_path: Path) -> None:
    np.savez(tmp_path / "val.npz", x=images(2))
    error = refused(tmp_path / "vall.npz")
    assert error.message == f"there is no data at `{tmp_path / 'vall.npz'}`"
    assert error.hint == f"did you mean `{tmp_path / 'val.npz'}`?"
    assert "file.py:function" in (refused(tmp_path / "nowhere" / "z").hint or "")


def test_other_kinds_of_file(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("1,2")
    assert "is not a `.npz` file" in refused(tmp_path / "d.csv").message
    np.save(tmp_path / "x.npy", images(2))
    assert "put it into a folder" in (refused(tmp_path / "x.npy").hint or "")
    (tmp_path / "d.npz").write_bytes(b"not a zip")
    assert "or is damaged" in refused(tmp_path / "d.npz").message


@pytest.mark.parametrize("content", [b"", b"no array", b"cut"])
def test_an_array_of_a_folder_that_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "val").mkdir()
    path = tmp_path / "val" / "x.npy"
    np.save(path, images(2))
    path.write_bytes(path.read_bytes()[:-10] if content == b"cut" else content)
    error = refused(tmp_path / "val")
    assert error.message.startswith(f"the array `x` in `{path}` cannot be read: ")
    assert "the file is damaged" in (error.hint or "")


def test_folders(tmp_path: Path) -> None:
    assert "holds no `.npz` or `.npy` files" in refused(tmp_path).message
    np.save(tmp_path / "x.npy", images(2))
    np.savez(tmp_path / "x.npz", x=images(2))
    assert "holds both" in refused(tmp_path).message


def test_folder_parts_that_differ(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=images(2), labels=np.zeros(2))
    np.savez(tmp_path / "b.npz", x=images(2))
    error = refused(tmp_path)
    assert error.message == "`b.npz` and `a.npz` do not hold the same arrays: `labels`"
    np.savez(tmp_path / "b.npz", x=images(2)[:, :2], labels=np.zeros(2))
    assert "`x` in `b.npz` is float32 (2, 2, 4), in `a.npz` float32 (2, 3, 4)" in refused(tmp_path).message


def test_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=images(2))
    error = refused(tmp_path / "d.npz")
    assert error.message == "the data lacks `x` and has unknown `image`"
    assert error.hint == "name the arrays as the model's inputs, `x`, and the answers `labels`"
    assert error.where == str(tmp_path / "d.npz")


def test_types(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=images(2).astype(np.float64))
    error = refused(tmp_path / "d.npz")
    assert error.message == "input `x` has type float64, expected float32"
    assert error.hint == "convert it: `x.astype('float32')`"
    np.savez(tmp_path / "d.npz", text=np.zeros(2))
    error = refused(tmp_path / "d.npz", signature(("text", "string", ("n",))))
    assert error.hint == "convert it: `text.astype(str)`"


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 1, 3, 3), (1, 2, 3, 4, 1)])
def test_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros(shape, np.float32))
    error = refused(tmp_path / "d.npz")
    assert error.message == f"input `x` has shape {'x'.join(map(str, shape))}, expected samplesx3x4"
    assert error.hint == "the first axis of each array holds the samples"


def test_counts(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=images(3), labels=np.zeros(4))
    assert refused(tmp_path / "d.npz").message == ("the arrays hold different numbers of samples: `x` 3, `labels` 4")
    np.savez(tmp_path / "d.npz", x=images(0))
    assert refused(tmp_path / "d.npz").message == "`x` holds no samples"
    np.savez(tmp_path / "d.npz", x=images(2), labels=np.float32(1))
    assert "`labels` is a single value" in refused(tmp_path / "d.npz").message


def test_one_free_dimension_has_one_size(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", ids=np.zeros((2, 5), np.int64), mask=np.ones((2, 6), np.int64))
    assert refused(tmp_path / "d.npz", TEXT).message == "the dimension `tokens` is 5 in `ids` and 6 in `mask`"


# a function


def script(folder: Path, body: str) -> str:
    path = folder / "feeder.py"
    path.write_text("import numpy as np\n" + body)
    return f"{path}:f"


@pytest.mark.parametrize(
    "item",
    [
        "({'x': np.full((3, 4), i, 'f')}, i)",
        "(np.full((3, 4), i, 'f'), i)",
        "(np.full((1, 3, 4), i, 'f'), [i])",
        "([[float(i)] * 4] * 3, i)",
    ],
)
def test_a_function_may_yield_samples_in_any_form(tmp_path: Path, item: str) -> None:
    data = load_data(script(tmp_path, f"def f():\n    for i in range(5):\n        yield {item}\n"), IMAGE)
    assert data.inputs["x"].shape == (5, 3, 4)
    assert data.inputs["x"][:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3, 4]


def test_a_function_may_yield_batches_vectors_and_no_labels(tmp_path: Path) -> None:
    data = load_data(script(tmp_path, "def f():\n    yield np.zeros((7, 3, 4), 'f'), np.arange(7)\n"), IMAGE)
    assert data.rows == 7
    vector = "def f():\n    for i in range(3):\n        yield np.zeros((1, 3, 4), 'f'), np.arange(5)\n"
    labels = load_data(script(tmp_path, vector), IMAGE).labels
    assert labels is not None
    assert labels.shape == (3, 5)
    pair = "def f():\n    return [((np.zeros(5, 'i8'), np.ones(5, 'i8')), None)]\n"
    data = load_data(script(tmp_path, pair), TEXT)
    assert data.labels is None
    assert data.inputs["mask"].shape == (1, 5)
    assert load_data(script(tmp_path, "def f():\n    yield {'x': np.zeros((3, 4), 'f')}\n"), IMAGE).labels is None


def test_a_function_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_feeder.py").write_text("N = 2\n")
    body = "def f():\n    from neighbour_of_feeder import N\n    yield np.zeros((N, 3, 4), 'f'), None\n"
    assert load_data(script(tmp_path, body), IMAGE).rows == 2


def test_a_function_without_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portolan.core.datafiles._MOST_SAMPLES", 100)
    body = "def f():\n    while True:\n        yield np.zeros((3, 4), 'f'), 1\n"
    assert load_data(script(tmp_path, body), IMAGE).rows == 100


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def f():\n    return 3\n", "gives int"),
        ("def f():\n    return []\n", "yields no samples"),
        ("def f():\n    yield {'z': 1}, 1\n", "has other inputs than the model: `x`, `z`"),
        ("def f():\n    raise KeyError('gone')\n    yield\n", "raised KeyError: 'gone'"),
        ("def f():\n    yield np.zeros((3, 4), 'f'), 1\n    yield np.zeros((3, 4), 'f'), None\n", "label with some"),
        ("def f():\n    yield np.zeros((3, 4), 'f'), 1\n    yield np.zeros((3, 5), 'f'), 1\n", "do not stack"),
        ("def f():\n    yield np.zeros((3, 5), 'f'), 1\n", "has shape 1x3x5, expected samplesx3x4"),
        ("1 / 0\n", "raised ZeroDivisionError"),
    ],
)
def test_functions_refused(tmp_path: Path, body: str, message: str) -> None:
    assert message in refused(script(tmp_path, body)).message


def test_a_function_that_fails_is_named_with_its_line(tmp_path: Path) -> None:
    source = script(tmp_path, "def f():\n    yield np.zeros(3), 1\n    raise ValueError\n")
    assert refused(source).where == f"{tmp_path / 'feeder.py'}:4"
    source = script(tmp_path, "def f(:\n")
    assert refused(source).where == f"{tmp_path / 'feeder.py'}:2"


def test_a_function_that_does_not_exist(tmp_path: Path) -> None:
    source = script(tmp_path, "def f():\n    yield 1, 1\n")
    with pytest.raises(UnknownName) as caught:
        load_data(source.replace(":f", ":ff"), IMAGE)
    assert caught.value.hint == "did you mean `f`?"
    assert "there is no file" in refused(str(tmp_path / "none.py:f")).message


def test_two_inputs_of_a_tuple(tmp_path: Path) -> None:
    error = refused(script(tmp_path, "def f():\n    yield (np.zeros(5, 'i8'),), 1\n"), TEXT)
    assert "has 1 inputs, the model has 2" in error.message
    assert error.hint == "yield `ids`, `mask`"


# dividing


def made(values: list[int]) -> Data:
    x = np.array(values, np.float32).reshape(-1, 1) * np.ones((1, 3), np.float32)
    return Data({"x": x}, None, "")


@given(st.lists(st.integers(0, 40), min_size=1, max_size=120))
@settings(deadline=None)
def test_split_is_a_division_that_keeps_duplicates_together(values: list[int]) -> None:
    calibration, evaluation = made(values).split()
    assert sorted(calibration + evaluation) == list(range(len(values)))
    assert calibration == sorted(calibration)
    assert evaluation == sorted(evaluation)
    assert not {values[i] for i in calibration} & {values[i] for i in evaluation}
    assert evaluation
    assert bool(calibration) == (len(set(values)) > 1)


@given(st.lists(st.integers(0, 1000), min_size=20, max_size=200, unique=True), st.randoms())
@settings(deadline=None)
def test_split_does_not_depend_on_order(values: list[int], rng: random.Random) -> None:
    shuffled = list(values)
    rng.shuffle(shuffled)
    sides = [{v[i] for i in made(v).split()[0]} for v in (values, shuffled)]
    assert sides[0] == sides[1]


@given(st.sets(st.integers(0, 10_000), min_size=60, max_size=200), st.sets(st.integers(0, 10_000), max_size=100))
@settings(deadline=None)
def test_more_data_does_not_move_a_sample(values: set[int], more: set[int]) -> None:
    few, many = sorted(values), sorted(values | more)
    before = {few[i] for i in made(few).split()[0]}
    after = {many[i] for i in made(many).split()[0]}
    assert before == after & values


def test_split_is_about_a_quarter_and_capped() -> None:
    calibration, evaluation = made(list(range(1000))).split()
    assert 200 < len(calibration) < 300
    assert len(evaluation) == 1000 - len(calibration)
    calibration, evaluation = made(list(range(5000))).split()
    assert len(calibration) == 512
    assert len(evaluation) == 5000 - 512


def test_split_looks_at_every_input_and_not_at_labels() -> None:
    a, b = np.arange(200, dtype=np.int64)[:, None], np.arange(200, dtype=np.int64)[:, None] % 7
    both = Data({"a": a, "b": b}, None, "").split()
    assert both == Data({"b": b, "a": a}, np.arange(200), "").split()
    assert both != Data({"a": a, "b": b + 1}, None, "").split()


def test_one_giant_group_of_duplicates_does_not_empty_a_side() -> None:
    for values in ([0] * 2000 + [1], [0] * 2000 + [1] * 2000, list(range(2)) * 3):
        calibration, evaluation = made(values).split()
        assert evaluation
        assert not {values[i] for i in calibration} & {values[i] for i in evaluation}


# making up


def test_made_up_data_fits_and_repeats() -> None:
    data = generate(TEXT, 5, 7, {"ids": (1, 16)})
    assert data.synthetic
    assert data.inputs["ids"].shape == (5, 16)
    assert data.inputs["ids"].min() >= 0
    assert data.inputs["ids"].max() < 100
    assert (data.inputs["mask"] == 1).all()
    assert generate(TEXT, 5, 7, {"ids": (1, 16)}).sha256 == data.sha256
    assert generate(TEXT, 5, 8, {"ids": (1, 16)}).sha256 != data.sha256


@pytest.mark.parametrize(
    ("name", "dtype", "low", "high"),
    [
        ("x", "float32", -9, 9),
        ("x", "float16", -9, 9),
        ("x", "float64", -9, 9),
        ("image", "uint8", 0, 255),
        ("q", "int8", -128, 127),
        ("ids", "int32", 0, 99),
        ("attention_mask", "float32", 1, 1),
        ("attention_mask", "bool", 1, 1),
        ("flag", "bool", 0, 1),
        ("token_type_ids", "int64", 0, 0),
        ("position_ids", "int64", 0, 9),
    ],
)
def test_made_up_values(name: str, dtype: str, low: int, high: int) -> None:
    array = generate(signature((name, dtype, ("n", 10))), 50, 0).inputs[name]
    assert str(array.dtype) == dtype
    assert low <= array.min()
    assert array.max() <= high
    assert (len(np.unique(array)) > 1) == (low != high)


def test_sizes_that_are_missing() -> None:
    with pytest.raises(UsageError) as caught:
        generate(TEXT, 2, 0)
    assert caught.value.message == "the dimension `tokens` of input `ids` has no size, so no data can be made up"
    assert caught.value.hint == "give `--shapes ids:1x128`, or real data with `--data`"
    with pytest.raises(UnknownName):
        generate(TEXT, 2, 0, {"idss": (1, 4)})


def test_types_that_cannot_be_made_up() -> None:
    with pytest.raises(UsageError, match="holds strings, which cannot be made up") as caught:
        generate(signature(("text", "string", ("n",))), 2, 0)
    assert caught.value.hint == "give real ones with `--data`"
    with pytest.raises(UsageError, match="has type float3, which NumPy lacks"):
        generate(signature(("x", "float3", ("n",))), 2, 0)


# feeding


def test_samples_of_a_free_batch() -> None:
    data = generate(IMAGE, 5, 0)
    assert sample(data, 2, IMAGE)["x"].shape == (1, 3, 4)
    got = list(feeds(data, [4, 1, 0], IMAGE, 2))
    assert [(f["x"].shape, n) for f, n in got] == [((2, 3, 4), 2), ((1, 3, 4), 1)]
    np.testing.assert_array_equal(got[0][0]["x"], data.inputs["x"][[4, 1]])
    assert all(f["x"].flags.c_contiguous for f, _ in got)


def test_samples_of_a_static_batch_are_filled_up() -> None:
    spec = signature(("x", "float32", (4, 3, 4)))
    data = generate(spec, 6, 0)
    assert data.rows == 6
    np.testing.assert_array_equal(sample(data, 5, spec)["x"], data.inputs["x"][[5, 0, 1, 2]])
    got = list(feeds(data, [0, 1, 2, 3, 4], spec, 99))
    assert [(f["x"].shape, n) for f, n in got] == [((4, 3, 4), 4), ((4, 3, 4), 1)]
    np.testing.assert_array_equal(got[1][0]["x"], data.inputs["x"][[4, 4, 4, 4]])


def test_static_one_goes_one_by_one() -> None:
    spec = signature(("x", "float32", (1, 3, 4)))
    assert [n for _, n in feeds(generate(spec, 3, 0), [0, 1, 2], spec, 8)] == [1, 1, 1]


def test_models_without_a_batch_axis(tmp_path: Path) -> None:
    spec = signature(("x", "float32", (5, 2)), ("scale", "float32", ()))
    assert spec.batch is None
    data = generate(spec, 3, 0)
    assert data.inputs["x"].shape == (3, 5, 2)
    one = sample(data, 1, spec)
    assert (one["x"].shape, one["scale"].shape) == ((5, 2), ())
    assert [n for _, n in feeds(data, [0, 2], spec, 8)] == [1, 1]
    np.savez(tmp_path / "d.npz", x=np.zeros((5, 2), np.float32), scale=np.zeros(5, np.float32))
    assert "expected samplesx5x2" in refused(tmp_path / "d.npz", spec).message


def test_a_sample_may_be_a_whole_input(tmp_path: Path) -> None:
    spec = signature(("x", "float32", (4, 3, 4)))
    np.savez(tmp_path / "d.npz", x=np.zeros((6, 4, 3, 4), np.float32))
    data = load_data(tmp_path / "d.npz", spec)
    assert sample(data, 3, spec)["x"].shape == (4, 3, 4)
    assert [(f["x"].shape, n) for f, n in feeds(data, [0, 1], spec)] == [((4, 3, 4), 1)] * 2


def test_what_is_saved_for_workers_is_read_again(tmp_path: Path) -> None:
    x = images(9)
    np.savez(tmp_path / "d.npz", x=x, labels=np.arange(9))
    data = load_data(tmp_path / "d.npz", IMAGE)
    again = load_data(save_npz(data, tmp_path / "new" / "w.npz"), IMAGE)
    assert again.sha256 == data.sha256
    assert again.split() == data.split()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["w.npz"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        save_npz(generate(IMAGE, 2, 0), tmp_path / "w.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("width", "count"), [(4, 16), (2**20, 9), (2**24, 1)])
def test_how_many_samples_are_timed_goes_by_their_size(width: int, count: int) -> None:
    spec = TensorSpec("x", "float32", (1, width))
    data = Data({"x": np.broadcast_to(np.float32(1), (40, width))}, None, "")
    found = timed(data, range(20, 40), Signature((spec,), ()))
    assert len(found) == count
    assert all(feed["x"].shape == (1, width) for feed in found)
