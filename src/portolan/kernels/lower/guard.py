"""Marks indices that only a predicate keeps inside, or nothing that can be proved: they are clamped when they run.

A masked element is computed and thrown away, so its reads must stay inside of their arrays like all others.
"""

from __future__ import annotations

from collections.abc import Mapping

from portolan.kernels.bounds import inside
from portolan.kernels.lower.elements import KEPT
from portolan.kernels.tree import Expr, Ext, Extent, Load, Num, Op, Program, Ranked, Reduce, children, rebuilt


def kept(program: Program, e: Expr, ranges: Mapping[str, Extent]) -> Expr:
    """`e` with `kept(index, extent)` around each index that is not inside for all values of its indices."""
    match e:
        case Load(tensor=name, index=index):
            axes = program.tensor(name).axes
            parts = [kept(program, i, ranges) for i in index]
            return Load(name, tuple(_one(p, a, ranges) for p, a in zip(parts, axes, strict=True)), e.kind, e.line)
        case Reduce(binders=binders):
            ranges = {**ranges, **{b.index: b.extent for b in binders}}
        case Ranked(binder=binder):
            ranges = {**ranges, binder.index: binder.extent}
        case _:
            pass
    return rebuilt(e, tuple(kept(program, c, ranges) for c in children(e)))


def _one(part: Expr, size: Extent, ranges: Mapping[str, Extent]) -> Expr:
    if all(inside(part, size, ranges)):
        return part
    whole: Expr = Num(size, "i") if isinstance(size, int) else Ext(size)
    return Op(KEPT, (part, whole), "i")
