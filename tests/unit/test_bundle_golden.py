"""Golden arrays: calls, tolerances, comparison, and their bytes."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from portolan.bundle import golden
from portolan.bundle.golden import Tolerance, compare, default_tolerance
from portolan.core.signature import Signature, TensorSpec
from portolan.errors import UsageError, VerificationFailed

EXACT = Tolerance(0.0, 0.0)


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def test_calls_of_free_static_and_scalar_inputs() -> None:
    signature = Signature((spec("free", "N", 2), spec("fixed", 3, 2), spec("scale"), spec("whole", "N", 2)), ())
    arrays = {
        "free": np.arange(4.0).reshape(2, 2),
        "fixed": np.arange(12.0).reshape(6, 2),
        "scale": np.array([0.5, 2.0]),
        "whole": np.arange(20.0).reshape(2, 5, 2),
    }
    assert golden.count_rows(signature, arrays) == 2
    call = golden.feeds(signature, arrays, 1)
    assert {name: array.tolist() for name, array in call.items()} == {
        "free": [[2, 3]], "fixed": [[6, 7], [8, 9], [10, 11]], "scale": 2.0, "whole": arrays["whole"][1].tolist(),
    }  # fmt: skip


def test_strings_reach_runtimes_as_objects() -> None:
    signature = Signature((spec("s", "N", dtype="string"),), ())
    arrays = golden.stack([{"s": np.array(["a", "bc"], object)}, {"s": np.array(["d", "e"], object)}])
    assert arrays["s"].dtype.kind == "U"
    call = golden.feeds(signature, arrays, 0)
    assert call["s"].dtype == object
    assert call["s"].tolist() == ["a", "bc"]
    signature.check(call)
    again = golden.parse(golden.dump(arrays, "golden input"), "inputs.npz", signature.inputs)
    assert again["s"].tolist() == [["a", "bc"], ["d", "e"]]


def test_inputs_that_make_different_numbers_of_calls() -> None:
    signature = Signature((spec("a", "N"), spec("b", "N")), ())
    with pytest.raises(UsageError, match="do not make the same number of calls"):
        golden.count_rows(signature, {"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(UsageError, match="no whole number of calls of 4"):
        golden.count_rows(Signature((spec("a", 4, 1),), ()), {"a": np.zeros((6, 1))})
    with pytest.raises(UsageError, match="have to be of one shape"):
        golden.stack([{"a": np.zeros(2)}, {"a": np.zeros(3)}])


def test_a_model_without_inputs_is_called_once() -> None:
    assert golden.count_rows(Signature((), ()), {}) == 1
    assert golden.parse(golden.dump({}, "golden input"), "inputs.npz", ()) == {}


def test_joined_outputs() -> None:
    signature = Signature((), (spec("y", "N", 2), spec("loss")))
    calls = [{"y": np.full((1, 2), i), "loss": np.float32(i)} for i in range(3)]
    joined = golden.join(calls, signature)
    assert joined["y"].shape == (3, 2)
    assert joined["loss"].tolist() == [0, 1, 2]
    with pytest.raises(VerificationFailed, match="has another shape from call to call"):
        golden.join([{"y": np.zeros((1, 2)), "loss": 0}, {"y": np.zeros((1, 3)), "loss": 0}], signature)


@pytest.mark.parametrize(
    ("want", "got", "tolerance", "worst", "ok"),
    [
        ([1.0, 2.0], [1.0, 2.1], Tolerance(0.0, 0.2), 0.1, True),
        ([1.0, 2.0], [1.0, 2.1], Tolerance(0.04, 0.0), 0.1, False),
        ([1.0, 2.0], [1.0, 2.1], Tolerance(0.06, 0.0), 0.1, True),
        ([np.inf, -np.inf], [np.inf, -np.inf], EXACT, 0.0, True),
        ([np.inf, 0.0], [-np.inf, 0.0], Tolerance(1.0, 1.0), np.inf, False),
        ([np.inf, 0.0], [3e38, 0.0], Tolerance(1.0, 1.0), np.inf, False),
        ([0.0, 0.0], [np.nan, 0.0], Tolerance(1.0, 1e9), np.inf, False),
        ([np.nan, 0.0], [np.nan, 0.0], Tolerance(1.0, 1e9), np.inf, False),
    ],
)
def test_floats(want: list[float], got: list[float], tolerance: Tolerance, worst: float, ok: bool) -> None:
    found = compare("y", np.array(want), np.array(got), tolerance)
    assert found.worst == pytest.approx(worst)
    assert found.ok is ok
    assert found.to_json()["worst"] is None or found.to_json()["worst"] == found.worst


def test_whole_numbers_truth_values_and_text() -> None:
    big = np.array([2**63 - 1], np.int64)
    assert not compare("y", big, big - 1, EXACT).ok, "a difference that floats do not see"
    assert compare("y", big, big.copy(), EXACT).ok
    assert compare("y", np.array([5], np.uint8), np.array([4], np.uint8), Tolerance(0, 1)).ok
    assert not compare("y", np.array([0], np.uint64), np.array([2**64 - 1], np.uint64), Tolerance(0, 1)).ok
    assert not compare("y", np.array([True]), np.array([False]), Tolerance(9, 9)).ok
    assert compare("y", np.array(["a", "bcd"]), np.array(["a", "bcd"], object), EXACT).ok
    assert not compare("y", np.array(["a", "b"]), np.array(["a", "c"], object), Tolerance(9, 9)).ok
    assert compare("y", np.zeros((0, 3)), np.zeros((0, 3)), EXACT).ok
    assert compare("y", np.array([1 + 1j]), np.array([1 + 1.5j]), Tolerance(0, 0.6)).ok


def test_the_place_of_the_worst_element() -> None:
    want = np.zeros((2, 3, 4))
    got = want.copy()
    got[1, 2, 3], got[0, 0, 0] = 5.0, 1.0
    found = compare("y", want, got, EXACT)
    assert (found.at, found.worst) == ((1, 2, 3), 5.0)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-1e3, 1e3, width=32)), st.just(0.0) | st.floats(1e-6, 0.5))
def test_within_the_tolerance_passes_and_beyond_it_fails(want: np.ndarray, atol: float) -> None:
    tolerance = Tolerance(0.0, atol)
    wide = want.astype(np.float64)
    assert compare("y", wide, wide + atol * 0.99, tolerance).ok
    assert not compare("y", wide, wide + atol * 1.01 + 1e-6, tolerance).ok


def test_default_tolerances_are_in_units_of_the_spread() -> None:
    rng = np.random.default_rng(0)
    outputs = {
        "y": (rng.standard_normal((50, 4)) * 75).astype(np.float32),
        "masked": np.array([1.0, 3.0, -np.inf], np.float32),
        "label": np.arange(3), "same": np.full(4, 2.0), "zero": np.zeros(4), "one": np.array([8.0]),
        "z": np.array([1j, 3j]),
    }  # fmt: skip
    exact, reduced = default_tolerance(outputs, True), default_tolerance(outputs, False)
    assert 0.006 < exact["y"].atol < 0.009
    assert 6 < reduced["y"].atol < 9
    assert exact["masked"].atol == pytest.approx(1e-4)
    assert exact["label"] == reduced["label"] == EXACT
    assert exact["same"].atol == pytest.approx(2e-4)
    assert exact["one"].atol == pytest.approx(8e-4)
    assert exact["zero"].atol == pytest.approx(1e-7)
    assert exact["z"].atol == pytest.approx(1e-4)


DTYPES = ["float16", "float32", "float64", "int8", "uint8", "int64", "bool", "complex64"]


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_what_is_dumped_is_read_again(dtype: str, rows: int, width: int, fortran: bool) -> None:
    rng = np.random.default_rng(rows)
    array = rng.integers(0, 2, (rows, width)).astype(dtype)
    arrays = {"in/put:0": np.asfortranarray(array) if fortran else array, "ü": array[::-1]}
    specs = (spec("in/put:0", "N", width, dtype=dtype), spec("ü", "N", width, dtype=dtype))
    raw = golden.dump(arrays, "golden input")
    again = golden.parse(raw, "inputs.npz", specs)
    assert raw == golden.dump(dict(reversed(arrays.items())), "golden input")
    for name, want in arrays.items():
        assert again[name].dtype == want.dtype
        assert again[name].tolist() == want.tolist()


def test_numpy_reads_them_and_its_own_are_read() -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    with np.load(io.BytesIO(golden.dump({"x": array.astype(">i2")}, "golden input")), allow_pickle=False) as loaded:
        assert loaded["x"].tolist() == array.tolist()
        assert loaded["x"].dtype.byteorder in "=<"
    for save in (np.savez, np.savez_compressed):
        out = io.BytesIO()
        save(out, x=array)
        again = golden.parse(out.getvalue(), "inputs.npz", (spec("x", "N", 3, dtype="int16"),))
        assert again["x"].tolist() == array.tolist()


def test_too_much_to_ship(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.zeros((64, 64), np.float64)
    raw = golden.dump({"x": array}, "golden input")
    monkeypatch.setattr(golden, "MOST_GOLDEN", 2**14)
    with pytest.raises(UsageError, match="the golden inputs have more than 0 MiB"):
        golden.dump({"x": array}, "golden input")
    with pytest.raises(VerificationFailed, match="unpacks to more than"):
        golden.parse(raw, "inputs.npz", (spec("x", "N", 64, dtype="float64"),))


def test_the_archive_holds_nothing_that_changes() -> None:
    with zipfile.ZipFile(io.BytesIO(golden.dump({"x": np.zeros(3)}, "golden input"))) as archive:
        info = archive.infolist()[0]
        assert (info.date_time, info.compress_type) == ((1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED)
