"""Writes expressions as loop code. Each value is named once, in the outermost loop that knows all it depends on.

So what a loop does not change is computed before it, and what tiles share is computed once: hoisting and sharing are
not steps of their own, they are where a value is put.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from portolan.kernels.ir import (
    PLACE,
    Acc,
    Alloc,
    Do,
    For,
    Let,
    Lit,
    Names,
    Ref,
    Statement,
    Type,
    X,
    add,
)
from portolan.kernels.lower.elements import call, element, splat
from portolan.kernels.lower.powers import EXP2, exponent
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.tree import Binder, Carry, Expr, Ext, Extent, Idx, Num, Op, Program, Reduce, free, renamed


class Kept(Protocol):
    """An expression that a buffer holds for all columns."""

    def read(self, out: Emitter, at: At) -> X:
        """The elements from the present column on."""


@dataclass(frozen=True)
class At:
    """A place inside of a tile: which row, and which vector."""

    row: int = 0
    vector: int = 0


@dataclass
class Scope:
    """A loop that is being written: what it brings in, its statements so far, and the values named in it."""

    binds: frozenset[str]
    body: list[Statement] = field(default_factory=list)
    known: dict[object, X] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a vector runs along at the moment, and how many rows and vectors a tile has."""

    vector: str | None
    lanes: int
    vectors: int
    rows: str | None
    tile_rows: int
    #: Elements of the vector axis that exist from its first lane on, where they may be fewer than lanes.
    partial: X | None = None


Handler = Callable[["Emitter", Expr, At], X]


class Table(Protocol):
    """Parts of a reduction's elements that are computed already."""

    @property
    def asked(self) -> tuple[Expr, ...]:
        """The conditions that `read` answers."""

    def read(self, out: Emitter, binders: Sequence[Binder], row: int) -> X | None:
        """Names a row's parts at the present indices; whether its element counts, None for always."""

    def fetch(self, out: Emitter, e: Reduce, row: int) -> None:
        """Asks for what the same element of a later row will read."""


class Emitter:
    """The state of writing one variant of one nest.

    Attributes:
        program: the kernel.
        schedule: its layout.
        context: what vectors run along.
        stack: loops around what is written, the outermost first.
        env: each index as a place; of a tile's or a vector's axis, its first.
        extents: the extent of each index.
        sizes: how long axes are that the kernel does not have, but a layout.
        needs: least sizes under which this variant may run.
        small: products of sizes that have to fit into 31 bits for this variant to run.
        resident: arrays that stages keep in the workspace: how to read them.
        tables: reductions of which parts are computed already.
        kept: expressions over the schedule's vector axis that a buffer holds for all columns.
    """

    def __init__(self, program: Program, schedule: Schedule, handlers: Mapping[type, Handler]) -> None:
        self.program, self.schedule, self.handlers = program, schedule, handlers
        self.context = Context(
            schedule.vector, schedule.lanes, schedule.tile_vectors, schedule.rows, schedule.tile_rows
        )
        self.stack = [Scope(frozenset())]
        self.env: dict[str, X] = {}
        self.extents: dict[str, Extent] = {}
        self.sizes: dict[str, X] = {}
        self.needs: list[tuple[X, int]] = []
        self.small: list[X] = []
        self.resident: dict[str, Callable[[Emitter, Expr, At], X]] = {}
        self.tables: dict[Expr, Table] = {}
        self.kept: dict[Expr, Kept] = {}
        self.names = Names()
        self.roots: tuple[Expr, ...] = ()
        self.tile_level = 0
        self.scan_axis: str | None = None

    # Scopes ---------------------------------------------------------------------------------------------------------

    def write(self, statement: Statement) -> None:
        """Appends to the innermost loop."""
        self.stack[-1].body.append(statement)

    def level(self, indices: Iterable[str]) -> int:
        """The outermost place in the stack where all `indices` are known."""
        wanted = set(indices)
        return max((n for n, scope in enumerate(self.stack) if scope.binds & wanted), default=0)

    @contextmanager
    def at_level(self, level: int) -> Iterator[None]:
        """Writes further out: to the loop at `level`, before the loop in it that is being written."""
        inner = self.stack[level + 1 :]
        del self.stack[level + 1 :]
        try:
            yield
        finally:
            self.stack.extend(inner)

    @contextmanager
    def loop(
        self,
        stem: str,
        start: X,
        stop: X,
        step: int = 1,
        *,
        binds: Iterable[str] = (),
        extent: Extent | None = None,
        note: str = "",
    ) -> Iterator[Ref]:
        """A loop; `binds` names the indices that its variable is (or decides)."""
        var = Ref(self.names.new(stem.replace("@", "_")))
        scope = Scope(frozenset(binds))
        before = dict(self.env), dict(self.extents)
        for name in scope.binds:
            self.env[name] = var
            if extent is not None:
                self.extents[name] = extent
        self.stack.append(scope)
        try:
            yield var
        finally:
            popped = self.stack.pop()
            self.env, self.extents = before
        self.write(For(var.name, start, stop, step, tuple(popped.body), note))

    @contextmanager
    def unrolled(self, index: str, value: int, extent: Extent) -> Iterator[None]:
        """One turn of a short loop, written out: the index is a number in it."""
        scope = Scope(frozenset((index,)))
        before = dict(self.env), dict(self.extents)
        self.env[index], self.extents[index] = Lit(value), extent
        self.stack.append(scope)
        try:
            yield
        finally:
            self.stack.pop()
            self.env, self.extents = before
        self.stack[-1].body.extend(scope.body)

    @contextmanager
    def branch(self, binds: Iterable[str]) -> Iterator[list[Statement]]:
        """Statements of one side of a condition: what depends on `binds` and is first needed here is named here."""
        scope = Scope(frozenset(binds))
        self.stack.append(scope)
        try:
            yield scope.body
        finally:
            self.stack.pop()

    @contextmanager
    def vectors_along(self, axis: str | None, lanes: int, vectors: int, partial: X | None = None) -> Iterator[None]:
        """Vectors run along `axis` inside."""
        before = self.context
        self.context = replace(before, vector=axis, lanes=lanes, vectors=vectors, partial=partial)
        try:
            yield
        finally:
            self.context = before

    # Values ---------------------------------------------------------------------------------------------------------

    def let(self, value: X, stem: str = "v") -> X:
        """`value` under a name, in the innermost loop; what is a name or a number stays as it is."""
        if isinstance(value, (Ref, Lit)):
            return value
        name = self.names.new(stem)
        self.write(Let(name, value))
        return Ref(name, value.type)

    def acc(self, value: X, stem: str = "acc") -> Ref:
        """A new accumulator in the innermost loop."""
        name = self.names.new(stem)
        self.write(Acc(name, value))
        return Ref(name, value.type)

    def alloc(self, stem: str, base: str, size: X, space: str) -> str:
        """A new buffer in the innermost loop."""
        name = self.names.new(stem)
        self.write(Alloc(name, base, size, space))  # type: ignore[arg-type]
        return name

    def key(self, e: Expr, at: At) -> tuple[object, ...]:
        """What the value of `e` depends on besides loops."""
        names, c = free(e), self.context
        row = at.row if c.rows in names else 0
        vector = (c.vector, at.vector) if c.vector in names else None
        return e, row, vector

    def known(self, key: object) -> X | None:
        """The value named under `key` in a loop around here."""
        return next((s.known[key] for s in reversed(self.stack) if key in s.known), None)

    def keep(self, key: object, value: X) -> None:
        """Remembers a value for as long as the innermost loop is written."""
        self.stack[-1].known[key] = value

    def value(self, e: Expr, at: At) -> X:
        """The value of `e` at a place of the tile, named where it belongs."""
        if isinstance(e, Num):
            return Lit(e.value, Type({"f": "f", "i": "i", "b": "m"}[e.kind]))  # type: ignore[arg-type]
        if isinstance(e, Ext):
            return self.size(e.symbol)
        key = self.key(e, at)
        if (found := self.known(key)) is not None:
            return found
        with self.at_level(self.level(free(e))):
            found = self.let(self._made(e, at))
            self.keep(key, found)
        return found

    def _made(self, e: Expr, at: At) -> X:
        vector = self.context.vector
        if self.kept and vector in free(e) and self.schedule.vector is not None:
            held = self.kept.get(renamed(e, str(vector), self.schedule.vector))
            if held is not None:
                return held.read(self, at)
        if isinstance(e, Idx):
            return self._index(e.name, at)
        if isinstance(e, Op):
            if self.type_of(e).lanes > 1 and (power := exponent(e, lambda part: self.level(free(part)))) is not None:
                return call(EXP2, self.value(power, at))
            return element(e.name, [self.value(a, at) for a in e.args], e.kind)
        if isinstance(e, Carry):
            raise LookupError(f"the carry {e.name} is used outside of its scan")
        return self.handlers[type(e)](self, e, at)

    def place(self, name: str, at: At) -> X:
        """The index `name` at the first lane."""
        c, base = self.context, self.env[name]
        if name == c.vector:
            return add(base, Lit(at.vector * c.lanes))
        return add(base, Lit(at.row)) if name == c.rows else base

    def _index(self, name: str, at: At) -> X:
        place, c = self.place(name, at), self.context
        if name != c.vector or c.lanes == 1:
            return place
        return Do("iota", (splat(place, Type("i", c.lanes)),), Type("i", c.lanes))

    def value_of_index(self, name: str) -> X:
        """The index `name` as a value, at the tile's first place."""
        return self.let(self._index(name, At()), "at")

    def size(self, extent: Extent) -> X:
        """An extent as a place."""
        if isinstance(extent, int):
            return Lit(extent)
        return self.sizes.get(extent) or Ref(size_name(extent), PLACE)

    def rows_of(self, e: Expr) -> range:
        """The rows of a tile for which the value of `e` may differ."""
        return range(self.context.tile_rows if self.context.rows in free(e) else 1)

    def vectors_of(self, e: Expr) -> range:
        """The vectors of a tile for which the value of `e` may differ."""
        return range(self.context.vectors if self.context.vector in free(e) else 1)

    def type_of(self, e: Expr, base: str | None = None) -> Type:
        """The type of the value of `e` here."""
        wide = self.context.vector in free(e)
        kind = base or {"f": "f", "i": "i", "b": "m"}[e.kind]
        return Type(kind, self.context.lanes if wide else 1)  # type: ignore[arg-type]


def size_name(symbol: str) -> str:
    """The variable that holds the extent of an axis."""
    return f"n_{symbol}"
