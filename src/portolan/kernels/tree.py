"""What a kernel means: an immutable tree, the one source of its NumPy oracle and of every program made from it.

An index has a lower-case name and runs over an extent: a symbol (the axis it is declared with) or a number. A value
carries the axes it mentions (`free`). Floats are computed as float32, integers as int32, whatever the arrays hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

Kind = Literal["f", "i", "b"]
Extent = str | int


@dataclass(frozen=True)
class Num:
    """A number or a truth value."""

    value: float | int | bool
    kind: Kind


@dataclass(frozen=True)
class Idx:
    """An index, as a place in an array or as a value."""

    name: str
    kind: Kind = "i"


@dataclass(frozen=True)
class Ext:
    """The extent of an axis as a value."""

    symbol: str
    kind: Kind = "i"


@dataclass(frozen=True)
class Load:
    """One element of an array."""

    tensor: str
    index: tuple[Expr, ...]
    kind: Kind
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Op:
    """An element function; `name` is one of `functions.OPS`."""

    name: str
    args: tuple[Expr, ...]
    kind: Kind


@dataclass(frozen=True)
class Binder:
    """An index that a reduction brings in."""

    index: str
    extent: Extent


@dataclass(frozen=True)
class Reduce:
    """A monoid over the elements for which `where` holds; `softmean` has two bodies, score and value."""

    monoid: str
    binders: tuple[Binder, ...]
    where: Expr | None
    body: tuple[Expr, ...]
    kind: Kind


@dataclass(frozen=True)
class Ranked:
    """The element at place `rank` of the `n` smallest or largest; `part` says whether the value or where it was."""

    n: int
    largest: bool
    part: Literal["value", "index"]
    binder: Binder
    where: Expr | None
    body: Expr
    rank: str
    kind: Kind


@dataclass(frozen=True)
class Carry:
    """The value of a scan one step before; 0 before the first."""

    name: str
    kind: Kind


@dataclass(frozen=True)
class Scan:
    """A value carried along an axis."""

    carry: str
    axis: str
    step: Expr
    kind: Kind


Expr = Num | Idx | Ext | Load | Op | Reduce | Ranked | Carry | Scan


@dataclass(frozen=True)
class Tensor:
    """An argument or a result.

    Attributes:
        name: as in the source; results are `out`, or `out0`, `out1` and so on.
        axes: extents in order.
        dtype: `f32`, `f16`, `bf16`, `i8` or `i32`.
    """

    name: str
    axes: tuple[Extent, ...]
    dtype: str


@dataclass(frozen=True)
class Stages:
    """A whole array, remade `extent` times; after it the name stands for the last."""

    tensor: str
    index: str
    extent: Extent
    value: Expr


@dataclass(frozen=True)
class Program:
    """A kernel: arguments, stages, and one expression for each result, over the result's axes.

    Attributes:
        extents: of the axes of results that no argument has (ranks), numbers.
        lines: where each result's expression stands in the file.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    stages: tuple[Stages, ...]
    values: tuple[Expr, ...]
    source: str = ""
    path: str = ""
    line: int = 0

    def tensor(self, name: str) -> Tensor:
        """The argument of that name."""
        return next(t for t in self.inputs if t.name == name)

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols that arguments' shapes give a size, in order of first appearance."""
        return tuple(dict.fromkeys(a for t in self.inputs for a in t.axes if isinstance(a, str)))


def children(e: Expr) -> tuple[Expr, ...]:
    """The expressions right below `e`."""
    match e:
        case Load(index=index):
            return index
        case Op(args=args):
            return args
        case Reduce(where=where, body=body):
            return (*body, *(() if where is None else (where,)))
        case Ranked(where=where, body=value):
            return (value, *(() if where is None else (where,)))
        case Scan(step=step):
            return (step,)
        case _:
            return ()


def walk(e: Expr) -> Iterator[Expr]:
    """`e` and all below it."""
    yield e
    for child in children(e):
        yield from walk(child)


@lru_cache(maxsize=100_000)
def free(e: Expr) -> frozenset[str]:
    """The indices that `e` mentions and does not bring in itself; carries count as indices."""
    below: frozenset[str] = frozenset().union(*(free(c) for c in children(e)))
    match e:
        case Idx(name=name) | Carry(name=name):
            return frozenset((name,))
        case Reduce(binders=binders):
            return below - {b.index for b in binders}
        case Ranked(binder=binder, rank=rank):
            return (below - {binder.index}) | {rank}
        case Scan(carry=carry, axis=axis):
            return (below - {carry}) | {axis}
        case _:
            return below


def rebuilt(e: Expr, new: tuple[Expr, ...]) -> Expr:
    """`e` over other children."""
    match e:
        case Load():
            return replace(e, index=new)
        case Op():
            return replace(e, args=new)
        case Reduce():
            return replace(e, body=new[: len(e.body)], where=new[len(e.body)] if e.where is not None else None)
        case Ranked():
            return replace(e, body=new[0], where=new[1] if e.where is not None else None)
        case Scan():
            return replace(e, step=new[0])
        case _:
            return e


def renamed(e: Expr, old: str, new: str) -> Expr:
    """`e` with the free index `old` called `new`."""
    if old not in free(e):
        return e
    if isinstance(e, Idx):
        return Idx(new)
    return rebuilt(e, tuple(renamed(c, old, new) for c in children(e)))


def conjuncts(where: Expr | None) -> tuple[Expr, ...]:
    """The conditions that a predicate joins with `and`."""
    if where is None:
        return ()
    if isinstance(where, Op) and where.name == "and":
        return tuple(c for arg in where.args for c in conjuncts(arg))
    return (where,)


def extents_of(program: Program) -> dict[str, Extent]:
    """The extent of each index of the results, by name."""
    found: dict[str, Extent] = {}
    for tensor, value in zip(program.outputs, program.values, strict=True):
        for axis in tensor.axes:
            if isinstance(axis, str):
                found[axis] = axis
        for e in walk(value):
            if isinstance(e, Ranked):
                found[e.rank] = e.n
    return found
