"""demo:digits is what it says it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from portolan.core.data import load_data
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.frontends.demo import demo_data, folder
from portolan.testing.passes import run

ROWS = Path(__file__).with_name("digits_training_rows.txt")


@pytest.fixture(scope="module")
def digits() -> Model:
    return load_model(folder() / "digits.onnx")


def test_the_signature_and_the_size(digits: Model) -> None:
    assert [str(spec) for spec in digits.signature.inputs] == ["image:batchx1x8x8 float32"]
    assert [str(spec) for spec in digits.signature.outputs] == ["logits:batchx10 float32"]
    assert digits.path.stat().st_size < 1.5 * 2**20
    assert digits.operators["Conv"] == 6


def test_the_accuracy_in_its_metadata_is_that_on_the_data(digits: Model) -> None:
    stated = {entry.key: entry.value for entry in onnx.load(digits.path).metadata_props}["held_out_accuracy"]
    data = load_data(demo_data("digits"), digits.signature)
    assert data.labels is not None
    answers = run(digits, data.inputs)["logits"].argmax(1)
    right = int((answers == data.labels).sum())
    assert f"{right}/{data.rows}" == stated
    assert data.rows >= 540
    assert right / data.rows >= 0.98


def test_no_image_of_the_data_was_trained_on() -> None:
    images = np.load(demo_data("digits"))["image"]
    held_out = {hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:16] for image in images}
    text = ROWS.read_text()
    trained = set(text.split())
    stated = {e.key: e.value for e in onnx.load(folder() / "digits.onnx").metadata_props}["training_rows_sha256"]
    assert hashlib.sha256(text.encode()).hexdigest() == stated
    assert len(held_out) == len(images)
    assert len(trained) == 1797 - len(images)
    assert not held_out & trained


def test_every_digit_occurs_and_nothing_names_a_machine(digits: Model) -> None:
    assert np.bincount(np.load(demo_data("digits"))["labels"], minlength=10).min() >= 40
    content = digits.path.read_bytes()
    for trace in (b"site-packages", b"/home/", b"/root/", b"/tmp/", b'File "'):
        assert trace not in content
