"""Arguments that lie otherwise in memory than their axes say: a kernel of their own reads them where they are.

A transposed array is a contiguous one with other axes. Columns of a larger array are one with an axis more, of which it
has the first: `x[:, :k]` of three times as many columns lies in memory as `i 3 k`. The same tree with these axes of the
argument and the indices of its loads is a kernel like any other: its layout is chosen and checked for what it reads.

Small arrays are copied, since that takes less than compiling. So are those whose elements are no neighbours in memory
(`x[:, ::2]`), that run backwards, repeat or overlap themselves, or are columns of an array that is no whole number of
times as wide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from portolan.kernels.arrays import Array
from portolan.kernels.tree import Expr, Load, Num, Program, children, rebuilt

Order = tuple[int, ...]
"""Axes in the order of memory, the last the fastest; -m is an axis of m that the argument has only the first of."""
#: Bytes from which an argument is worth a kernel of its own.
WORTH = 1 << 20
_FIRST = Num(0, "i")


def orders(program: Program, arrays: Sequence[Array]) -> dict[str, Order]:
    """How large arguments lie, by name; of those that another kernel can read where they are."""
    if program.stages:
        return {}
    found = {}
    for tensor, array in zip(program.inputs, arrays, strict=True):
        if not array.flags.c_contiguous and array.nbytes >= WORTH and (order := _order(array)) is not None:
            found[tensor.name] = order
    return found


def _order(array: Array) -> Order | None:
    """The axes of an array as they lie, with the gaps between them; None where its elements have no such order."""
    places: list[int] = []
    reached = array.itemsize
    for n in sorted(range(array.ndim), key=lambda n: (array.strides[n], -n)):
        times, rest = divmod(array.strides[n], reached)
        if rest or times < 1 or (times > 1 and not places):
            return None
        places += [-times, n] if times > 1 else [n]
        reached = array.strides[n] * array.shape[n]
    return tuple(reversed(places))


def laid(array: Array, order: Order) -> Array:
    """The argument as its own kernel takes it. Behind the first of a gap's elements there need not be any memory."""
    shape = [array.shape[n] if n >= 0 else -n for n in order]
    strides = [array.itemsize]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return np.lib.stride_tricks.as_strided(array, shape, strides)


def turned(program: Program, by: Mapping[str, Order]) -> Program:
    """The kernel on arguments that lie otherwise."""
    inputs = tuple(
        replace(t, axes=tuple(t.axes[n] if n >= 0 else -n for n in by[t.name])) if t.name in by else t
        for t in program.inputs
    )
    known: dict[Expr, Expr] = {}

    def visit(e: Expr) -> Expr:
        if e not in known:
            made = rebuilt(e, tuple(map(visit, children(e))))
            if isinstance(made, Load) and made.tensor in by:
                made = replace(made, index=tuple(made.index[n] if n >= 0 else _FIRST for n in by[made.tensor]))
            known[e] = made
        return known[e]

    return replace(program, inputs=inputs, values=tuple(map(visit, program.values)))
