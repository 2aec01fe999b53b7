"""The table of operators: ONNX names to small functions over an array namespace.

A function's first argument is the `Call`; it works for every version of its operator from operator set 7 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from portolan.importers.operators import elementwise, indexing, layers, products, recurrent, reductions, shapes
from portolan.importers.operators.call import Operator

TABLE: Mapping[str, Operator] = MappingProxyType(
    {
        **elementwise.OPERATORS,
        **indexing.OPERATORS,
        **layers.OPERATORS,
        **products.OPERATORS,
        **recurrent.OPERATORS,
        **reductions.OPERATORS,
        **shapes.OPERATORS,
    }
)


def key(operator: str, domain: str) -> str:
    """An operator's name in the table and in `Model.operators`: `Gelu`, `com.microsoft.Gelu`."""
    return operator if domain in ("", "ai.onnx") else f"{domain}.{operator}"
