"""One printer for all languages that look like C: loops without vectors, spelled by a table.

A language is a table (`Words`); what a table cannot say (where an element lies, how a function begins) is a method to
override. `threads.py` adds what GPUs have in common, `c.py` the vectors of gcc and clang.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from portolan.kernels.ir import (
    Acc,
    Alloc,
    Barrier,
    Do,
    Fetch,
    For,
    If,
    Let,
    Lit,
    Loops,
    Rank,
    Read,
    Ref,
    Statement,
    Turn,
    Type,
    Update,
    Write,
    X,
)
from portolan.kernels.printers.signs import INFIX, rounded
from portolan.kernels.trouble import unprinted

_PREFIX = {"neg": "-", "invert": "~", "not": "!"}


@dataclass(frozen=True)
class Words:
    """How a language spells what loops are made of. Braces in a template name its parts.

    Attributes:
        types: of a value, by base: `f`, `i`, `m`.
        holds: of an array's element, by dtype.
        calls: of an operation that is not a sign, by (base of its operands, name).
        widen: of an element of a narrow dtype, as the value it is computed as.
        narrow: of a value, as an element of a dtype.
        let, acc, loop, stack: of statements.
        barrier, shared: of waiting for a group of threads and of its memory; empty where there are no groups.
        select: of a choice.
        infinity, nan: of floats.
        truth: of False and True.
        large: of a whole number that 32 bits do not hold.
    """

    types: Mapping[str, str]
    holds: Mapping[str, str]
    calls: Mapping[tuple[str, str], str]
    widen: Mapping[str, str] = field(default_factory=dict)
    narrow: Mapping[str, str] = field(default_factory=dict)
    let: str = "const {type} {name} = {value};"
    acc: str = "{type} {name} = {value};"
    loop: str = "for ({type} {var} = {start}; {var} < {stop}; {var} += {step}) {{"
    stack: str = "{type} {name}[{size}];"
    barrier: str = ""
    shared: str = ""
    select: str = "({condition} ? {yes} : {no})"
    infix: Mapping[str, str] = field(default_factory=lambda: INFIX)
    infinity: str = "INFINITY"
    nan: str = "NAN"
    truth: tuple[str, str] = ("0", "1")
    large: str = "{}LL"


class CLikePrinter:
    """Prints loops without vectors in a language that looks like C."""

    words: ClassVar[Words]
    #: What people call the language.
    name: ClassVar[str]
    loops: Loops

    # Statements -----------------------------------------------------------------------------------------------------

    def block(self, body: Sequence[Statement], depth: int) -> str:
        """Statements, indented."""
        return "".join(f"{'  ' * depth}{line}\n" for s in body for line in self.statement(s))

    def statement(self, s: Statement) -> list[str]:
        """One statement as lines; inner blocks bring their own indentation."""
        w = self.words
        match s:
            case Let(name=name, value=value):
                return [w.let.format(type=self.type(value.type), name=name, value=self.x(value))]
            case Acc(name=name, value=value):
                return [w.acc.format(type=self.type(value.type), name=name, value=self.x(value))]
            case Update(name=name, value=value):
                return [f"{name} = {self.x(value)};"]
            case Write():
                return [self.write(s)]
            case Alloc(space="workspace") | Fetch():
                return []
            case Barrier() if w.barrier:
                return [w.barrier]
            case Alloc(name=name, base=base, size=size, space="shared") if w.shared:
                kind = self.words.holds["f32" if base == "f" else "i32"]
                return [w.shared.format(type=kind, name=name, size=self.x(size))]
            case Alloc(name=name, base=base, size=size, space="stack"):
                kind = self.words.holds["f32" if base == "f" else "i32"]
                return [w.stack.format(type=kind, name=name, size=self.x(size))]
            case For(var=var, body=body, note=note):
                said = f"  /* {note} */" if note else ""
                parts = {"start": self.x(s.start), "stop": self.x(s.stop), "step": s.step}
                head = w.loop.format(type=self.words.types["i"], var=var, **parts)
                return [f"{head}{said}", *self._inner(body), "}"]
            case If(condition=condition, body=body, other=other):
                lines = [f"if ({self.x(condition)}) {{", *self._inner(body)]
                return [*lines, "} else {", *self._inner(other), "}"] if other else [*lines, "}"]
            case Rank() | Turn() | Barrier() | Alloc():
                raise unprinted(f"`{type(s).__name__}`", self.name)

    def _inner(self, body: Sequence[Statement]) -> list[str]:
        return [f"  {line}" for s in body for line in self.statement(s)]

    def write(self, s: Write) -> str:
        """Stores one number."""
        if s.value.type.lanes > 1:
            raise unprinted("vectors", self.name)
        return f"{self.element(s.array, s.offset)} = {self.narrow(s.dtype, self.x(s.value))};"

    def narrow(self, dtype: str, value: str) -> str:
        """A value as an element of a dtype."""
        return self.words.narrow.get(dtype, "{}").format(value)

    # Expressions ----------------------------------------------------------------------------------------------------

    def type(self, type: Type) -> str:
        """The type of a value."""
        return self.words.types[type.base]

    def x(self, x: X) -> str:
        """An expression."""
        match x:
            case Lit():
                return self.literal(x)
            case Ref(name=name):
                return name
            case Read():
                return self.read(x)
            case Do():
                return self.do(x)

    def element(self, array: str, offset: X) -> str:
        """An element of an array or a buffer, to read or to store."""
        return f"{self.array(array)}[{self.x(offset)}]"

    def array(self, name: str) -> str:
        """The variable that holds an array or a buffer."""
        own = {a.name for a in (*self.loops.inputs, *self.loops.outputs)}
        return f"a_{name}" if name in own else name

    def read(self, x: Read) -> str:
        """An element, as what it is computed as."""
        if x.type.lanes > 1:
            raise unprinted("vectors", self.name)
        return self.words.widen.get(x.dtype, "{}").format(self.element(x.array, x.offset))

    def do(self, x: Do) -> str:
        """An operation."""
        base = x.args[0].type.base
        args = [self.x(a) for a in x.args]
        if x.op == "splat":
            return args[0]
        if x.op == "select":
            return self.words.select.format(condition=args[0], yes=args[1], no=args[2])
        if x.op in self.words.infix:
            return f"({args[0]} {self.words.infix[x.op]} {args[1]})"
        if x.op in ("and", "or"):
            return f"({args[0]} {'&' if x.op == 'and' else '|'} {args[1]})"
        if x.op in ("neg", "invert", "not"):
            return f"({_PREFIX[x.op]}{args[0]})"
        if (base, x.op) not in self.words.calls:
            raise unprinted(f"`{x.op}`", self.name)
        return f"{self.words.calls[base, x.op]}({', '.join(args)})"

    def literal(self, x: Lit) -> str:
        """A number, exact."""
        if x.type.base == "m":
            return self.words.truth[bool(x.value)]
        if x.type.base == "i":
            whole = int(x.value)
            return self.words.large.format(whole) if abs(whole) >= 2**31 else str(whole)
        value = rounded(x)
        if value != value:
            return self.words.nan
        if value in (float("inf"), float("-inf")):
            return self.words.infinity if value > 0 else f"(-{self.words.infinity})"
        return self.float(value)

    def float(self, value: float) -> str:
        """A finite float."""
        return f"{value.hex()}f" if value >= 0 else f"({value.hex()}f)"
