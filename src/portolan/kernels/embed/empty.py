"""Axes that may be empty: those of which a kernel reads no element when there is none."""

from __future__ import annotations

from portolan.kernels.tree import Expr, Extent, Idx, Load, Program, Ranked, Reduce, children


def may_be_empty(program: Program) -> frozenset[str]:
    """Symbols whose size may be 0 while there are results: a reduction over nothing gives what its monoid begins with.

    An axis that is read at a computed place, or by an index of another axis, is read whatever its size. Loops over
    stages copy whole arrays; their sizes are never 0.
    """
    if program.stages:
        return frozenset()
    named = {axis for o in program.outputs for axis in o.axes if isinstance(axis, str)}
    read: set[str] = set()
    for value in program.values:
        _visit(program, value, {str(axis): axis for axis in named}, read)
    return frozenset(program.symbols) - read


def _visit(program: Program, e: Expr, bound: dict[str, Extent], read: set[str]) -> None:
    """Adds to `read` the axes that are read by anything but an index that runs over them."""
    if isinstance(e, Load):
        for part, axis in zip(e.index, program.tensor(e.tensor).axes, strict=True):
            if isinstance(axis, str) and not (isinstance(part, Idx) and bound.get(part.name) == axis):
                read.add(axis)
    if isinstance(e, Reduce):
        bound = {**bound, **{b.index: b.extent for b in e.binders}}
    if isinstance(e, Ranked):
        bound = {**bound, e.binder.index: e.binder.extent}
    for child in children(e):
        _visit(program, child, bound, read)
