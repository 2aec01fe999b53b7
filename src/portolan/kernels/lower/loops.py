"""Reductions as loops. Those over the same index side by side share one loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from portolan.kernels.arrays import dtype_of
from portolan.kernels.bounds import affine
from portolan.kernels.ir import PLACE, Do, Fetch, If, Lit, Read, Ref, X, sub
from portolan.kernels.lower import kept
from portolan.kernels.lower.elements import both, compare, flag, splat
from portolan.kernels.lower.emitter import At, Emitter
from portolan.kernels.lower.limits import conditions, limits, mask_of, mentions
from portolan.kernels.lower.reductions import LANEWISE, across, begin, finish, take
from portolan.kernels.lower.staged import parts_to_stage, staged
from portolan.kernels.lower.tables import over
from portolan.kernels.tree import Binder, Expr, Idx, Load, Ranked, Reduce, Scan, free, renamed, walk

#: Bytes that memory moves at once.
_LINE = 64


def reduce(out: Emitter, e: Expr, at: At) -> X:
    """The result of a reduction at a place of the tile; its loop is written for the whole tile at once."""
    assert isinstance(e, Reduce)
    group = _together(out, e)
    if _staging(out, group):
        staged(out, group)
    elif (axis := _lane_axis(out, group)) is not None:
        _along_lanes(out, group, axis)
    else:
        _loops(out, group)
    found = out.known(out.key(e, at))
    if found is None:
        raise LookupError(f"the reduction {e.monoid} was not written")
    return found


def _together(out: Emitter, first: Reduce) -> list[Reduce]:
    """`first`, and the reductions that can share its loop."""
    level, below = out.level(free(first)), set(walk(first))
    group = [first]
    for root in out.roots:
        for e in walk(root):
            if (
                isinstance(e, Reduce)
                and (e.binders, e.where) == (first.binders, first.where)
                and first not in out.tables
                and e not in group
                and e not in below
                and out.level(free(e)) == level
                and not (free(e) - set(out.env))
                and not any(other in set(walk(e)) for other in group)
                and out.known(out.key(e, At())) is None
            ):
                group.append(e)
                below |= set(walk(e))
    return group


def _staging(out: Emitter, group: list[Reduce]) -> bool:
    c = out.context
    if group[0] in out.tables:
        return False
    return c.lanes > 1 and c.vector == out.schedule.vector and bool(parts_to_stage(out, group))


def _lane_axis(out: Emitter, group: list[Reduce]) -> str | None:
    """The index along which the lanes of a vector can run, for reductions that do not depend on the vector axis."""
    c, lanes = out.context, out.schedule.lanes
    if lanes == 1 or any(mentions(e, c.vector) for e in group):
        return None
    index = group[0].binders[-1].index
    if any(e.monoid not in LANEWISE for e in group):
        return None
    for e in group:
        if any(isinstance(x, (Scan, Ranked)) for x in walk(e)):
            return None
        loads = [x for part in e.body for x in walk(part) if isinstance(x, Load) and index in free(x)]
        if not loads or not all(_contiguous(x, index) for x in loads):
            return None
    return index


def _contiguous(load: Load, index: str) -> bool:
    form = affine(load.index[-1])
    inner = any(index in free(part) for part in load.index[:-1])
    return not inner and form is not None and form.indices.get(index) == 1


def _loops(out: Emitter, group: list[Reduce]) -> None:
    """One loop for each index, the elements of the whole tile in the innermost."""
    first = group[0]
    accs = {(e, r, v): begin(out, e, out.type_of(e)) for e in group for r in out.rows_of(e) for v in out.vectors_of(e)}
    scans = [x for e in group for part in e.body for x in walk(part) if isinstance(x, Scan)]
    table = out.tables.get(first)

    def element(rest: tuple[Expr, ...]) -> None:
        if table is None:
            _fetch(out, group)
            elements(out, group, accs, rest)
            return
        rest = tuple(c for c in rest if c not in table.asked)
        for row in out.rows_of(first):
            table.fetch(out, first, row)
            counts = table.read(out, first.binders, row)
            with out.branch([b.index for b in first.binders]) as body:
                elements(out, group, accs, rest, rows=range(row, row + 1))
            if counts is None:
                out.stack[-1].body.extend(body)
            else:
                out.write(If(counts, tuple(body)))

    over(out, first.binders, conditions(first.where), element, written_out=not scans)
    for scan in scans:
        out.stack[out.level([scan.axis])].known["scanned", scan] = Lit(1)
    results(out, group, accs)


def _fetch(out: Emitter, group: list[Reduce]) -> None:
    """Asks for what the next tile of rows will read along the innermost index, once for each line of the cache.

    Behind the last tile that is memory which nobody reads: asking changes nothing.
    """
    rows, tile, index = out.context.rows, out.context.tile_rows, group[0].binders[-1].index
    if not out.schedule.ahead or rows is None or not isinstance(out.env[index], Ref):
        return
    for load in streamed(group, index, rows, out.context.vector):
        tensor = out.program.tensor(load.tensor)
        with out.branch([index]) as body:
            for row in range(tile, 2 * tile):
                found = out.handlers[Load](out, load, At(row))
                if isinstance(found, Read) and found.mode == "plain":
                    out.write(Fetch(found.array, found.offset))
        place = Do("mod", (out.env[index], Lit(_LINE // dtype_of(tensor).itemsize)), PLACE)
        out.write(If(flag("eq", place, Lit(0)), tuple(body)))


def streamed(group: Sequence[Reduce], index: str, rows: str, vector: str | None) -> list[Load]:
    """What rows read one element after another along `index`, and columns share."""
    loads = dict.fromkeys(x for e in group for part in e.body for x in walk(part) if isinstance(x, Load))
    return [x for x in loads if x.index[-1] == Idx(index) and rows in free(x) and vector not in free(x)]


Accs = dict[tuple[Reduce, int, int], tuple[Ref, ...]]


def elements(
    out: Emitter,
    group: list[Reduce],
    accs: Accs,
    rest: tuple[Expr, ...],
    more: X | None = None,
    rows: range | None = None,
) -> None:
    """Takes the element at the loops' indices, for the whole tile or some of its rows."""
    for e in group:
        where = out.value_of_index(e.binders[-1].index)
        for row in rows or out.rows_of(e):
            for vector in out.vectors_of(e):
                at = At(row, vector)
                mask = mask_of(out, rest, at)
                if more is not None:
                    mask = both(mask, more)
                values = [out.value(part, at) for part in e.body]
                take(out, e, accs[e, row, vector], values, mask, where)


def results(out: Emitter, group: list[Reduce], accs: Accs) -> None:
    """Names what the accumulators amount to."""
    for e in group:
        for row in out.rows_of(e):
            for vector in out.vectors_of(e):
                out.keep(out.key(e, At(row, vector)), finish(out, e, accs[e, row, vector]))


def _along_lanes(out: Emitter, group: list[Reduce], axis: str) -> None:
    """Each lane takes every so many elements; the lanes are joined at the end. A last part vector is masked."""
    first, lanes = group[0], out.schedule.lanes
    *outer, last = first.binders
    before = out.context
    accs: Accs = {}
    with out.vectors_along(axis, lanes, 1):
        for e in group:
            for row in range(before.tile_rows if before.rows in free(e) else 1):
                base = out.type_of(e.body[0] if e.kind != "b" else e).base
                accs[e, row, 0] = begin(out, e, type(out.type_of(e))(base, lanes))
    rest = conditions(first.where)
    with ExitStack() as opened:
        for number, binder in enumerate(outer):
            for later in first.binders[number:]:
                out.extents[later.index] = later.extent
            bounds = limits(out, binder, rest, [b.index for b in first.binders[number + 1 :]])
            rest = bounds.rest
            opened.enter_context(
                out.loop(binder.index, bounds.low, bounds.high, binds=[binder.index], extent=binder.extent)
            )
        held = kept.rows(out, kept.wanted(out, group, axis), last.extent)
        _lanes(out, group, accs, last, rest, held)
    for part, buffer in held.items():
        out.kept[renamed(part, axis, str(out.schedule.vector))] = buffer
    joined = {key: across(out, key[0], accs[key]) for key in accs}
    for e in group:
        for row in out.rows_of(e):
            out.keep(out.key(e, At(row, 0)), finish(out, e, joined[e, row, 0]))


def _lanes(
    out: Emitter,
    group: list[Reduce],
    accs: Accs,
    last: Binder,
    rest: tuple[Expr, ...],
    held: dict[Expr, kept.Row],
) -> None:
    lanes, rows = out.schedule.lanes, out.context.tile_rows
    out.extents[last.index] = last.extent
    bounds = limits(out, last, rest, ())
    whole = out.let(sub(bounds.high, Lit(lanes - 1)), "whole")
    with (
        out.vectors_along(last.index, lanes, 1),
        out.loop(last.index, bounds.low, whole, lanes, binds=[last.index], extent=last.extent),
    ):
        elements(out, group, accs, bounds.rest)
        kept.written(out, held, rows)
    length = sub(bounds.high, bounds.low)
    begun = out.let(sub(bounds.high, Do("mod", (length, Lit(lanes)), length.type)), "begun")
    begun = out.let(Do("maximum", (begun, bounds.low), begun.type), "begun")
    left = sub(bounds.high, begun)
    with (
        out.vectors_along(last.index, lanes, 1, partial=left),
        out.loop(last.index, begun, bounds.high, lanes, binds=[last.index], extent=last.extent),
    ):
        place = out.value_of_index(last.index)
        more = out.let(compare("lt", place, splat(bounds.high, place.type)), "inside")
        elements(out, group, accs, bounds.rest, more)
        kept.written(out, held, rows)
