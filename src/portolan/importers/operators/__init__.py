"""The table of operators: ONNX names to small functions over an array namespace.

A function's first argument is the `Call`; it works for every version of its operator from operator set 7 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from portolan.core import protos
from portolan.importers.operators import (
    classical,
    control,
    elementwise,
    geometry,
    indexing,
    layers,
    products,
    quantized,
    recurrent,
    reductions,
    resampling,
    sequences,
    shapes,
    trees,
)
from portolan.importers.operators.call import Operator

TABLE: Mapping[str, Operator] = MappingProxyType(
    {
        **classical.OPERATORS,
        **control.OPERATORS,
        **elementwise.OPERATORS,
        **geometry.OPERATORS,
        **indexing.OPERATORS,
        **layers.OPERATORS,
        **products.OPERATORS,
        **quantized.OPERATORS,
        **recurrent.OPERATORS,
        **reductions.OPERATORS,
        **resampling.OPERATORS,
        **sequences.OPERATORS,
        **shapes.OPERATORS,
        **trees.OPERATORS,
    }
)


def key(operator: str, domain: str) -> str:
    """An operator's name in the table and in `Model.operators`: `Gelu`, `Binarizer`, `com.microsoft.Gelu`."""
    return operator if protos.domain(domain) in protos.STANDARD else f"{domain}.{operator}"
