"""Statements that C has a routine for, as loops: what is left is what every printer knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from portolan.kernels.ir import (
    For,
    If,
    Let,
    Lit,
    Loops,
    Names,
    Nest,
    Rank,
    Read,
    Ref,
    Statement,
    Turn,
    Type,
    Write,
    X,
    add,
    mul,
    sub,
)
from portolan.kernels.lower.elements import both, call, compare, flag

_FLOAT, _WHOLE = Type("f"), Type("i")


def plain(loops: Loops) -> Loops:
    """The same loops without `Rank` and `Turn`."""
    names = Names()

    def body(statements: Sequence[Statement]) -> tuple[Statement, ...]:
        return tuple(new for s in statements for new in one(s))

    def one(s: Statement) -> Iterator[Statement]:
        match s:
            case Rank():
                yield _ranked(s, names)
            case Turn():
                yield _turned(s, names)
            case For():
                yield replace(s, body=body(s.body))
            case If():
                yield replace(s, body=body(s.body), other=body(s.other))
            case _:
                yield s

    nests = (Nest(tuple(replace(v, body=body(v.body)) for v in nest.variants)) for nest in loops.nests)
    return replace(loops, nests=tuple(nests))


def _ranked(s: Rank, names: Names) -> Statement:
    """Each score below the last of the list goes in at its place; what is behind it moves up by one."""
    u, k = Ref(names.new("ru")), Ref(names.new("rk"))
    x, place = Ref(names.new("rx"), _FLOAT), Ref(names.new("rp"))
    here = add(s.offset, sub(Lit(s.n - 1), k))

    def held(offset: X) -> Read:
        return Read(s.best, "f32", offset, _FLOAT)

    put = (Write(s.best, "f32", here, x), Write(s.places, "i32", here, place))
    before = add(here, Lit(-1))
    moved = (
        Write(s.best, "f32", here, held(before)),
        Write(s.places, "i32", here, Read(s.places, "i32", before, _WHOLE)),
    )
    behind = both(None, compare("gt", held(here), x))
    # The first of the list has none before it: there the new one is put without a look at its neighbour.
    step = If(
        behind,
        (If(flag("lt", k, Lit(s.n - 1)), (If(compare("gt", held(before), x), moved, put),), put),),
    )
    insert = For(k.name, Lit(0), Lit(s.n), 1, (step,))
    score = call("neg", Read(s.scores, "f32", add(s.start, u), _FLOAT))
    last = held(add(s.offset, Lit(s.n - 1)))
    inner = (Let(x.name, score), If(compare("lt", x, last), (Let(place.name, add(s.first, u)), insert)))
    return For(u.name, Lit(0), s.count, 1, inner, "rank")


def _turned(s: Turn, names: Names) -> Statement:
    """Rows into columns, one number at a time."""
    row, column = Ref(names.new("tr")), Ref(names.new("tc"))
    value = Read(s.source, "f32", add(s.source_offset, add(mul(row, s.source_row), column)), _FLOAT)
    to = add(s.to_offset, add(mul(column, s.to_row), row))
    inner = For(column.name, Lit(0), s.columns, 1, (Write(s.to, "f32", to, value),))
    return For(row.name, Lit(0), s.rows, 1, (inner,), "turn")
