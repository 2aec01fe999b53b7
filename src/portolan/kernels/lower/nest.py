"""A kernel and a schedule, as loops: tasks, tiles, and what is stored at the end of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from portolan.kernels.ir import (
    Array,
    Do,
    Lit,
    Loops,
    Nest,
    Ref,
    Variant,
    Write,
    X,
    add,
    ceil_div,
    least,
    mul,
    product,
    sub,
)
from portolan.kernels.lower import inner
from portolan.kernels.lower.elements import both, flag, splat
from portolan.kernels.lower.emitter import At, Emitter, Handler, size_name
from portolan.kernels.lower.guard import kept
from portolan.kernels.lower.kept import shared
from portolan.kernels.lower.loops import reduce
from portolan.kernels.lower.memory import load
from portolan.kernels.lower.ranked import ranked
from portolan.kernels.lower.scans import scan
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.lower.tables import RowTable, fill, tabled
from portolan.kernels.tree import Expr, Extent, Load, Program, Ranked, Reduce, Scan, Tensor, free, walk

HANDLERS: Mapping[type, Handler] = {Load: load, Reduce: reduce, Ranked: ranked, Scan: scan}
TASK = "task"
#: What offsets of 32 bits in tables have to be below.
_MOST = 2**31


@dataclass(frozen=True)
class Group:
    """Results with the same axes, made in one nest."""

    outputs: tuple[Tensor, ...]
    values: tuple[Expr, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes, in the order of the first result."""
        return tuple(str(a) for a in self.outputs[0].axes)

    @property
    def ranks(self) -> dict[str, int]:
        """Axes that rankings bring, with their sizes."""
        return {e.rank: e.n for v in self.values for e in walk(v) if isinstance(e, Ranked)}

    @property
    def scan_axis(self) -> str | None:
        """The axis that a scan runs along."""
        return next((e.axis for v in self.values for e in walk(v) if isinstance(e, Scan)), None)


def groups(program: Program) -> list[Group]:
    """The results of a kernel, those with the same axes together."""
    found: dict[tuple[Extent, ...], list[tuple[Tensor, Expr]]] = {}
    for tensor, value in zip(program.outputs, program.values, strict=True):
        ranges: dict[str, Extent] = {str(a): a for a in tensor.axes}
        ranges |= {e.rank: e.n for e in walk(value) if isinstance(e, Ranked)}
        found.setdefault(tensor.axes, []).append((tensor, kept(program, value, ranges)))
    return [Group(tuple(t for t, _ in pairs), tuple(v for _, v in pairs)) for pairs in found.values()]


def lower(program: Program, schedules: Sequence[Schedule]) -> Loops:
    """The loops of a kernel, one schedule for each group of results.

    Each nest also holds plain variants, for sizes below a tile.
    """
    from portolan.kernels.lower.shared import shared_variant
    from portolan.kernels.lower.stages import staged_group

    nests = []
    for group, schedule in zip(groups(program), schedules, strict=True):
        ways = dict.fromkeys((schedule, schedule.plain(schedule.lanes), schedule.plain(1)))
        make = staged_group if program.stages else _variant
        made = ((shared_variant if way.shared else make)(program, group, way) for way in ways)
        variants = [v for v in made if v is not None]
        last = next((n for n, v in enumerate(variants) if v.when is None), len(variants))
        nests.append(Nest(tuple(variants[: last + 1])))
    return Loops(
        program.name,
        tuple(size_name(s) for s in program.symbols),
        tuple(_array(t) for t in program.inputs),
        tuple(_array(t, groups(program)) for t in program.outputs),
        tuple(nests),
        max(s.lanes for s in schedules),
    )


def _array(tensor: Tensor, made: Sequence[Group] = ()) -> Array:
    ranks = {k: v for g in made for k, v in g.ranks.items()}
    axes = (ranks.get(str(a), a) for a in tensor.axes)
    return Array(tensor.name, tensor.dtype, tuple(size_name(a) if isinstance(a, str) else a for a in axes))


def _variant(program: Program, group: Group, schedule: Schedule) -> Variant | None:
    """One way through the nest; None when its tile is larger than a size that is a number."""
    out = Emitter(program, schedule, HANDLERS)
    out.roots = group.values
    out.scan_axis = group.scan_axis
    ranks = group.ranks
    out.extents |= {a: ranks.get(a, a) for a in group.axes}
    inside = {schedule.rows, group.scan_axis, *ranks}
    tasks = decode(out, [a for a in group.axes if a not in inside and a != schedule.vector], schedule)
    with ExitStack() as loops:
        if schedule.rows is not None:
            step = schedule.step
            var = loops.enter_context(out.loop("r", *tasks.rows, step, binds=[schedule.rows], note="rows"))
            rows = out.size(out.extents[schedule.rows])
            out.env[schedule.rows] = out.let(least(var, sub(rows, Lit(step))), schedule.rows)
            out.needs.append((rows, step))
        if group.scan_axis is not None:
            size = out.size(out.extents[group.scan_axis])
            loops.enter_context(out.loop(group.scan_axis, Lit(0), size, binds=[group.scan_axis], note="scan"))
        prepare(out, group)
        if schedule.table == "rows":
            _tabled(out, group, loops, sub(var, out.env[str(schedule.rows)]))
        elif schedule.table == "inner":
            out.tables = {e: inner.filled(out, e) for e in tabled(out, group.values)}
        if schedule.within and schedule.vector is not None:
            shared(out, group.values)
            width, size = schedule.width, out.size(schedule.vector)
            var = loops.enter_context(out.loop("y", *tasks.columns, width, binds=[schedule.vector], note="columns"))
            out.env[schedule.vector] = out.let(least(var, sub(size, Lit(width))), schedule.vector)
        for rank, n in ranks.items():
            loops.enter_context(out.loop(rank, Lit(0), Lit(n), binds=[rank], extent=n))
        store(out, group)
    return finished(out, tasks.count)


def _tabled(out: Emitter, group: Group, loops: ExitStack, done: X) -> None:
    """Makes the tables for the tile, and opens the loop over those of its rows that are not `done`."""
    rows, tile, lanes = str(out.schedule.rows), out.schedule.tile_rows, out.schedule.lanes
    first = out.env[rows]
    made = fill(out, group.values, first)
    begun = sub(done, Do("mod", (done, Lit(tile)), done.type))
    row = loops.enter_context(out.loop("row", begun, Lit(lanes), tile, binds=[rows], extent=rows, note="row"))
    out.env[rows] = add(first, row)
    ahead = out.let(least(add(row, Lit(tile)), Lit(lanes - tile)), "ahead") if out.schedule.ahead else None
    out.tables = {e: RowTable(held, row, ahead) for e, held in made.items()}


@dataclass(frozen=True)
class Tasks:
    """How the work is divided: the number of tasks, and from where to where the rows and columns of one go."""

    count: X
    rows: tuple[X, X]
    columns: tuple[X, X]


def decode(out: Emitter, outer: Sequence[str], schedule: Schedule) -> Tasks:
    """Names the task's outer indices and, where a task is one tile of columns, the first of them."""
    scope = out.stack[0]
    rest: X = Ref(TASK)
    total: X = Lit(1)

    def part(count: X, stem: str) -> X:
        nonlocal rest, total
        found = out.let(Do("mod", (rest, count), rest.type), stem)
        rest = out.let(Do("floordiv", (rest, count), rest.type), "rest")
        total = mul(total, count)
        return found

    def span(axis: str | None, chunked: bool) -> tuple[X, X]:
        size = Lit(0) if axis is None else out.size(axis)
        if not schedule.chunk or not chunked:
            return Lit(0), size
        chunk = part(ceil_div(size, schedule.chunk), "chunk")
        begun = out.let(mul(chunk, Lit(schedule.chunk)), "begun")
        return begun, out.let(least(size, add(begun, Lit(schedule.chunk))), "end")

    rows = span(schedule.rows, schedule.rows is not None)
    columns = span(schedule.vector, schedule.within and schedule.rows is None)
    tiled = schedule.vector is not None and not schedule.within
    if schedule.vector is not None:
        width, size = schedule.width, out.size(schedule.vector)
        out.needs.append((size, width))
    if schedule.vector is not None and tiled:
        panel = part(ceil_div(size, width), "panel")
        out.env[schedule.vector] = out.let(least(mul(panel, Lit(width)), sub(size, Lit(width))), schedule.vector)
    for axis in reversed(outer):
        out.env[axis] = part(out.size(axis), axis)
    scope.binds = frozenset({*outer, *([schedule.vector] if schedule.vector and tiled else [])})
    return Tasks(total, rows, columns)


def prepare(out: Emitter, group: Group) -> None:
    """Writes rankings before the loop over their ranks is opened."""
    for value in group.values:
        for e in walk(value):
            if isinstance(e, Ranked):
                out.env[e.rank] = Lit(0)
                out.value(e, At())
                del out.env[e.rank]
                out.stack[-1].known = {k: v for k, v in out.stack[-1].known.items() if not _of(k, e)}


def _of(key: object, e: Expr) -> bool:
    return isinstance(key, tuple) and bool(key) and key[0] == e


def store(out: Emitter, group: Group) -> None:
    """Stores the tile of every result."""
    c = out.context
    values = [
        (tensor, At(row, vector), out.value(value, At(row, vector)))
        for tensor, value in zip(group.outputs, group.values, strict=True)
        for row in range(c.tile_rows if c.rows is not None else 1)
        for vector in range(c.vectors if c.vector is not None else 1)
    ]
    for tensor, at, value in values:
        offset: X = Lit(0)
        stride: X = Lit(1)
        for dim, axis in enumerate(tensor.axes):
            step = product([out.size(out.extents[str(a)]) for a in tensor.axes[dim + 1 :]])
            offset = add(offset, mul(out.place(str(axis), at), step))
            if axis == c.vector:
                stride = step
        wide = c.vector is not None and c.lanes > 1
        lanes = splat(value, replace(value.type, lanes=c.lanes)) if wide else value
        out.write(Write(tensor.name, tensor.dtype, offset, lanes, None if stride == Lit(1) else stride))


def finished(out: Emitter, tasks: X) -> Variant | None:
    """The variant, with the least sizes that it needs."""
    when: X | None = None
    for size, least_size in dict.fromkeys(out.needs):
        if isinstance(size, Lit):
            if size.value < least_size:
                return None
        elif least_size > 1:
            when = both(when, flag("ge", size, Lit(least_size)))
    for size in dict.fromkeys(out.small):
        when = both(when, flag("lt", size, Lit(_MOST)))
    return Variant(when, tasks, tuple(out.stack[0].body))


__all__ = ["HANDLERS", "Group", "decode", "finished", "free", "groups", "lower", "store"]
