"""Frames: how controller and worker talk over two pipes. A small JSON header, then raw tensor bytes; never pickle.

    "PTLN" | header bytes, u32 | body bytes, u64 | header (JSON, UTF-8) | body (tensors in order, C layout)

The header is `{"fields": {...}, "tensors": [[name, dtype, shape], ...]}`. All integers are little-endian. Strings cross
as NumPy holds them: `U12` is 12 code points of 32 bits for each.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from portolan.errors import WorkerError

_TEXT = re.compile(r"U[1-9]\d{0,5}")
MAGIC = b"PTLN"
PREFIX = struct.Struct("<4sIQ")
MAX_HEADER = 16 * 2**20
MAX_BODY = 64 * 2**30
_DTYPES: tuple[str, ...] = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)


@dataclass(frozen=True)
class Frame:
    """One message: plain fields and named tensors."""

    fields: dict[str, Any]
    tensors: dict[str, np.ndarray] = field(default_factory=dict)


def encode(fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Iterator[memoryview]:
    """The frame as buffers to write one after another; tensor bytes are not copied when contiguous.

    Raises:
        WorkerError: a tensor's element type cannot cross (objects that are no strings).
    """
    arrays = {name: _plain(np.asarray(array, order="C")) for name, array in tensors.items()}
    for name, array in arrays.items():
        if not array.dtype.isnative or (array.dtype.kind != "U" and array.dtype.name not in _DTYPES):
            raise WorkerError(f"the tensor `{name}` of type {array.dtype} cannot be sent to a worker")
    listed = [[name, _called(array.dtype), list(array.shape)] for name, array in arrays.items()]
    header = json.dumps({"fields": fields, "tensors": listed}).encode()
    yield memoryview(PREFIX.pack(MAGIC, len(header), sum(a.nbytes for a in arrays.values())))
    yield memoryview(header)
    for array in arrays.values():
        if array.nbytes:
            yield array.reshape(-1).view(np.uint8).data


def decode(read: Callable[[int], bytearray]) -> Frame:
    """Reads one frame.

    Args:
        read: returns exactly that many bytes, or raises.

    Raises:
        WorkerError: what arrives is not a frame, or its sizes do not add up.
    """
    magic, header_bytes, body_bytes = PREFIX.unpack(read(PREFIX.size))
    if magic != MAGIC:
        raise WorkerError(f"the worker's answer is not a frame: it starts with {bytes(magic)!r}")
    if header_bytes > MAX_HEADER or body_bytes > MAX_BODY:
        raise WorkerError(f"a frame of {header_bytes:,} + {body_bytes:,} bytes is over the limit")
    try:
        header = json.loads(read(header_bytes))
        fields, listed = dict(header["fields"]), list(header["tensors"])
        specs = [(str(name), np.dtype(_known(dtype)), tuple(_size(d) for d in shape)) for name, dtype, shape in listed]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkerError(f"a frame's header cannot be read: {error}") from error
    sizes = [dtype.itemsize * math.prod(shape) for _, dtype, shape in specs]
    if sum(sizes) != body_bytes:
        raise WorkerError(f"a frame's tensors need {sum(sizes):,} bytes, its body has {body_bytes:,}")
    tensors = {}
    for (name, dtype, shape), size in zip(specs, sizes, strict=True):
        tensors[name] = np.frombuffer(read(size), dtype).reshape(shape)
    return Frame(fields, tensors)


def _plain(array: np.ndarray) -> np.ndarray:
    """Strings held as objects, as runtimes give them, in NumPy's own type; anything else as it is."""
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array.ravel()):
        return array.astype("U") if array.size else array.astype("U1")
    return array


def _called(dtype: np.dtype[Any]) -> str:
    return f"U{max(1, dtype.itemsize // 4)}" if dtype.kind == "U" else dtype.name


def _known(dtype: str) -> str:
    if dtype not in _DTYPES and not (isinstance(dtype, str) and _TEXT.fullmatch(dtype)):
        raise ValueError(f"unknown element type {dtype!r}")
    return dtype


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a dimension")
    return value
