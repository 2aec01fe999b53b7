"""Exponentials of products as powers of two, where a factor of the product is known in an outer loop.

The outer factor takes up log2(e), once for all turns of the inner loop, and the inner loop is spared what brings an
exponent to base two, and what keeps infinities out. The exponent is rounded twice in place of once, so that a
result may be off by one part in 2^24 for each unit of its exponent more, as much as its product's own rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from portolan.kernels.tree import Expr, Num, Op

EXP2 = "exp2"
"""2 to the power of a vector: not of the language, only of loops with vectors."""


def exponent(e: Op, level: Callable[[Expr], int]) -> Op | None:
    """The `y` of `2 ** y` that is `e`; None where `e` is better left as it is.

    Args:
        e: an element function.
        level: how far inside of the loops an expression is known.
    """
    if e.name != "exp" or not isinstance(product := e.args[0], Op) or product.name != "mul":
        return None
    outer, inner = sorted(product.args, key=level)
    if outer.kind != "f" or isinstance(outer, Num) or level(outer) == level(inner):
        return None
    return Op("mul", (Op("mul", (outer, Num(math.log2(math.e), "f")), "f"), inner), "f")
