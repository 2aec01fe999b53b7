"""Rankings: scores block by block into a buffer, and from there into a short sorted list for each row."""

from __future__ import annotations

from portolan.kernels.ir import Alloc, Lit, Rank, Read, Ref, Type, Write, X, add, least, most, sub
from portolan.kernels.lower.elements import call
from portolan.kernels.lower.emitter import At, Emitter
from portolan.kernels.lower.staged import blocks, fill
from portolan.kernels.tree import Expr, Op, Ranked, free

_FLOAT = Type("f")
_WORST = float("inf")


def ranked(out: Emitter, e: Expr, at: At) -> X:
    """The value at the rank that is asked for; the ranking is written for all rows of the tile, before the ranks."""
    assert isinstance(e, Ranked)
    key = ("ranking", e.n, e.largest, e.binder, e.where, e.body)
    found = out.known(key)
    if found is None:
        with out.at_level(out.level(free(e) - {e.rank})):
            found = _written(out, e)
            out.keep(key, found)
    assert isinstance(found, Ref)
    row = at.row if out.context.rows in free(e) else 0
    offset = add(Lit(row * e.n), out.env[e.rank])
    if e.part == "index":
        return Read(f"{found.name}_at", "i32", offset, Type("i"))
    value = Read(found.name, "f32", offset, _FLOAT)
    return call("neg", value) if e.largest else value


def _written(out: Emitter, e: Ranked) -> Ref:
    rows = out.context.tile_rows if out.context.rows in free(e) else 1
    name = out.alloc("ranks", "f", Lit(rows * e.n), "stack")
    out.write(Alloc(f"{name}_at", "i", Lit(rows * e.n), "stack"))
    with out.loop("y", Lit(0), Lit(rows * e.n)) as y:
        out.write(Write(name, "f32", y, Lit(_WORST, _FLOAT)))
        out.write(Write(f"{name}_at", "i32", y, Lit(-1)))
    plan = blocks(out, e.binder, e.where)
    buffer = out.alloc("scores", "f", Lit(rows * plan.pitch), "stack")
    # Scores are kept with the sign that makes -inf, which masked elements become, the worst.
    score: Expr = e.body if e.largest else Op("neg", (e.body,), "f")
    with out.loop("block", plan.begun, plan.high, out.schedule.block, note="block") as start:
        count = out.let(least(Lit(out.schedule.block), sub(plan.high, start)), "count")
        fill(out, e.binder, plan, start, count, {score: buffer}, True)
        first = out.let(most(sub(plan.low, start), Lit(0)), "from")
        for row in range(rows):
            offset = plan.offset(row, first)
            size, place = sub(count, first), add(start, first)
            out.write(Rank(name, f"{name}_at", Lit(row * e.n), e.n, buffer, offset, size, place))
    return Ref(name)
