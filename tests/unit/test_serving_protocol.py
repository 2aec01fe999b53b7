"""The protocol's tensors as JSON and as bytes: what is written is read, and what does not fit is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from portolan.serving import datatypes, protocol
from portolan.serving.calls import Answer, Refusal, Tensor

DTYPES = {word: np.dtype(name) for name, word in datatypes.WORD.items() if word != "BYTES"}


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    word = draw(st.sampled_from(sorted(DTYPES)))
    dtype = DTYPES[word]
    elements: Any = None
    if dtype.kind == "f":
        elements = st.floats(-1000, 1000, width=8 * dtype.itemsize)  # type: ignore[arg-type]
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    return word, draw(arrays.arrays(dtype, shape, elements=elements))


def asked(word: str, array: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"name": "x", "shape": list(array.shape), "datatype": word, **more}


@given(tensors(), st.booleans())
def test_numbers_in_json_are_read(given: tuple[str, np.ndarray], nested: bool) -> None:
    word, array = given
    data = array.tolist() if nested and array.ndim else array.ravel().tolist()
    call, wish = protocol.decode("m", None, json.dumps({"inputs": [asked(word, array, data=data)]}).encode(), None)
    (tensor,) = call.inputs
    assert (tensor.datatype, tensor.shape, wish.default) == (word, array.shape, False)
    assert bytes(tensor.data) == array.tobytes()


@given(tensors())
def test_numbers_behind_the_json_are_read_where_they_lie(given: tuple[str, np.ndarray]) -> None:
    word, array = given
    entry = asked(word, array, parameters={"binary_data_size": array.nbytes})
    head = json.dumps({"inputs": [entry]}).encode()
    body = head + array.tobytes()
    call, _ = protocol.decode("m", None, body, len(head), 640)
    (tensor,) = call.inputs
    assert tensor.place == 640 + len(head)
    assert bytes(tensor.data) == array.tobytes()
    with pytest.raises(Refusal, match="1 bytes are left over"):
        protocol.decode("m", None, body + b"!", len(head))


@given(tensors(), st.booleans())
def test_answers_are_written(given: tuple[str, np.ndarray], binary: bool) -> None:
    word, array = given
    answer = Answer("m", "1", [Tensor("y", word, array.shape, array.tobytes())], "an id")
    pieces, length = protocol.encode(answer, protocol.Wish(binary))
    whole = b"".join(pieces)
    told = json.loads(whole[:length] if binary else whole)
    (output,) = told["outputs"]
    assert (told["model_name"], told["id"], output["shape"]) == ("m", "an id", list(array.shape))
    if binary:
        assert whole[length:] == array.tobytes()
    else:
        assert length is None
        found = np.array(output["data"], array.dtype).reshape(array.shape)
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"name": "x", "shape": [2], "datatype": "FP32", "data": [1]}, "1 elements for shape"),
        ({"name": "x", "shape": [1], "datatype": "INT8", "data": [300]}, "are not INT8"),
        ({"name": "x", "shape": [1], "datatype": "FP32", "data": ["a"]}, "are not FP32"),
        ({"name": "x", "shape": [1], "datatype": "FP99", "data": [1]}, "no datatype"),
        ({"name": "x", "shape": [-1], "datatype": "FP32", "data": [1]}, "a shape that no tensor has"),
        ({"name": "x", "shape": [1], "datatype": "FP32"}, "neither `data` nor"),
        ({"name": "x", "shape": [1], "datatype": "BF16", "data": [1.0]}, "binary only"),
    ],
)
def test_what_does_not_fit_is_refused(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(Refusal, match=said) as refused:
        protocol.decode("m", None, json.dumps({"inputs": [entry]}).encode(), None)
    assert refused.value.kind == "invalid"
