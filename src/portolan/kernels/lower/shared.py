"""Contractions by groups of threads that share memory: a slice of both operands is read once for the whole tile.

Each thread of a group makes a small square of the tile in registers. Between slices all wait for each other, so nothing
but the extent of the reduced index may decide how often the loop runs, and no thread may end before the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from portolan.kernels.ir import (
    PLACE,
    Barrier,
    Do,
    Lit,
    Read,
    Ref,
    Type,
    Variant,
    Write,
    X,
    add,
    ceil_div,
    least,
    mul,
    sub,
)
from portolan.kernels.lower.emitter import At, Emitter
from portolan.kernels.lower.loops import elements, results
from portolan.kernels.lower.memory import load
from portolan.kernels.lower.nest import HANDLERS, TASK, Group, finished, store
from portolan.kernels.lower.reductions import begin
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.tree import Expr, Idx, Load, Program, Reduce, children, free, rebuilt, walk

#: Threads of a group, on every device; and how much of the reduced index a slice holds.
THREADS, SLICE = 64, 16
_HELD = {"f": "f32", "i": "i32"}


def contraction(group: Group) -> tuple[Reduce, list[Load]] | None:
    """The one reduction of a group's values and the reads that tiles share; None where sharing brings nothing."""
    found = {e for v in group.values for e in walk(v) if isinstance(e, Reduce)}
    if len(found) != 1 or len(group.axes) < 2 or group.ranks or group.scan_axis:
        return None
    (reduce,) = found
    row, column = group.axes[-2:]
    if len(reduce.binders) != 1 or reduce.where is not None or not {row, column} <= free(reduce):
        return None
    index = reduce.binders[0].index
    reads = [e for part in reduce.body for e in walk(part) if isinstance(e, Load)]
    shared = [e for e in dict.fromkeys(reads) if index in free(e) and len({row, column} & free(e)) == 1]
    plain = all(isinstance(i, Idx) for e in shared for i in e.index)
    sides = {axis for e in shared for axis in (row, column) if axis in free(e)}
    return (reduce, shared) if plain and len(sides) == 2 else None


def shared_variant(program: Program, group: Group, schedule: Schedule) -> Variant | None:
    """A tile of `tile_rows` x `tile_vectors` for each group of threads, a square of `shared` for each thread."""
    found = contraction(group)
    assert found is not None
    return _Tile(program, group, schedule, *found).variant()


class _Tile:
    """The writing of one tile."""

    def __init__(
        self, program: Program, group: Group, schedule: Schedule, reduce: Reduce, shared: Sequence[Load]
    ) -> None:
        self.group, self.schedule, self.reduce, self.shared = group, schedule, reduce, shared
        side = schedule.shared
        self.out = Emitter(program, replace(schedule, tile_rows=side, tile_vectors=side), HANDLERS)
        self.row, self.column = group.axes[-2:]
        self.wide = {self.row: schedule.tile_rows, self.column: schedule.tile_vectors}
        self.first: dict[str, X] = {}
        self.own: dict[str, X] = {}

    def variant(self) -> Variant | None:
        """The tile, with the least sizes that it needs."""
        out, e = self.out, self.reduce
        out.extents |= {a: a for a in self.group.axes}
        self.lane = out.let(_split(Ref(TASK), THREADS)[1], "lane")
        tasks = mul(self._placed(), Lit(THREADS))
        tiles = [out.alloc("tile", load.kind, Lit(self._side(load) * SLICE), "shared") for load in self.shared]
        within = Reduce(e.monoid, e.binders, None, tuple(self._renamed(part) for part in e.body), e.kind)
        out.roots = tuple(self._replaced(v, within) for v in self.group.values)
        accs = {
            (within, r, v): begin(out, within, out.type_of(within))
            for r in out.rows_of(within)
            for v in out.vectors_of(within)
        }
        binder = e.binders[0]
        size = out.size(binder.extent)
        with out.loop("slice", Lit(0), size, SLICE, note="slice") as start:
            for held, name in zip(self.shared, tiles, strict=True):
                self._filled(held, name, start, size)
            out.write(Barrier())
            count = out.let(least(Lit(SLICE), sub(size, start)), "count")
            with out.loop("u", Lit(0), count, binds=[binder.index], extent=binder.extent) as u:
                out.env[binder.index] = add(start, u)
                for number, (held, name) in enumerate(zip(self.shared, tiles, strict=True)):
                    out.resident[f"@{number}"] = self._reader(held, name, u)
                elements(out, [within], accs, ())
            out.write(Barrier())
        results(out, [within], accs)
        store(out, Group(self.group.outputs, out.roots))
        variant = finished(out, tasks)
        return None if variant is None else replace(variant, together=THREADS)

    def _placed(self) -> X:
        """Names the group's tile and the thread's square; the number of groups."""
        out, side = self.out, self.schedule.shared
        rest: X = out.let(_split(Ref(TASK), THREADS)[0], "group")
        total: X = Lit(1)
        for axis in reversed(self.group.axes):
            size, wide = out.size(out.extents[axis]), self.wide.get(axis, 1)
            count = ceil_div(size, wide)
            place: X = out.let(Do("mod", (rest, count), PLACE), axis)
            rest = out.let(Do("floordiv", (rest, count), PLACE), "rest")
            total = mul(total, count)
            if wide > 1:
                place = self.first[axis] = out.let(least(mul(place, Lit(wide)), sub(size, Lit(wide))), "first")
                out.needs.append((size, wide))
            out.env[axis] = place
        squares = _split(self.lane, self.wide[self.column] // side)
        for axis, place in zip((self.row, self.column), squares, strict=True):
            self.own[axis] = out.let(mul(place, Lit(side)), "own")
            out.env[axis] = out.let(add(self.first[axis], self.own[axis]), axis)
        out.stack[0].binds = frozenset(self.group.axes)
        return total

    def _axis(self, load: Load) -> str:
        return self.row if self.row in free(load) else self.column

    def _side(self, load: Load) -> int:
        return self.wide[self._axis(load)]

    def _renamed(self, e: Expr) -> Expr:
        if isinstance(e, Load) and e in self.shared:
            return Load(f"@{self.shared.index(e)}", e.index, e.kind)
        return rebuilt(e, tuple(map(self._renamed, children(e))))

    def _replaced(self, e: Expr, within: Reduce) -> Expr:
        return within if e == self.reduce else rebuilt(e, tuple(self._replaced(c, within) for c in children(e)))

    def _filled(self, held: Load, name: str, start: X, size: X) -> None:
        """All threads copy a slice, neighbours what lies side by side; beyond the end the last is read again."""
        out, axis, index = self.out, self._axis(held), self.reduce.binders[0].index
        side = self._side(held)
        before = dict(out.env)
        with out.loop("y", Lit(0), Lit(side * SLICE // THREADS), note="share") as y:
            e = out.let(add(mul(y, Lit(THREADS)), self.lane), "e")
            along = held.index[-1] == Idx(index)
            inner = SLICE if along else side
            slow, fast = (out.let(part, name) for part, name in zip(_split(e, inner), ("slow", "fast"), strict=True))
            deep, place = (fast, slow) if along else (slow, fast)
            out.env[index] = out.let(least(add(start, deep), sub(size, Lit(1))), "deep")
            out.env[axis] = out.let(add(self.first[axis], place), "place")
            with out.vectors_along(None, 1, 1):
                value = load(out, held, At())
            out.write(Write(name, _HELD[held.kind], add(mul(deep, Lit(side)), place), value))
        out.env = before

    def _reader(self, held: Load, name: str, u: X) -> Callable[[Emitter, Expr, At], X]:
        axis, side = self._axis(held), self._side(held)

        def read(out: Emitter, e: Expr, at: At) -> X:
            step = at.row if axis == self.row else at.vector
            place = add(mul(u, Lit(side)), add(self.own[axis], Lit(step)))
            return Read(name, _HELD[held.kind], place, Type("f" if held.kind == "f" else "i"))

        return read


def _children(e: Expr) -> tuple[Expr, ...]:
    from portolan.kernels.tree import children

    return children(e)


def _split(place: X, by: int) -> tuple[X, X]:
    """`place / by` and what is left; `by` is a power of two, and `place` no less than 0."""
    low = Do("bitand", (place, Lit(by - 1)), PLACE)
    return Do("shr", (place, Lit(by.bit_length() - 1)), PLACE), low
