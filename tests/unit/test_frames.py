from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from portolan.errors import WorkerError
from portolan.worker import frames

DTYPES = st.sampled_from(
    [np.dtype(name) for name in ("bool", "int8", "int64", "uint16", "float16", "float32", "float64")]
)
TENSORS = st.dictionaries(
    st.text(max_size=20), DTYPES.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0))), max_size=4
)


def reader(data: bytes) -> Any:
    stream = io.BytesIO(data)

    def read(size: int) -> bytearray:
        got = stream.read(size)
        if len(got) < size:
            raise EOFError
        return bytearray(got)

    return read


def written(fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> bytes:
    return b"".join(bytes(buffer) for buffer in frames.encode(fields, tensors))


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.booleans()), TENSORS)
def test_a_frame_comes_back_as_it_went(fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    frame = frames.decode(reader(written(fields, tensors)))
    assert frame.fields == fields
    assert list(frame.tensors) == list(tensors)
    for name, array in tensors.items():
        assert frame.tensors[name].dtype == array.dtype
        assert frame.tensors[name].shape == array.shape
        assert frame.tensors[name].tobytes() == np.ascontiguousarray(array).tobytes()


def test_strided_tensors_arrive_whole() -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::3].T
    assert np.array_equal(frames.decode(reader(written({}, {"a": array}))).tensors["a"], array)


@pytest.mark.parametrize(
    "array",
    [np.array([["a", "schön"], ["", "日本"]]), np.array(["a", "bc"], object), np.array([], object), np.array([""])],
)
def test_strings_arrive_as_strings(array: np.ndarray) -> None:
    got = frames.decode(reader(written({}, {"a": array}))).tensors["a"]
    assert (got.dtype.kind, got.shape, got.tolist()) == ("U", array.shape, array.tolist())


@pytest.mark.parametrize("array", [np.array(["text", 3], object), np.array([object()]), np.zeros(2, ">f4")])
def test_types_that_cannot_cross_are_refused(array: np.ndarray) -> None:
    with pytest.raises(WorkerError, match="cannot be sent"):
        written({}, {"a": array})


@given(st.binary(max_size=200))
def test_noise_is_never_taken_for_a_frame(data: bytes) -> None:
    with pytest.raises((WorkerError, EOFError)):
        frames.decode(reader(data))


def forged(header: Any, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return frames.PREFIX.pack(frames.MAGIC, len(text), len(body)) + text + body


@pytest.mark.parametrize(
    "header",
    [
        [],
        {},
        {"fields": {}, "tensors": [["a", "object", [1]]]},
        {"fields": {}, "tensors": [["a", "U9999999999", [1]]]},
        {"fields": {}, "tensors": [["a", "U0", [1]]]},
        {"fields": {}, "tensors": [["a", "float32", [-1]]]},
        {"fields": {}, "tensors": [["a", "float32", [1.5]]]},
        {"fields": {}, "tensors": [["a", "float32", [1 << 62, 1 << 62]]]},
        {"fields": {}, "tensors": ["a"]},
        {"fields": 3, "tensors": []},
    ],
)
def test_a_forged_header_is_refused(header: Any) -> None:
    with pytest.raises(WorkerError):
        frames.decode(reader(forged(header)))


def test_an_oversized_header_is_refused_before_it_is_read() -> None:
    data = frames.PREFIX.pack(frames.MAGIC, frames.MAX_HEADER + 1, 0)
    with pytest.raises(WorkerError, match="over the limit"):
        frames.decode(reader(data))
