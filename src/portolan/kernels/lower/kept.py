"""What a reduction over a row computes of each element, and others need again: kept for the row.

A softmax is the pattern: the sum needs every exponential, and so does the result. Where a task goes through all columns
of its rows, the pass that comes first writes them into a buffer, and later ones read them there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from portolan.kernels.functions import OPS
from portolan.kernels.ir import Lit, Read, Type, Write, X, add, mul
from portolan.kernels.lower.elements import splat
from portolan.kernels.lower.emitter import At, Emitter
from portolan.kernels.tree import Expr, Extent, Op, Ranked, Reduce, Scan, children, free, renamed, walk

_FLOAT = Type("f")


@dataclass(frozen=True)
class Row:
    """A buffer that holds an expression for all columns: of one row after the other, if it depends on the row."""

    name: str
    pitch: X

    def offset(self, row: int, place: X) -> X:
        """Where it holds the element of a row at a column."""
        return add(mul(Lit(row), self.pitch), place)

    def read(self, out: Emitter, at: At) -> X:
        """The elements from the present column on."""
        place = out.place(str(out.context.vector), at)
        return Read(self.name, "f32", self.offset(at.row, place), Type("f", out.context.lanes))


def shared(out: Emitter, values: Sequence[Expr]) -> None:
    """Writes the reductions that all columns share, before the loop over the columns is opened."""
    for value in values:
        for e in walk(value):
            if isinstance(e, Reduce) and not free(e) - set(out.env):
                for row in out.rows_of(e):
                    out.value(e, At(row))


def wanted(out: Emitter, group: Sequence[Reduce], axis: str) -> list[Expr]:
    """The largest dear parts of a group's elements that the results or other reductions compute again."""
    vector = out.schedule.vector
    binder = group[0].binders[0]
    whole = len(group[0].binders) == 1 and group[0].where is None and vector is not None
    if not out.schedule.within or vector is None or not whole or binder.extent != out.extents.get(vector):
        return []
    again = {x for value in out.roots for x in walk(value) if isinstance(x, Op)}
    found: dict[Expr, None] = {}

    def visit(e: Expr) -> None:
        if isinstance(e, (Reduce, Scan, Ranked)) or axis not in free(e):
            return
        if isinstance(e, Op) and e.kind == "f" and _dear(e) and renamed(e, axis, vector) in again:
            found[e] = None
            return
        for child in children(e):
            visit(child)

    for reduction in group:
        for part in reduction.body:
            visit(part)
    return [e for e in found if renamed(e, axis, vector) not in out.kept]


def _dear(e: Expr) -> bool:
    """Whether an element costs a dear function, reductions inside of it left aside: they are of the row."""
    if isinstance(e, (Reduce, Scan, Ranked)):
        return False
    return (isinstance(e, Op) and e.name in OPS and OPS[e.name].dear) or any(map(_dear, children(e)))


def rows(out: Emitter, parts: Sequence[Expr], columns: Extent) -> dict[Expr, Row]:
    """A buffer for each part, with room for the vector that reaches over the end."""
    found = {}
    pitch = add(out.size(columns), Lit(out.schedule.lanes))
    for part in parts:
        count = out.context.tile_rows if out.context.rows in free(part) else 1
        found[part] = Row(out.alloc("kept", "f", mul(Lit(count), pitch), "workspace"), pitch)
    return found


def written(out: Emitter, held: dict[Expr, Row], count: int) -> None:
    """Stores the parts at the present elements, for `count` rows."""
    for part, row in held.items():
        for number in range(count if out.context.rows in free(part) else 1):
            place = out.place(str(out.context.vector), At())
            value = splat(out.value(part, At(number)), Type("f", out.context.lanes))
            out.write(Write(row.name, "f32", row.offset(number, place), value))
