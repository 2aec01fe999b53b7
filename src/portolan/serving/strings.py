"""Arrays of text and the protocol's BYTES: each element after its length in four bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from portolan.serving.datatypes import elements

_LENGTH = struct.Struct("<I")


def array(data: memoryview, shape: Sequence[int]) -> np.ndarray:
    """The elements as an array of `str` objects, as runtimes want them."""
    flat = np.empty(int(np.prod(shape)), object)
    for i, item in enumerate(elements(data)):
        flat[i] = bytes(item).decode()
    return flat.reshape(shape)


def raw(values: np.ndarray) -> tuple[bytes, list[int] | None]:
    """The bytes of an array of text, and where each row of the first axis ends in them."""
    pieces, ends, at = [], [], 0
    for row in values if values.ndim else [values]:
        for item in np.asarray(row, object).reshape(-1):
            text = item if isinstance(item, bytes) else str(item).encode()
            pieces.append(_LENGTH.pack(len(text)) + text)
            at += 4 + len(text)
        ends.append(at)
    return b"".join(pieces), ends if values.ndim else None
