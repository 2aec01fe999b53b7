"""Indices named so that each has one range in the whole kernel: then a name is enough to say what a sum runs over."""

from __future__ import annotations

from portolan.kernels.tree import (
    Binder,
    Expr,
    Extent,
    Program,
    Ranked,
    Reduce,
    children,
    extents_of,
    rebuilt,
    renamed,
)


def distinct(program: Program) -> tuple[list[Expr], dict[str, Extent]]:
    """The values of a program with such names, and the range of each."""
    ranges: dict[str, Extent] = dict(extents_of(program))
    return [_distinct(v, ranges) for v in program.values], ranges


def _distinct(e: Expr, ranges: dict[str, Extent]) -> Expr:
    match e:
        case Reduce(binders=binders):
            names = [_name(b, ranges) for b in binders]
            parts = list(e.body) if e.where is None else [*e.body, e.where]
            for binder, name in zip(binders, names, strict=True):
                parts = [renamed(p, binder.index, name) for p in parts]
            bound = tuple(Binder(n, b.extent) for n, b in zip(names, binders, strict=True))
            made = Reduce(e.monoid, bound, e.where, e.body, e.kind)
            return rebuilt(made, tuple(_distinct(p, ranges) for p in parts))
        case Ranked(binder=binder):
            name = _name(binder, ranges)
            parts = [e.body] if e.where is None else [e.body, e.where]
            parts = [_distinct(renamed(p, binder.index, name), ranges) for p in parts]
            ranked = Ranked(e.n, e.largest, e.part, Binder(name, binder.extent), e.where, e.body, e.rank, e.kind)
            return rebuilt(ranked, tuple(parts))
        case _:
            return rebuilt(e, tuple(_distinct(c, ranges) for c in children(e))) if children(e) else e


def _name(binder: Binder, ranges: dict[str, Extent]) -> str:
    name, number = binder.index, 0
    while ranges.setdefault(name, binder.extent) != binder.extent:
        number += 1
        name = f"{binder.index}_{number}"
    return name
