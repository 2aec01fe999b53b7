"""Predicates as loop bounds: what can be said of an index before the loop need not be asked inside of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from portolan.kernels.bounds import Affine, facts
from portolan.kernels.ir import Lit, X, add, least, most, mul, sub
from portolan.kernels.lower.elements import both
from portolan.kernels.lower.emitter import At, Emitter
from portolan.kernels.tree import Binder, Expr, Op, conjuncts, free


@dataclass(frozen=True)
class Limits:
    """Bounds of one loop: outside `low` to `high` no element of the tile counts.

    Attributes:
        rest: conditions that still have to be asked of each element.
    """

    low: X
    high: X
    rest: tuple[Expr, ...]


def limits(out: Emitter, binder: Binder, where: Sequence[Expr], later: Sequence[str]) -> Limits:
    """Bounds for `binder` from the conditions in `where`; `later` are the indices of loops still to be opened."""
    low: X = Lit(0)
    high: X = out.size(binder.extent)
    rest = []
    for condition in where:
        forms = facts([condition])
        usable = [f for f in forms if abs(f.indices.get(binder.index, 0)) == 1]
        if any(set(f.indices) - set(out.env) - {binder.index} - set(later) for f in usable):
            usable = []
        exact = bool(usable) and not (isinstance(condition, Op) and condition.name == "eq" and len(usable) < 2)
        for form in usable:
            others = Affine.of(form.constant, {k: v for k, v in form.terms if k != binder.index})
            exact = exact and not _varies(out, others, later)
            if form.indices[binder.index] > 0:
                low = most(low, _extreme(out, others.times(-1), -1, later))
            else:
                high = least(high, add(_extreme(out, others, 1, later), Lit(1)))
        if not exact:
            rest.append(condition)
    return Limits(out.let(low, "low"), out.let(high, "high"), tuple(rest))


def certain(out: Emitter, binder: Binder, where: Sequence[Expr]) -> tuple[X, X] | None:
    """From where to where (exclusive) all conditions hold for every element of the tile; None where it cannot be said.

    The range may be empty, or end before it begins.
    """
    low: X = Lit(0)
    high: X = out.size(binder.extent)
    for condition in where:
        forms = facts([condition])
        parts = 2 if isinstance(condition, Op) and condition.name == "eq" else 1
        if len(forms) < parts or any(abs(f.indices.get(binder.index, 0)) != 1 for f in forms):
            return None
        if any(set(f.indices) - set(out.env) - {binder.index} for f in forms):
            return None
        for form in forms:
            others = Affine.of(form.constant, {k: v for k, v in form.terms if k != binder.index})
            if form.indices[binder.index] > 0:
                low = most(low, _extreme(out, others.times(-1), 1, ()))
            else:
                high = least(high, add(_extreme(out, others, -1, ()), Lit(1)))
    return out.let(low, "sure"), out.let(high, "unsure")


def _varies(out: Emitter, form: Affine, later: Sequence[str]) -> bool:
    c = out.context
    wide = {c.vector if c.lanes * c.vectors > 1 else None, c.rows if c.tile_rows > 1 else None, *later}
    return bool(set(form.indices) & wide)


def _extreme(out: Emitter, form: Affine, sign: int, later: Sequence[str]) -> X:
    """The largest (sign 1) or smallest (-1) value of an affine form over the tile."""
    c = out.context
    result: X = Lit(form.constant)
    for name, factor in form.terms:
        if name.startswith("#"):
            result = add(result, mul(out.size(name[1:]), Lit(factor)))
            continue
        first: X = Lit(0) if name in later else out.env[name]
        span: X = Lit(0)
        if name in later:
            span = sub(out.size(out.extents[name]), Lit(1))
        elif name == c.vector:
            span = Lit(c.lanes * c.vectors - 1)
        elif name == c.rows:
            span = Lit(c.tile_rows - 1)
        result = add(result, mul(first, Lit(factor)))
        if (factor > 0) == (sign > 0):
            result = add(result, mul(span, Lit(factor)))
    return result


def mask_of(out: Emitter, conditions: Sequence[Expr], at: At) -> X | None:
    """Whether all conditions hold for an element; None when there is nothing to ask."""
    mask: X | None = None
    for condition in conditions:
        mask = both(mask, out.value(condition, at))
    return None if mask is None else out.let(mask, "mask")


def conditions(where: Expr | None) -> tuple[Expr, ...]:
    """The parts of a predicate."""
    return conjuncts(where)


def mentions(e: Expr, *names: str | None) -> bool:
    """Whether `e` depends on one of the indices."""
    return bool(free(e) & set(names))
