"""Tables: what the elements of a reduction need and columns share, computed for many of them at once beforehand.

A sum over sampled points is the pattern: each point has places and weights that take a few dozen operations, and do not
depend on the column. They are computed into tables, with vectors along the rows here, or along the reduction's own
indices (`inner`); then each row is reduced with vectors along the columns, and reads one number where it would compute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from portolan.kernels.ir import BASES, Do, Fetch, Lit, Read, Type, Write, X, add, mul, product
from portolan.kernels.lower.elements import KEPT, flag, select, splat
from portolan.kernels.lower.emitter import At, Emitter
from portolan.kernels.lower.limits import conditions, limits, mask_of
from portolan.kernels.lower.memory import offset_key, stride
from portolan.kernels.tree import Binder, Expr, Load, Op, Ranked, Reduce, Scan, children, free, walk

#: Turns up to which a loop of a constant number of them is written out.
WRITTEN_OUT = 4
#: What buffers of values hold.
HELD = {"f": "f32", "i": "i32"}


@dataclass(frozen=True)
class Made:
    """What was computed of a reduction's elements.

    Attributes:
        buffers: the buffer that holds each part.
        mask: the buffer that says which elements count, by a number that is not negative; None where the loops' bounds
            say it.
        asked: the conditions that are in `mask`.
        steps: of parts that are places in one array only, by what they were multiplied: offsets, ready to be added.
    """

    buffers: Mapping[Expr, str]
    mask: str | None
    asked: tuple[Expr, ...]
    steps: Mapping[Expr, X]

    def named(self, out: Emitter, part: Expr, offset: X, row: int, stem: str = "t") -> X:
        """Reads a part, and remembers it as what it is: a value, or an offset."""
        name = self.buffers[part]
        base = "f" if part.kind == "f" else "i"
        value = out.let(Read(name, HELD[base], offset, Type(BASES[HELD[base]])), stem)
        step = self.steps.get(part)
        out.keep(out.key(part, At(row)) if step is None else offset_key(out, part, step, At(row)), value)
        return value


@dataclass(frozen=True)
class Table(ABC):
    """What was computed of a reduction's elements, and where it is. A kind of table says where, by `place`."""

    made: Made

    @property
    def asked(self) -> tuple[Expr, ...]:
        """The conditions that `read` answers."""
        return self.made.asked

    @abstractmethod
    def place(self, out: Emitter, binders: Sequence[Binder], row: int) -> X:
        """Where the buffers hold the element at the present indices, for a row of the tile."""

    def read(self, out: Emitter, binders: Sequence[Binder], row: int) -> X | None:
        """Names a row's parts at the present indices; whether its element counts, None for always."""
        made, offset = self.made, self.place(out, binders, row)
        named = {name: made.named(out, part, offset, row) for part, name in made.buffers.items()}
        if made.mask is None:
            return None
        if made.mask in named:
            return flag("ge", named[made.mask], Lit(0))
        return flag("ge", Read(made.mask, "i32", offset, Type("i")), Lit(0))

    def fetch(self, out: Emitter, e: Reduce, row: int) -> None:  # noqa: B027 - a kind may have nothing to ask for
        """Asks for what the same element of a later row will read, where that is wanted."""


@dataclass(frozen=True)
class RowTable(Table):
    """A table of as many rows as a vector has lanes: `[inner indices][rows]`.

    Attributes:
        row: the first of the rows that are being reduced.
        ahead: the first of the rows after them; None where nothing is asked for before.
    """

    row: X
    ahead: X | None

    def place(self, out: Emitter, binders: Sequence[Binder], row: int) -> X:
        """Where the buffers hold the element at the present indices, for a row of the tile."""
        return _place(out, binders, self.row, row)

    def fetch(self, out: Emitter, e: Reduce, row: int) -> None:
        """Asks for what the same element of a later row will read: its place is known, and memory takes long."""
        if self.ahead is None:
            return
        made, offset = self.made, _place(out, e.binders, self.ahead, row)
        with out.branch([b.index for b in e.binders]) as body:
            for part in made.buffers:
                if part.kind == "i":
                    made.named(out, part, offset, row, "next")
            for x in dict.fromkeys(y for part in e.body for y in walk(part)):
                if isinstance(x, Load) and set(x.index) & set(made.buffers):
                    for vector in out.vectors_of(x):
                        found = out.handlers[Load](out, x, At(row, vector))
                        if isinstance(found, Read) and found.mode == "plain":
                            out.write(Fetch(found.array, found.offset))
        out.stack[-1].body.extend(body)


def parts(e: Reduce, vector: str | None, rows: str | None) -> list[Expr]:
    """The largest parts of the elements of `e` that cost something and depend on its indices and the rows only."""
    names = {b.index for b in e.binders}
    found: dict[Expr, None] = {}

    def visit(x: Expr) -> None:
        if vector not in free(x) and names & free(x) and rows in free(x) and x.kind != "b":
            whole = not any(isinstance(y, (Reduce, Scan, Ranked)) for y in walk(x))
            if whole and any(isinstance(y, Op) for y in walk(x)):
                found[x] = None
            if whole:
                return
        for child in children(x):
            visit(child)

    if vector is not None and vector in free(e) and not any(isinstance(x, (Scan, Ranked)) for x in walk(e)):
        for body in e.body:
            visit(body)
    return list(found)


def gathered(e: Reduce, vector: str | None, rows: str | None) -> set[str]:
    """The arrays of which elements are read at places that have to be computed: where a table pays."""
    wanted = {p for p in parts(e, vector, rows) if p.kind == "i"}
    loads = (x for part in e.body for x in walk(part) if isinstance(x, Load))
    return {x.tensor for x in loads if wanted & set(x.index)}


def over(
    out: Emitter,
    binders: Sequence[Binder],
    rest: tuple[Expr, ...],
    body: Callable[[tuple[Expr, ...]], None],
    *,
    written_out: bool = True,
) -> None:
    """Loops over the indices of a reduction, `body` in the innermost with the conditions that are left to be asked."""
    if not binders:
        body(rest)
        return
    binder, later = binders[0], binders[1:]
    for each in binders:
        out.extents[each.index] = each.extent
    if written_out and isinstance(binder.extent, int) and binder.extent <= WRITTEN_OUT:
        for value in range(binder.extent):
            with out.unrolled(binder.index, value, binder.extent):
                over(out, later, rest, body)
        return
    bounds = limits(out, binder, rest, [b.index for b in later])
    with out.loop(binder.index, bounds.low, bounds.high, binds=[binder.index], extent=binder.extent):
        over(out, later, bounds.rest, body, written_out=written_out)


def tabled(out: Emitter, values: Sequence[Expr]) -> list[Reduce]:
    """The reductions in `values` that have parts to compute beforehand."""
    found = dict.fromkeys(e for value in values for e in walk(value) if isinstance(e, Reduce))
    return [e for e in found if parts(e, out.schedule.vector, out.schedule.rows)]


def fill(out: Emitter, values: Sequence[Expr], first: X) -> dict[Reduce, Made]:
    """Writes the loops that make the tables of all reductions in `values`, for the tile of rows from `first` on."""
    return {e: _filled(out, e, first) for e in tabled(out, values)}


def _filled(out: Emitter, e: Reduce, first: X) -> Made:
    rows, lanes = out.schedule.rows, out.schedule.lanes
    made = allocated(out, e, product([*(out.size(b.extent) for b in e.binders), Lit(lanes)]))
    before = out.context
    out.context = replace(before, vector=rows, lanes=lanes, vectors=1, rows=None, tile_rows=1)
    out.env[str(rows)] = first
    over(out, e.binders, made.asked, lambda rest: element(out, made, _place(out, e.binders, Lit(0)), rest))
    out.context = before
    return made


def allocated(out: Emitter, e: Reduce, whole: X) -> Made:
    """Buffers of `whole` numbers for the parts of `e`, and what they will hold."""
    vector = out.schedule.vector
    buffers = {
        part: out.alloc("table", "f" if part.kind == "f" else "i", whole, "workspace")
        for part in parts(e, vector, out.schedule.rows)
    }
    shared = tuple(c for c in conditions(e.where) if vector not in free(c))
    # A place inside of an array is never negative, and so can say itself that its element does not count.
    places = [name for part, name in buffers.items() if isinstance(part, Op) and part.name == KEPT]
    mask = None if not shared else places[0] if places else out.alloc("table", "i", whole, "workspace")
    steps = {part: step for part in buffers if (step := _step(out, e, part)) is not None}
    out.small += [mul(step, _reach(out, e, part)) for part, step in steps.items()]
    return Made(buffers, mask, shared, steps)


def _itself(e: Expr) -> Expr:
    return e


def element(out: Emitter, made: Made, offset: X, rest: Sequence[Expr], seen: Callable[[Expr], Expr] = _itself) -> None:
    """Stores a vector of elements, each part as what `seen` makes of it, and whether all of `rest` holds."""
    lanes = out.context.lanes
    counts = mask_of(out, [seen(c) for c in rest], At())
    values = {n: _times(out.value(seen(part), At()), made.steps.get(part)) for part, n in made.buffers.items()}
    if made.mask is not None:
        held = values.get(made.mask, Lit(0))
        values[made.mask] = held if counts is None else select(splat(counts, Type("m", lanes)), held, Lit(-1))
    for name, value in values.items():
        base = value.type.base
        out.write(Write(name, HELD[base], offset, splat(value, Type(base, lanes))))


def _times(value: X, step: X | None) -> X:
    if step is None:
        return value
    return Do("mul", (value, splat(step, value.type)), value.type)


def _uses(e: Reduce, part: Expr) -> list[tuple[Load, int] | None]:
    """Where a part is needed: as a place in an array, of which it is an index; None for anything else."""
    found: list[tuple[Load, int] | None] = []

    def visit(x: Expr) -> None:
        for number, child in enumerate(children(x)):
            if child == part:
                found.append((x, number) if isinstance(x, Load) else None)
            else:
                visit(child)

    for body in e.body:
        visit(body)
    return found


def _step(out: Emitter, e: Reduce, part: Expr) -> X | None:
    """Elements from one place to the next, where a part is only ever an index of the same axis of one array."""
    uses = _uses(e, part)
    if not isinstance(part, Op) or part.name != KEPT or not uses or None in uses:
        return None
    places = {(load.tensor, dim) for load, dim in filter(None, uses)}
    if len(places) != 1:
        return None
    name, dim = places.pop()
    step = stride(out, out.program.tensor(name), dim)
    return None if step == Lit(1) else step


def _reach(out: Emitter, e: Reduce, part: Expr) -> X:
    """How many places there are for a part that `_step` takes."""
    load, dim = next(filter(None, _uses(e, part)))
    return out.size(out.program.tensor(load.tensor).axes[dim])


def _place(out: Emitter, binders: Sequence[Binder], row: X, number: int = 0) -> X:
    """Where the tables hold the element at the present indices, for the row `row + number`.

    What varies has a name and the rest is a number: so all elements of a turn are read at one address, plus numbers.
    """
    base: X = Lit(0)
    apart = 0
    for binder in binders:
        size, place = out.size(binder.extent), out.env[binder.index]
        if isinstance(size, Lit):
            base, apart = mul(base, size), apart * int(size.value)
        else:
            base, apart = mul(add(base, Lit(apart)), size), 0
        if isinstance(place, Lit):
            apart += int(place.value)
        else:
            base = add(base, place)
    lanes = out.schedule.lanes
    base = add(mul(base, Lit(lanes)), row)
    key = ("table", tuple(binders), base)
    found = out.known(key)
    if found is None:
        varies = [b.index for b in binders if not isinstance(out.env[b.index], Lit)]
        with out.at_level(out.level([str(out.schedule.rows), *varies])):
            found = out.let(base, "at")
            out.keep(key, found)
    return add(found, Lit(apart * lanes + number))


__all__ = ["Made", "RowTable", "Table", "allocated", "element", "fill", "gathered", "over", "parts", "tabled"]
