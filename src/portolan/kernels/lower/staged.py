"""Reductions whose elements hold something dear that does not depend on the vector axis.

Attention is the pattern: a score for each pair, then a mean over many columns with it. The scores of a block are
computed first, with vectors along the reduced index, into a small buffer; then the block is reduced with vectors along
the result's columns, and each score is one number of the buffer. A `softmean` is carried online from block to block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from portolan.kernels.functions import OPS
from portolan.kernels.ir import Do, If, Lit, Read, Ref, Type, Update, Write, X, add, ceil_div, least, most, mul, sub
from portolan.kernels.lower.elements import both, call, flag, select, splat
from portolan.kernels.lower.emitter import At, Emitter
from portolan.kernels.lower.limits import certain, conditions, limits, mask_of
from portolan.kernels.lower.reductions import begin, better, finish, mean, settled, take
from portolan.kernels.tree import Binder, Expr, Op, Reduce, Scan, children, free, walk

_FLOAT = Type("f")


def _dear(e: Expr) -> bool:
    return any(isinstance(x, Reduce) or (isinstance(x, Op) and x.name in OPS and OPS[x.name].dear) for x in walk(e))


def _scans(group: list[Reduce]) -> bool:
    return any(isinstance(x, Scan) for e in group for x in walk(e))


def parts_to_stage(out: Emitter, group: list[Reduce]) -> list[Expr]:
    """The largest dear parts of the elements that depend on the reduced index and not on the vector axis."""
    first, v = group[0], out.context.vector
    if len(first.binders) != 1 or not any(v in free(e) for e in group) or _scans(group):
        return []
    index = first.binders[0].index
    found: list[Expr] = []

    def visit(e: Expr) -> None:
        if index in free(e) and v not in free(e) and _dear(e):
            found.extend([e] if e not in found else [])
            return
        for child in children(e):
            visit(child)

    weighted = [e for e in group if e.monoid == "softmean"]
    if weighted and len(group) > 1:
        return []
    for e in group:
        if e.monoid == "softmean" and v not in free(e.body[0]):
            return [e.body[0]] if e.body[0].kind == "f" else []
        for part in e.body:
            visit(part)
    return [e for e in found if e.kind == "f"]


@dataclass(frozen=True)
class Blocks:
    """The blocked loop over a reduced index.

    Attributes:
        low, high: bounds of the indices that count in any row.
        begun: where the first block begins: `low`, or a little before it, at a whole vector.
        rest: conditions that have to be asked of each element.
        margin: numbers before the first in each row of a buffer, for vectors that slide back.
        pitch: numbers in a row of a buffer.
        sure: from where to where all conditions hold in every row; None where that is not known.
    """

    low: X
    high: X
    begun: X
    rest: tuple[Expr, ...]
    margin: int
    pitch: int
    sure: tuple[X, X] | None

    def offset(self, row: int, place: X) -> X:
        """Where a row keeps the element at `place` of the block."""
        return add(Lit(row * self.pitch + self.margin), place)


def blocks(out: Emitter, binder: Binder, where: Expr | None) -> Blocks:
    """Lays the blocked loop out."""
    found = limits(out, binder, conditions(where), ())
    width = out.schedule.lanes * (out.schedule.stage_vectors if out.schedule.lanes > 1 else 1)
    low = most(found.low, Lit(0))
    begun = out.let(sub(low, Do("mod", (low, Lit(width)), low.type)), "begun")
    rest = conditions(where)
    sure = certain(out, binder, rest) if rest else None
    return Blocks(low, found.high, begun, rest, width, 2 * width + out.schedule.block, sure)


def fill(
    out: Emitter, binder: Binder, plan: Blocks, start: X, count: X, buffers: dict[Expr, str], masked: bool
) -> None:
    """Computes parts of a block's elements into their buffers, with vectors along the reduced index.

    With `masked`, an element for which the conditions do not hold is stored as -inf.
    """
    c, lanes = out.context, out.schedule.lanes
    vectors = out.schedule.stage_vectors if lanes > 1 else 1
    size = out.size(binder.extent)
    out.needs.append((size, plan.margin))
    with out.loop("t", Lit(0), count, plan.margin, binds=[binder.index], extent=binder.extent, note="fill") as t:
        first = out.let(least(add(start, t), sub(size, Lit(plan.margin))), "first")
        out.env[binder.index] = first
        place = out.let(sub(first, start), "place")
        with out.vectors_along(binder.index, lanes, vectors):
            values = {
                (e, row, vector): out.value(e, At(row, vector))
                for e in buffers
                for row in range(c.tile_rows if c.rows in free(e) else 1)
                for vector in range(vectors)
            }
            plain = [
                Write(
                    buffers[e],
                    "f32",
                    plan.offset(row, add(place, Lit(vector * lanes))),
                    splat(value, Type("f", lanes)),
                )
                for (e, row, vector), value in values.items()
            ]
            if masked and plan.rest:
                _masked(out, binder, plan, first, plain, [At(row, vector) for _, row, vector in values])
            else:
                out.stack[-1].body.extend(plain)


def _masked(out: Emitter, binder: Binder, plan: Blocks, first: X, plain: list[Write], places: list[At]) -> None:
    """Stores -inf where the conditions do not hold; they are asked only near the ends of where they hold."""
    with out.branch([binder.index]) as asked:
        for write, at in zip(plain, places, strict=True):
            mask = mask_of(out, plan.rest, at)
            value = write.value if mask is None else select(mask, write.value, Lit(float("-inf"), _FLOAT))
            out.write(replace(write, value=value))
    if plan.sure is None:
        out.stack[-1].body.extend(asked)
        return
    low, high = plan.sure
    inside = both(flag("ge", first, low), flag("le", add(first, Lit(plan.margin)), high))
    out.write(If(inside, tuple(plain), tuple(asked)))


def staged(out: Emitter, group: list[Reduce]) -> None:
    """Writes the blocked loop, and names the results."""
    first = group[0]
    binder = first.binders[0]
    parts = parts_to_stage(out, group)
    plan = blocks(out, binder, first.where)
    rows = out.context.tile_rows
    buffers = {e: out.alloc("stage", "f", Lit(rows * plan.pitch), "stack") for e in parts}
    accs = {(e, r, v): begin(out, e, out.type_of(e)) for e in group for r in out.rows_of(e) for v in out.vectors_of(e)}
    weighted = first.monoid == "softmean"
    online = _Online(out, first) if weighted else None
    with out.loop("block", plan.begun, plan.high, out.schedule.block, note="block") as start:
        count = out.let(least(Lit(out.schedule.block), sub(plan.high, start)), "count")
        fill(out, binder, plan, start, count, buffers, weighted)
        if online is not None:
            online.weigh(plan, count, buffers[parts[0]], accs)
        for low, high, rest in _spans(out, plan, start, count):
            with out.loop("u", low, high, binds=[binder.index], extent=binder.extent, note="reduce") as u:
                out.env[binder.index] = out.let(add(start, u), binder.index)
                for e in parts:
                    for row in out.rows_of(e):
                        read = Read(buffers[e], "f32", plan.offset(row, u), _FLOAT)
                        out.keep(out.key(e, At(row, 0)), out.let(read, "s"))
                if online is not None:
                    online.reduce(parts[0], accs, rest)
                else:
                    _reduce(out, group, accs, rest)
    for e in group:
        for row in out.rows_of(e):
            for vector in out.vectors_of(e):
                found = accs[e, row, vector]
                value = online.result(row, found) if online is not None else finish(out, e, found)
                out.keep(out.key(e, At(row, vector)), value)


def _spans(out: Emitter, plan: Blocks, start: X, count: X) -> list[tuple[X, X, tuple[Expr, ...]]]:
    """The loops over a block: bounds in it, and the conditions that are to be asked in each."""
    begun = out.let(most(sub(plan.low, start), Lit(0)), "from")
    if plan.sure is None:
        return [(begun, count, plan.rest)]
    low, high = plan.sure
    one = out.let(least(most(sub(low, start), begun), count), "from")
    two = out.let(least(most(sub(high, start), one), count), "from")
    return [(begun, one, plan.rest), (one, two, ()), (two, count, plan.rest)]


def _reduce(
    out: Emitter, group: list[Reduce], accs: dict[tuple[Reduce, int, int], tuple[Ref, ...]], rest: tuple[Expr, ...]
) -> None:
    for e in group:
        where = out.value_of_index(e.binders[0].index)
        for row in out.rows_of(e):
            for vector in out.vectors_of(e):
                at = At(row, vector)
                mask = mask_of(out, rest, at)
                take(out, e, accs[e, row, vector], [out.value(p, at) for p in e.body], mask, where)


class _Online:
    """The carry of a `softmean`: for each row the largest score so far, and the sum of weights lane by lane."""

    def __init__(self, out: Emitter, e: Reduce) -> None:
        self.out, self.e = out, e
        self.rows = range(out.context.tile_rows if out.context.rows in free(e) else 1)
        wide = Type("f", out.schedule.lanes)
        self.tops = [out.acc(Lit(float("-inf"), _FLOAT), "top") for _ in self.rows]
        self.totals = [out.acc(splat(Lit(0.0, _FLOAT), wide), "total") for _ in self.rows]

    def weigh(self, plan: Blocks, count: X, buffer: str, accs: dict[tuple[Reduce, int, int], tuple[Ref, ...]]) -> None:
        """Turns a block's scores into weights, and scales down what was summed before."""
        out, lanes = self.out, self.out.schedule.lanes
        wide = Type("f", lanes)
        low = Lit(float("-inf"), _FLOAT)
        whole = out.let(mul(ceil_div(count, lanes), Lit(lanes)), "whole")
        with out.loop("u", count, whole, note="pad") as u:
            for row in self.rows:
                out.write(Write(buffer, "f32", plan.offset(row, u), low))
        # All rows side by side: one alone would wait for its largest score, and for the exponential that scales.
        best = [out.acc(splat(low, wide), "best") for _ in self.rows]
        with out.loop("u", Lit(0), whole, lanes, note="largest") as u:
            for row in self.rows:
                held = Read(buffer, "f32", plan.offset(row, u), wide)
                out.write(Update(best[row].name, better("max", held, best[row])))
        bases = [self._rescaled(row, best[row], accs) for row in self.rows]
        with out.loop("u", Lit(0), whole, lanes, note="weights") as u:
            for row in self.rows:
                score = Read(buffer, "f32", plan.offset(row, u), wide)
                weight = out.let(call("exp", call("sub", score, bases[row])), "weight")
                total = self.totals[row]
                out.write(Update(total.name, call("add", total, weight)))
                out.write(Write(buffer, "f32", plan.offset(row, u), weight))

    def _rescaled(self, row: int, best: X, accs: dict[tuple[Reduce, int, int], tuple[Ref, ...]]) -> X:
        """Takes a block's largest score into a row's and scales its sums down; what is to be taken from scores."""
        out, top, total = self.out, self.tops[row], self.totals[row]
        new = out.let(better("max", Do("across_max", (best,), _FLOAT), top), "new")
        base = out.let(settled(new), "base")
        shrink = out.let(call("exp", call("sub", top, base)), "shrink")
        out.write(Update(top.name, new))
        out.write(Update(total.name, call("mul", total, shrink)))
        for vector in out.vectors_of(self.e):
            acc = accs[self.e, row, vector][2]
            out.write(Update(acc.name, call("mul", acc, shrink)))
        return base

    def reduce(self, score: Expr, accs: dict[tuple[Reduce, int, int], tuple[Ref, ...]], rest: tuple[Expr, ...]) -> None:
        """Adds the weighted value of one index."""
        out = self.out
        for row in self.rows:
            weight = out.known(out.key(score, At(row)))
            if weight is None:
                raise LookupError("a weight is missing")
            updates = []
            for vector in out.vectors_of(self.e):
                value = out.value(self.e.body[1], At(row, vector))
                acc = accs[self.e, row, vector][2]
                updates.append(Update(acc.name, call("add", acc, call("mul", weight, splat(value, acc.type)))))
            if rest:
                # What is masked has no weight, and must not count even where its value is no number.
                out.write(If(flag("ne", weight, Lit(0.0, _FLOAT)), tuple(updates)))
            else:
                for update in updates:
                    out.write(update)

    def result(self, row: int, accs: tuple[Ref, ...]) -> X:
        """The mean of one row's values."""
        out = self.out
        total = out.known(("total", row))
        if total is None:
            total = out.let(Do("across_sum", (self.totals[row],), _FLOAT), "z")
            out.keep(("total", row), total)
        return out.let(mean(total, accs[2]))
