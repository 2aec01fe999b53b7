"""The protocol's words for element types, beside NumPy's names, sizes, and how JSON's numbers become bytes."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from portolan.serving.calls import Piece

#: The protocol's word for each of NumPy's names in a signature. Complex numbers have no word.
WORD: Mapping[str, str] = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64", "string": "BYTES",
}  # fmt: skip
#: Bytes of one element; 0 where elements differ in size.
SIZE: Mapping[str, int] = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
    "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8, "BYTES": 0,
}  # fmt: skip
_CODES: Mapping[str, str] = {
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
    "FP32": "f", "FP64": "d",
}  # fmt: skip
_LENGTH = struct.Struct("<I")


def flat(data: Sequence[Any], depth: int) -> Sequence[Any]:
    """The elements of a list that is flat, or nested as deep as the tensor has axes.

    Raises:
        ValueError: a list of another depth, or one that is only partly nested.
    """
    level: Sequence[Any] = data
    for _ in range(depth - 1):
        if not level or not isinstance(level[0], list):
            return level
        if not all(isinstance(item, list) for item in level):
            raise ValueError("lists beside elements")
        level = list(chain.from_iterable(level))
    return level


def encode(datatype: str, values: Sequence[Any]) -> bytes:
    """JSON's values as a tensor's bytes.

    Raises:
        ValueError: a value that the type cannot hold, or a type that JSON cannot write.
    """
    try:
        if datatype == "BYTES":
            return b"".join(map(_text, values))
        if datatype == "BOOL":
            if any(value is not True and value is not False for value in values):
                raise ValueError("not all of them are true or false")
            return bytes(values)
        if datatype == "FP16":
            return struct.pack(f"<{len(values)}e", *values)
        code = _CODES.get(datatype)
        if code is None:
            raise ValueError(f"{datatype} is sent as binary only")
        return _little(array(code, values)).tobytes()
    except (TypeError, OverflowError, struct.error) as error:
        raise ValueError(str(error)) from error


def decode(datatype: str, data: Piece) -> list[Any]:
    """A tensor's bytes as JSON's values.

    Raises:
        ValueError: text that is no UTF-8, or a type that JSON cannot write.
    """
    if datatype == "BYTES":
        return [bytes(item).decode() for item in elements(data)]
    if datatype == "BOOL":
        return [value != 0 for value in bytes(data)]
    if datatype == "FP16":
        return list(struct.unpack(f"<{len(data) // 2}e", data))
    if datatype not in _CODES:
        raise ValueError(f"{datatype} is sent as binary only")
    values = array(_CODES[datatype])
    values.frombytes(data)
    return _little(values).tolist()


def elements(data: Piece) -> Iterable[memoryview]:
    """The elements of a BYTES tensor.

    Raises:
        ValueError: a length that does not fit.
    """
    view, at = memoryview(data), 0
    while at < len(view):
        if at + 4 > len(view):
            raise ValueError("it ends inside an element's length")
        (size,) = _LENGTH.unpack_from(view, at)
        at += 4 + size
        if at > len(view):
            raise ValueError("it ends inside an element")
        yield view[at - size : at]


def _text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError("not all of them are text")
    raw = value.encode()
    return _LENGTH.pack(len(raw)) + raw


def _little(values: array[Any]) -> array[Any]:
    if sys.byteorder == "big":
        values.byteswap()
    return values
