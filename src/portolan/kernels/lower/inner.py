"""Tables with vectors along a reduction's own indices: what its elements need, computed for many of them at once.

The indices that are not written out are joined: one, `ALONG`, runs over all their combinations. Arrays that have them
as neighbouring axes are read as if these were one axis, and what depends on nothing else is computed once for all rows.
So a row needs no more than a few vectors, and the rows that are reduced side by side may lie anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from portolan.kernels.ir import BASES, Do, Lit, Read, Type, Write, X, add, ceil_div, mul, product, sub
from portolan.kernels.lower.emitter import At, Emitter
from portolan.kernels.lower.tables import HELD, WRITTEN_OUT, Made, Table, allocated, element, over
from portolan.kernels.tree import (
    Binder,
    Expr,
    Extent,
    Idx,
    Load,
    Ranked,
    Reduce,
    Scan,
    Tensor,
    children,
    free,
    rebuilt,
    walk,
)

ALONG = "@along"


@dataclass(frozen=True)
class InnerTable(Table):
    """A table of the tile's rows: `[vectors along][rows][written out][lanes]`."""

    rows: int

    def place(self, out: Emitter, binders: Sequence[Binder], row: int) -> X:
        """Where the buffers hold the element at the present indices, for a row of the tile."""
        joined, short = split(binders)
        key = ("along", tuple(binders))
        base = out.known(key)
        if base is None:
            with out.at_level(out.level([b.index for b in joined])):
                base = out.let(self._base(out, joined, self.rows * turns(short)), "at")
                out.keep(key, base)
        return add(base, Lit(_number(out, short, row) * out.schedule.lanes))

    def _base(self, out: Emitter, joined: Sequence[Binder], apart: int) -> X:
        """The place of the first row: vectors are `apart` vectors from each other."""
        place: X = Lit(0)
        for binder in joined:
            place = add(mul(place, out.size(binder.extent)), out.env[binder.index])
        place = out.let(place, "along")
        lane = out.let(Do("mod", (place, Lit(out.schedule.lanes)), place.type), "lane")
        return add(mul(sub(place, lane), Lit(apart)), lane)


def split(binders: Sequence[Binder]) -> tuple[tuple[Binder, ...], tuple[Binder, ...]]:
    """The indices that are joined, and those after them that are written out."""
    count = len(binders)
    while count and _short(binders[count - 1].extent):
        count -= 1
    return tuple(binders[:count]), tuple(binders[count:])


def _short(extent: Extent) -> bool:
    return isinstance(extent, int) and extent <= WRITTEN_OUT


def turns(short: Sequence[Binder]) -> int:
    """Combinations of the indices that are written out."""
    return math.prod(int(b.extent) for b in short)


def takes(e: Reduce) -> bool:
    """Whether a reduction has indices for vectors to run along."""
    asked = () if e.where is None else walk(e.where)
    return bool(split(e.binders)[0]) and not any(isinstance(x, (Reduce, Scan, Ranked)) for x in asked)


def filled(out: Emitter, e: Reduce) -> InnerTable:
    """Writes the loops that make the table of a reduction, for the tile of rows that begins at the present one."""
    tile, lanes, before = out.schedule.tile_rows, out.schedule.lanes, (out.context, out.program)
    joined, short = split(e.binders)
    count, each = product([out.size(b.extent) for b in joined]), turns(short) * lanes
    made = allocated(out, e, mul(ceil_div(count, lanes), Lit(tile * each)))
    along = _Along(out, joined, [*made.buffers, *made.asked])
    rows, first = str(out.schedule.rows), out.env[str(out.schedule.rows)]
    out.program = replace(out.program, inputs=tuple(map(along.view, out.program.inputs)))
    with out.loop("row", Lit(0), Lit(tile), binds=[rows], extent=rows, note="table") as row:
        out.env[rows] = add(first, row)
        begun = out.let(sub(along.count, along.left), "begun")
        for start, stop, left in ((Lit(0), begun, None), (begun, along.count, along.left)):
            out.context = replace(before[0], vector=ALONG, lanes=lanes, vectors=1, rows=None, tile_rows=1, partial=left)
            with out.loop("along", start, stop, lanes, binds=[ALONG], extent=ALONG) as at:
                base = out.let(add(mul(at, Lit(tile * turns(short))), mul(row, Lit(each))), "at")
                over(out, short, made.asked, partial(_element, out, made, along, short, base))
    out.context, out.program = before
    return InnerTable(made, tile)


def _element(out: Emitter, made: Made, along: _Along, short: Sequence[Binder], base: X, rest: Sequence[Expr]) -> None:
    """Stores the vector of elements at the present indices."""
    element(out, made, add(base, Lit(_number(out, short, 0) * out.schedule.lanes)), rest, along.seen)


def _number(out: Emitter, short: Sequence[Binder], row: int) -> int:
    """Which element of a row is meant among those that are written out, of `row` rows before it too."""
    for binder in short:
        value = out.env[binder.index]
        assert isinstance(value, Lit)
        row = row * int(binder.extent) + int(value.value)
    return row


class _Along:
    """Joined indices as one: how expressions and arrays are seen then.

    Attributes:
        count: combinations of the indices.
        left: of them, those after the last whole vector.
    """

    def __init__(self, out: Emitter, joined: Sequence[Binder], wanted: Sequence[Expr]) -> None:
        self.out, self.joined = out, joined
        self.names = {b.index for b in joined}
        self.dims = self._dims(wanted)
        self.held: dict[Expr, Load] = {}
        for e in wanted:
            self.seen(e)
        with out.at_level(0):
            count = product([out.size(b.extent) for b in joined])
            self.count = out.let(count, "count")
            self.left = out.let(Do("mod", (self.count, Lit(out.schedule.lanes)), count.type), "left")
            self._hold(mul(ceil_div(count, out.schedule.lanes), Lit(out.schedule.lanes)))
        out.sizes[ALONG] = self.count

    def _dims(self, wanted: Sequence[Expr]) -> dict[str, int]:
        """Of arrays that have the joined indices as neighbouring axes wherever they are read, the first of these."""
        found: dict[str, set[int | None]] = {}
        for load in (x for e in wanted for x in walk(e) if isinstance(x, Load)):
            found.setdefault(load.tensor, set()).add(self._dim(load))
        return {name: dim for name, (dim, *others) in found.items() if dim is not None and not others}

    def _dim(self, load: Load) -> int | None:
        axes, count = self.out.program.tensor(load.tensor).axes, len(self.joined)
        indices, extents = tuple(Idx(b.index) for b in self.joined), tuple(b.extent for b in self.joined)
        for dim in range(len(axes) - count + 1):
            if load.index[dim : dim + count] == indices and axes[dim : dim + count] == extents:
                rest = (*load.index[:dim], *load.index[dim + count :])
                return None if any(free(part) & self.names for part in rest) else dim
        return None

    def view(self, tensor: Tensor) -> Tensor:
        """An array with one axis for the joined indices, if it has them as neighbouring axes."""
        dim = self.dims.get(tensor.name)
        if dim is None:
            return tensor
        return replace(tensor, axes=(*tensor.axes[:dim], ALONG, *tensor.axes[dim + len(self.joined) :]))

    def seen(self, e: Expr) -> Expr:
        """`e` over the one index."""
        if not free(e) & self.names:
            return e
        if free(e) <= self.names and e.kind != "b":
            return self.held.setdefault(e, Load(self.out.names.new("@held"), (Idx(ALONG),), e.kind))
        if isinstance(e, Load) and (dim := self.dims.get(e.tensor)) is not None:
            return replace(e, index=(*e.index[:dim], Idx(ALONG), *e.index[dim + len(self.joined) :]))
        return rebuilt(e, tuple(map(self.seen, children(e))))

    def _hold(self, whole: X) -> None:
        """Computes what depends on the joined indices only: a number for each combination, and 0 behind the last."""
        out = self.out
        names = {e: out.alloc("held", "f" if e.kind == "f" else "i", whole, "workspace") for e in self.held}
        with ExitStack() as loops, out.vectors_along(None, 1, 1):
            place: X = Lit(0)
            for b in self.joined:
                loop = out.loop(b.index, Lit(0), out.size(b.extent), binds=[b.index], extent=b.extent, note="held")
                place = add(mul(place, out.size(b.extent)), loops.enter_context(loop))
            for e, name in names.items():
                out.write(Write(name, HELD[e.kind], place, out.value(e, At())))
        with out.loop("behind", self.count, whole) as behind:
            for e, name in names.items():
                out.write(Write(name, HELD[e.kind], behind, Lit(0, Type(BASES[HELD[e.kind]]))))
        for e, name in names.items():
            out.resident[self.held[e].tensor] = partial(_held, name)


def _held(name: str, out: Emitter, e: Expr, at: At) -> X:
    """Reads what a buffer holds for the joined indices."""
    kind = HELD[e.kind]
    return Read(name, kind, out.place(ALONG, at), Type(BASES[kind], out.context.lanes))
