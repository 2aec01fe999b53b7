"""Arguments whose axes lie in another order in memory: a kernel of their own reads them where they are.

A transposed array is a contiguous one with other axes. The same tree with the axes of the argument and the indices of
its loads in that order is a kernel like any other: its layout is chosen and checked for what it reads. Arrays with
gaps, and small ones, are copied: that takes less than compiling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from portolan.kernels.arrays import Array
from portolan.kernels.tree import Expr, Load, Program, children, rebuilt

Order = tuple[int, ...]
#: Bytes from which an argument is worth a kernel of its own.
WORTH = 1 << 20


def orders(program: Program, arrays: Sequence[Array]) -> dict[str, Order]:
    """The orders of axes in which large arguments lie, by name; of those that are contiguous only in another order."""
    if program.stages:
        return {}
    found = {}
    for tensor, array in zip(program.inputs, arrays, strict=True):
        if array.flags.c_contiguous or array.nbytes < WORTH:
            continue
        order = tuple(sorted(range(array.ndim), key=lambda n: -array.strides[n]))
        if array.transpose(order).flags.c_contiguous:
            found[tensor.name] = order
    return found


def turned(program: Program, by: Mapping[str, Order]) -> Program:
    """The kernel on arguments whose axes are in other orders."""
    inputs = tuple(replace(t, axes=tuple(t.axes[n] for n in by[t.name])) if t.name in by else t for t in program.inputs)
    known: dict[Expr, Expr] = {}

    def visit(e: Expr) -> Expr:
        if e not in known:
            made = rebuilt(e, tuple(map(visit, children(e))))
            if isinstance(made, Load) and made.tensor in by:
                made = replace(made, index=tuple(made.index[n] for n in by[made.tensor]))
            known[e] = made
        return known[e]

    return replace(program, inputs=inputs, values=tuple(map(visit, program.values)))
