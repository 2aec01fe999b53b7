"""Signatures: what one call's inputs must look like, and what is said when they do not."""

from __future__ import annotations

import numpy as np
import pytest

from portolan.core.signature import Dim, Signature, TensorSpec
from portolan.errors import UsageError

IMAGE = TensorSpec("image", "float32", ("batch", 3, 4))
IDS = TensorSpec("ids", "int64", ("batch", "length"))
SIGNATURE = Signature((IMAGE, IDS), (TensorSpec("y", "float32", ()),))
GOOD = {"image": np.zeros((2, 3, 4), np.float32), "ids": np.zeros((2, 7), np.int64)}


def signature(*shapes: tuple[Dim, ...]) -> Signature:
    return Signature(tuple(TensorSpec(f"x{i}", "float32", shape) for i, shape in enumerate(shapes)), ())


def test_what_fits() -> None:
    SIGNATURE.check(GOOD)


def test_text_and_json() -> None:
    assert str(IMAGE) == "image:batchx3x4 float32"
    assert IMAGE.to_json() == {"name": "image", "dtype": "float32", "shape": ["batch", 3, 4]}


def test_free_dimensions_are_named_once() -> None:
    assert SIGNATURE.free == ["batch", "length"]
    assert signature((1, 3)).free == []


@pytest.mark.parametrize(
    ("shapes", "batch"),
    [
        ([], None),
        ([()], None),
        ([("n", 3)], "n"),
        ([("n", 3), ("m",)], "n"),
        ([(1, 3)], 1),
        ([("n", 3), (4,)], 4),
        ([(2, 3), (2,)], 2),
        ([(2, 3), (4,)], None),
        ([(2, 3), ()], None),
    ],
)
def test_the_batch_axis(shapes: list[tuple[Dim, ...]], batch: Dim | None) -> None:
    assert signature(*shapes).batch == batch


@pytest.mark.parametrize("kind", ["U5", "O"])
def test_strings_come_as_numpy_has_them(kind: str) -> None:
    Signature((TensorSpec("text", "string", (1,)),), ()).check({"text": np.array(["hello"], dtype=kind)})


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"image": None}, "the data lacks `image`", "the model's inputs are `ids`, `image`"),
        ({"mask": GOOD["ids"]}, "the data has unknown `mask`", "the model's inputs are `ids`, `image`"),
        (
            {"ids": None, "mask": GOOD["ids"]}, "the data lacks `ids` and has unknown `mask`",
            "the model's inputs are `ids`, `image`",
        ),
        (
            {"ids": GOOD["ids"].astype(np.int32)}, "input `ids` has type int32, expected int64",
            "convert it: `data['ids'].astype('int64')`",
        ),
        (
            {"image": np.zeros((2, 4, 4), np.float32)}, "input `image` has shape 2x4x4, expected batchx3x4",
            "the first axis of each array holds the samples",
        ),
        (
            {"image": np.zeros((3, 4), np.float32)}, "input `image` has shape 3x4, expected batchx3x4",
            "the first axis of each array holds the samples",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit(change: dict[str, np.ndarray | None], message: str, hint: str) -> None:
    given = {name: array for name, array in {**GOOD, **change}.items() if array is not None}
    with pytest.raises(UsageError) as caught:
        SIGNATURE.check(given, where="data.npz")
    assert (caught.value.message, caught.value.hint, caught.value.where) == (message, hint, "data.npz")
