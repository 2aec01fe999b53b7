"""The signs of operations that all languages here write between their operands, and exact numbers."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from portolan.kernels.ir import Lit

COMPARISONS: Mapping[str, str] = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
INFIX: Mapping[str, str] = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "shl": "<<",
    "shr": ">>",
    "bitand": "&",
    "bitor": "|",
    "bitxor": "^",
    **COMPARISONS,
}


def rounded(x: Lit) -> float:
    """A float as the nearest float32; beyond its range infinite."""
    value = float(x.value)
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
