"""Reads: contiguous, strided, packed or gathered, by how the vector axis occurs in the indices."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

from portolan.kernels.bounds import affine
from portolan.kernels.ir import (
    BASES,
    Lit,
    Read,
    Ref,
    Turn,
    Type,
    Write,
    X,
    add,
    ceil_div,
    least,
    most,
    mul,
    product,
)
from portolan.kernels.lower.elements import KEPT
from portolan.kernels.lower.emitter import At, Emitter
from portolan.kernels.tree import Expr, Ext, Idx, Load, Num, Op, Tensor, free


def clamp(place: X, size: X) -> X:
    """`place` from 0 to `size - 1`."""
    return most(least(place, add(size, Lit(-1))), Lit(0))


def stride(out: Emitter, tensor: Tensor, dim: int) -> X:
    """Elements from one place of a dimension to the next; arrays are contiguous."""
    return product([out.size(a) for a in tensor.axes[dim + 1 :]])


def load(out: Emitter, e: Expr, at: At) -> X:
    """One element, or a vector of them."""
    assert isinstance(e, Load)
    if e.tensor in out.resident:
        return out.resident[e.tensor](out, e, at)
    tensor, v, lanes = out.program.tensor(e.tensor), out.context.vector, out.context.lanes
    base = BASES[tensor.dtype]
    wide = [d for d, part in enumerate(e.index) if v in free(part)]
    if not wide or lanes == 1:
        return Read(e.tensor, tensor.dtype, _near(out, tensor, e.index, at), Type(base))
    kind = Type(base, lanes)
    if len(wide) == 1:
        dim = wide[0]
        last = dim == len(e.index) - 1
        if isinstance(e.index[dim], Idx) and out.context.partial is None:
            if (panel := _panel(out, e, dim, at)) is not None:
                return panel
            offset = _near(out, tensor, e.index, at)
            if last:
                return Read(e.tensor, tensor.dtype, offset, kind)
            return Read(e.tensor, tensor.dtype, offset, kind, "strided", (stride(out, tensor, dim),))
        if last and (found := _first_lane(out, e.index[dim], at)) is not None:
            first, mode = found
            row = _near(out, tensor, (*e.index[:-1],), at)
            return Read(e.tensor, tensor.dtype, row, kind, mode, (first, out.size(tensor.axes[dim])))
    return _gathered(out, e, tensor, wide, at, kind)


def _first_lane(out: Emitter, part: Expr, at: At) -> tuple[X, str] | None:
    """The first lane's place of an index that grows or falls by one from lane to lane, and which; None for others."""
    if isinstance(part, Op) and part.name == KEPT:
        part = part.args[0]
    form = affine(part)
    step = 0 if form is None else form.indices.get(str(out.context.vector))
    if form is None or step not in (1, -1):
        return None
    return affine_place(out, form.constant, dict(form.terms), at), "guarded" if step == 1 else "reversed"


def affine_place(out: Emitter, constant: int, terms: dict[str, int], at: At) -> X:
    """An affine form at a place of the tile (the first lane of a vector)."""
    result: X = Lit(constant)
    for name, factor in terms.items():
        place = out.size(name[1:]) if name.startswith("#") else out.place(name, at)
        result = add(result, mul(place, Lit(factor)))
    return result


def place_of(out: Emitter, part: Expr, at: At) -> X:
    """An index as the place of its first lane."""
    if isinstance(part, Op) and (found := out.known(out.key(part, at))) is not None and found.type.lanes == 1:
        return found
    if isinstance(part, Op) and part.name == KEPT:
        return clamp(place_of(out, part.args[0], at), out.value(part.args[1], at))
    if isinstance(part, Idx):
        return out.place(part.name, at)
    form = affine(part)
    if form is not None:
        return affine_place(out, form.constant, dict(form.terms), at)
    return out.value(part, at)


def offset_key(out: Emitter, part: Expr, step: X, at: At) -> object:
    """Under what it is remembered how far an index reaches, with steps of so many elements."""
    return ("offset", *out.key(part, at), step)


def _reached(out: Emitter, part: Expr, step: X, at: At) -> X:
    """How far an index reaches; what a table holds is multiplied already."""
    found = out.known(offset_key(out, part, step, at))
    return mul(place_of(out, part, at), step) if found is None else found


def _offset(out: Emitter, tensor: Tensor, index: tuple[Expr, ...], at: At) -> X:
    result: X = Lit(0)
    for dim, part in enumerate(index):
        result = add(result, mul(place_of(out, part, at), stride(out, tensor, dim)))
    return result


@dataclass(frozen=True)
class _Term:
    """What one index adds to an offset: by how much, in which loop it is known, and whether the vector is in it."""

    part: Expr
    value: X
    level: int
    wide: bool


def _near(out: Emitter, tensor: Tensor, index: tuple[Expr, ...], at: At) -> X:
    """`_offset`, with the sum of what outer loops know under a name, and what is a number at the end."""
    c = out.context
    terms: list[_Term] = []
    number = 0
    for dim, part in enumerate(index):
        step = stride(out, tensor, dim)
        apart = part == Idx(str(c.vector)) and isinstance(step, Lit)
        number += at.vector * c.lanes * int(step.value) if apart and isinstance(step, Lit) else 0
        value = _reached(out, part, step, replace(at, vector=0) if apart else at)
        terms.append(_Term(part, value, out.level(free(part)), c.vector in free(part) and not apart))
    deep = max((t.level for t in terms), default=0)
    offset = _named(out, tensor, [t for t in terms if t.level < deep], at)
    for term in terms:
        offset = add(offset, term.value) if term.level == deep else offset
    return add(offset, Lit(number))


def _named(out: Emitter, tensor: Tensor, terms: list[_Term], at: At) -> X:
    """The sum of terms under a name, in the outermost loop that knows them."""
    total: X = Lit(0)
    for term in terms:
        total = add(total, term.value)
    c, names = out.context, {n for t in terms for n in free(t.part)}
    row = at.row if c.rows in names else 0
    vector = (c.vector, at.vector if any(t.wide for t in terms) else 0) if c.vector in names else None
    key = ("at", tensor, tuple(t.part for t in terms), row, vector)
    found = out.known(key)
    if found is None:
        with out.at_level(out.level(names)):
            found = out.let(total, "at")
            out.keep(key, found)
    return found


def _gathered(out: Emitter, e: Load, tensor: Tensor, wide: list[int], at: At, kind: Type) -> Read:
    rest: X = Lit(0)
    pairs: list[X] = []
    for dim, part in enumerate(e.index):
        if dim not in wide:
            rest = add(rest, _reached(out, part, stride(out, tensor, dim), at))
            continue
        if not (isinstance(part, Op) and part.name == KEPT) and out.context.partial is not None:
            part = Op(KEPT, (part, _extent(tensor, dim)), "i")
        pairs.append(out.value(part, at))
        pairs.append(stride(out, tensor, dim))
    return Read(e.tensor, tensor.dtype, rest, kind, "gather", tuple(pairs))


def _extent(tensor: Tensor, dim: int) -> Expr:
    size = tensor.axes[dim]
    return Num(size, "i") if isinstance(size, int) else Ext(size)


# Panels ------------------------------------------------------------


def _panel(out: Emitter, e: Load, dim: int, at: At) -> X | None:
    """The element from a packed copy, where packing pays: `[panel][inner indices][lanes]`."""
    v = str(out.context.vector)
    shared = not (free(e) & {out.schedule.rows}) and out.context.rows is not None
    scanned = out.scan_axis is not None and out.scan_axis not in free(e)
    last = dim == len(e.index) - 1
    if not (shared or scanned) or (last and not (out.schedule.pack and shared)):
        return None
    inner = []
    for number, part in enumerate(e.index):
        deep = [n for n in free(part) if n != v and out.level([n]) > out.tile_level]
        if number != dim and deep:
            if not isinstance(part, Idx):
                return None
            inner.append(part.name)
    if len(set(inner)) != len(inner) or (last and not inner):
        return None
    if out.context.rows is not None and out.context.rows in free(e):
        return None
    whole = v != out.schedule.vector
    outer = free(e) - {v, *inner}
    level = out.level(outer) if whole else out.level({*outer, v})
    if level > out.tile_level:
        return None
    width = out.context.lanes * out.context.vectors
    key = ("panel", e, whole, width)
    found = out.known(key)
    if found is None:
        with out.at_level(level):
            found = _packed(out, e, dim, inner, whole, width)
            out.keep(key, found)
    assert isinstance(found, Ref)
    place: X = Lit(0)
    for name in inner:
        place = add(mul(place, out.size(out.extents[name])), out.env[name])
    if whole:
        count = product([out.size(out.extents[n]) for n in inner])
        place = add(mul(ceil_div(out.env[v], width), count), place)
    offset = add(mul(place, Lit(width)), Lit(at.vector * out.context.lanes))
    kind = BASES[out.program.tensor(e.tensor).dtype]
    return Read(found.name, {"f": "f32", "i": "i32"}[kind], offset, Type(kind, out.context.lanes))


def _packed(out: Emitter, e: Load, dim: int, inner: list[str], whole: bool, width: int) -> Ref:
    """Writes the loops that fill a panel; each panel holds `width` neighbours of the vector axis."""
    v, tensor = str(out.context.vector), out.program.tensor(e.tensor)
    kind = BASES[tensor.dtype]
    size = out.size(tensor.axes[dim])
    counts = [out.size(out.extents[n]) for n in inner]
    panels: X = ceil_div(size, width) if whole else Lit(1)
    name = out.alloc(f"pack_{e.tensor}", kind, product([panels, *counts, Lit(width)]), "workspace")
    held = {"f": "f32", "i": "i32"}[kind]
    extents = dict(out.extents)
    with ExitStack() as loops, out.vectors_along(None, 1, 1):
        place: X = Lit(0)
        start = out.env.get(v)
        if whole:
            panel = loops.enter_context(out.loop("p", Lit(0), panels, note=f"pack {e.tensor}"))
            start = out.let(least(mul(panel, Lit(width)), add(size, Lit(-width))), "start")
            place = panel
        if _turnable(e, tensor, dim, inner):
            before, width_ = dict(out.env), Lit(width)
            out.env |= {v: start if start is not None else Lit(0), inner[0]: Lit(0)}
            offset, row = _offset(out, tensor, e.index, At()), stride(out, tensor, dim)
            out.env = before
            to = mul(place, mul(counts[0], width_))
            out.write(Turn(name, to, width_, e.tensor, offset, row, width_, counts[0]))
            if whole:
                out.needs.append((size, width))
            return Ref(name)
        for index, count in zip(inner, counts, strict=True):
            var = loops.enter_context(
                out.loop(index, Lit(0), count, binds=[index], extent=extents[index], note=f"pack {e.tensor}")
            )
            place = add(mul(place, count), var)
        lane = loops.enter_context(out.loop("y", Lit(0), Lit(width), binds=[v]))
        out.env[v] = add(start, lane) if start is not None else lane
        offset = _offset(out, tensor, e.index, At())
        value = Read(e.tensor, tensor.dtype, offset, Type(kind))
        out.write(Write(name, held, add(mul(place, Lit(width)), lane), value))
    if whole:
        out.needs.append((size, width))
    return Ref(name)


def _turnable(e: Load, tensor: Tensor, dim: int, inner: list[str]) -> bool:
    """Whether a panel is rows of the array that become columns."""
    return tensor.dtype == "f32" and dim < len(e.index) - 1 and len(inner) == 1 and e.index[-1] == Idx(inner[0])
