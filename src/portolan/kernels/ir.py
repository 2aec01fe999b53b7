"""The loop program: what every printer prints. A few kinds of statement over expressions with a type.

Floats are 32 bits wide, integers 32 bits in vectors and 64 bits alone (they are places, mostly). A mask is a truth
value, or one for each lane.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Base = Literal["f", "i", "m"]
BASES: Mapping[str, Base] = {"f32": "f", "f16": "f", "bf16": "f", "i8": "i", "i32": "i"}
"""What elements of a type are computed as."""


@dataclass(frozen=True)
class Type:
    """Base type and lanes; one lane is no vector."""

    base: Base
    lanes: int = 1


PLACE = Type("i", 1)
FLAG = Type("m", 1)


@dataclass(frozen=True)
class Lit:
    """A number."""

    value: float | int
    type: Type = PLACE


@dataclass(frozen=True)
class Ref:
    """A name: a size, a loop variable, a value or an accumulator."""

    name: str
    type: Type = PLACE


@dataclass(frozen=True)
class Do:
    """An operation on expressions of one type, but for `splat`, `iota`, `select` and conversions."""

    op: str
    args: tuple[X, ...]
    type: Type


@dataclass(frozen=True)
class Read:
    """Elements of an array or a buffer, as the type they are computed in.

    Attributes:
        array: its name.
        dtype: what it holds.
        offset: of the first element, in elements.
        mode: `plain` (lanes one after another), `strided` (lanes `args[0]` apart), `guarded` (lanes of the row that
            begins at `offset`, from place `args[0]` upwards, each kept inside of `args[1]`), `reversed` (the same
            downwards), or `gather` (each lane at `offset`
            plus the sum of pairs of index lanes and strides in `args`).
        args: as the mode says.
    """

    array: str
    dtype: str
    offset: X
    type: Type
    mode: str = "plain"
    args: tuple[X, ...] = ()


X = Lit | Ref | Do | Read


@dataclass(frozen=True)
class Let:
    """A name for a value that does not change."""

    name: str
    value: X


@dataclass(frozen=True)
class Acc:
    """A name for a value that `Update` changes."""

    name: str
    value: X


@dataclass(frozen=True)
class Update:
    """A new value for an accumulator."""

    name: str
    value: X


@dataclass(frozen=True)
class Write:
    """Stores lanes one after another, or `stride` apart."""

    array: str
    dtype: str
    offset: X
    value: X
    stride: X | None = None


@dataclass(frozen=True)
class Fetch:
    """Asks for an element that will be read soon. It changes no value, and a printer may leave it out."""

    array: str
    offset: X


@dataclass(frozen=True)
class Barrier:
    """Where all threads of a group wait for each other."""


@dataclass(frozen=True)
class Alloc:
    """A buffer of numbers: on the stack, shared by a group (constant sizes), or part of the caller's workspace."""

    name: str
    base: Base
    size: X
    space: Literal["stack", "shared", "workspace"]


@dataclass(frozen=True)
class Rank:
    """Puts the `count` scores at `scores + start` among the `n` smallest kept in `best` and `places`."""

    best: str
    places: str
    offset: X
    n: int
    scores: str
    start: X
    count: X
    first: X


@dataclass(frozen=True)
class Turn:
    """Turns f32 rows into columns: `to[c * to_row + r] = source[r * source_row + c]`, for all rows and columns."""

    to: str
    to_offset: X
    to_row: X
    source: str
    source_offset: X
    source_row: X
    rows: X
    columns: X


@dataclass(frozen=True)
class For:
    """A loop; `note` says what it is for."""

    var: str
    start: X
    stop: X
    step: int
    body: tuple[Statement, ...]
    note: str = ""


@dataclass(frozen=True)
class If:
    """Statements under a condition."""

    condition: X
    body: tuple[Statement, ...]
    other: tuple[Statement, ...] = ()


Statement = Let | Acc | Update | Write | Fetch | Barrier | Alloc | Rank | Turn | For | If


@dataclass(frozen=True)
class Variant:
    """One way to do a task: allowed where `when` holds (None: always).

    Attributes:
        together: how many tasks in a row are the threads of one group, with a memory of its own; 0 for none.
    """

    when: X | None
    tasks: X
    body: tuple[Statement, ...]
    together: int = 0


@dataclass(frozen=True)
class Nest:
    """A loop nest that makes some of the results; the first variant that is allowed does it."""

    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Array:
    """An argument or a result: extents are sizes by name, or numbers."""

    name: str
    dtype: str
    axes: tuple[str | int, ...]


@dataclass(frozen=True)
class Loops:
    """A whole kernel as loops.

    Attributes:
        sizes: the names of sizes, in the order that the function takes them.
    """

    name: str
    sizes: tuple[str, ...]
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    nests: tuple[Nest, ...]
    lanes: int = 1


def add(a: X, b: X) -> X:
    """Sum of two places."""
    if isinstance(a, Lit) and isinstance(b, Lit):
        return Lit(int(a.value) + int(b.value))
    if isinstance(a, Lit) and a.value == 0:
        return b
    if isinstance(b, Lit) and b.value == 0:
        return a
    return Do("add", (a, b), PLACE)


def mul(a: X, b: X) -> X:
    """Product of two places."""
    if isinstance(a, Lit) and isinstance(b, Lit):
        return Lit(int(a.value) * int(b.value))
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Lit) and one.value in (0, 1):
            return Lit(0) if one.value == 0 else other
    return Do("mul", (a, b), PLACE)


def sub(a: X, b: X) -> X:
    """Difference of two places."""
    if isinstance(b, Lit):
        return add(a, Lit(-int(b.value)))
    return Do("sub", (a, b), PLACE)


def least(a: X, b: X) -> X:
    """The smaller of two places."""
    return a if a == b else Do("minimum", (a, b), PLACE)


def most(a: X, b: X) -> X:
    """The larger of two places."""
    return a if a == b else Do("maximum", (a, b), PLACE)


def ceil_div(a: X, by: int) -> X:
    """`a / by`, rounded up."""
    return a if by == 1 else Do("floordiv", (add(a, Lit(by - 1)), Lit(by)), PLACE)


def product(parts: Sequence[X]) -> X:
    """All multiplied."""
    result: X = Lit(1)
    for part in parts:
        result = mul(result, part)
    return result


def statements(body: Sequence[Statement]) -> Iterator[Statement]:
    """All statements, inner ones too."""
    for s in body:
        yield s
        if isinstance(s, For):
            yield from statements(s.body)
        elif isinstance(s, If):
            yield from statements((*s.body, *s.other))


@dataclass
class Names:
    """Fresh names."""

    used: dict[str, int] = field(default_factory=dict)

    def new(self, stem: str) -> str:
        """`stem` and a number."""
        number = self.used.get(stem, 0)
        self.used[stem] = number + 1
        return f"{stem}_{number}"
