"""Triton: a program works on a block of tasks at once, one lane each.

What differs from lane to lane is a mask: a loop runs as often as the lane that needs it most, and a lane that is done
changes nothing any more. Memory of a lane's own lies in scratch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from portolan.kernels.ir import (
    Acc,
    Alloc,
    Do,
    Fetch,
    For,
    If,
    Let,
    Lit,
    Loops,
    Read,
    Ref,
    Statement,
    Update,
    Variant,
    Write,
    X,
    add,
    statements,
)
from portolan.kernels.lower.plain import plain
from portolan.kernels.plan import Plan, plan
from portolan.kernels.printers.files import shared
from portolan.kernels.printers.signs import INFIX, rounded
from portolan.kernels.printers.threads import Printer, ascii_name
from portolan.kernels.trouble import unprinted

_TYPES = {"f": "tl.float32", "i": "tl.int32", "m": "tl.int1"}
_OWN = ("floordiv", "mod", "int", "tanh", "pow", "sigmoid", "larger", "smaller", "minimum", "maximum")
_CALLS: Mapping[tuple[str, str], str] = {
    **{("f", name): f"tl.{name}" for name in ("exp", "log", "sqrt", "erf", "sin", "cos", "floor", "ceil", "abs")},
    **{(base, name): f"p_{name}" for base in "fi" for name in _OWN},
    ("i", "abs"): "tl.abs",
}


class TritonPrinter(Printer):
    """Prints loops as a Python module of Triton functions."""

    name = "Triton"

    def __init__(self) -> None:
        self.scratch: dict[str, X] = {}
        self.whole: set[str] = set()
        self.uniform: set[str] = set()
        self.masks = 0

    def source(self, loops: Loops) -> str:
        """The whole module."""
        self.loops = loops = plain(loops)
        parts = [
            self._variant(self.entry(n, v), variant)
            for n, nest in enumerate(loops.nests)
            for v, variant in enumerate(nest.variants)
        ]
        return "\n\n".join((shared("triton_head.txt"), *parts))

    def plan(self, loops: Loops) -> Plan:
        """How the module's functions are started: constant buffers lie in scratch too."""
        self.loops = loops
        names = {(n, v): self.entry(n, v) for n, nest in enumerate(loops.nests) for v in range(len(nest.variants))}
        return plan(loops, names, stack=True)

    def _variant(self, name: str, variant: Variant) -> str:
        self.scratch, total = {}, Lit(0)
        place: X = total
        for s in statements(variant.body):
            if isinstance(s, Alloc):
                self.scratch[s.name] = place
                place = add(place, s.size)
        self.whole = {s.name for s in statements(variant.body) if isinstance(s, Alloc) and s.base == "i"}
        self.uniform = {*self.loops.sizes}
        self.masks = 0
        arrays = [self.array(a.name) for a in (*self.loops.inputs, *self.loops.outputs)]
        numbers = [*self.loops.sizes, "tasks"]
        fixed = ", ".join(f'"{n}"' for n in numbers)
        head = f"@triton.jit(do_not_specialize=[{fixed}])\n"
        head += f"def {name}({', '.join((*arrays, 'scratch', *numbers))}, LANES: tl.constexpr):\n"
        begun = (
            "    task = tl.program_id(0) * LANES + tl.arange(0, LANES)\n    zero = task * 0\n    on = task < tasks\n"
        )
        return head + begun + "".join(f"    {line}\n" for line in self._block(variant.body, "on"))

    def _block(self, body: Sequence[Statement], on: str) -> list[str]:
        return [line for s in body for line in self._statement(s, on)]

    def _statement(self, s: Statement, on: str) -> list[str]:
        match s:
            case Let(name=name, value=value):
                if self._same(value):
                    self.uniform.add(name)
                return [f"{name} = {self.x(value, on)}"]
            case Acc(name=name, value=value):
                kind = _TYPES[value.type.base]
                return (
                    [f"{name} = tl.zeros((LANES,), {kind}) + {self.x(value, on)}"]
                    if value.type.base != "m"
                    else [f"{name} = (zero + {int(bool(getattr(value, 'value', 0)))}) > 0"]
                )
            case Update(name=name, value=value):
                return [f"{name} = tl.where({on}, {self.x(value, on)}, {name})"]
            case Write():
                return self._write(s, on)
            case Alloc() | Fetch():
                return []
            case If(condition=condition, body=body, other=other):
                mask = self._mask()
                holds = f"(tl.where({self.x(condition, on)}, 1, 0) + zero)"
                lines = [f"{mask} = {on} & ({holds} != 0)", *self._block(body, mask)]
                if other:
                    rest = self._mask()
                    lines += [f"{rest} = {on} & ({holds} == 0)", *self._block(other, rest)]
                return lines
            case For():
                return self._loop(s, on)
            case _:
                raise unprinted(f"`{type(s).__name__}`", self.name)

    def _mask(self) -> str:
        self.masks += 1
        return f"on_{self.masks}"

    def _loop(self, s: For, on: str) -> list[str]:
        start, stop = self.x(s.start, on), self.x(s.stop, on)
        if self._same(s.start) and self._same(s.stop):
            self.uniform.add(s.var)
            return [f"for {s.var} in range({start}, {stop}, {s.step}):", *self._inner(s.body, on)]
        mask, turn = self._mask(), f"{s.var}_turn"
        count = f"{s.var}_count"
        return [
            f"{s.var}_from = {start} + zero",
            f"{s.var}_to = {stop} + zero",
            f"{count} = tl.max(tl.where({on}, ({s.var}_to - {s.var}_from + {s.step - 1}) // {s.step}, 0), axis=0)",
            f"for {turn} in range(0, {count}):",
            f"    {s.var} = {s.var}_from + {turn} * {s.step}",
            f"    {mask} = {on} & ({s.var} < {s.var}_to)",
            *self._inner(s.body, mask),
        ]

    def _inner(self, body: Sequence[Statement], on: str) -> list[str]:
        return [f"    {line}" for line in self._block(body, on)] or ["    pass"]

    def _write(self, s: Write, on: str) -> list[str]:
        value, place = self.x(s.value, on), self._place(s.array, s.offset, on)
        if s.array in self.whole:
            value = f"({value} + zero).to(tl.float32, bitcast=True)"
        lines = [f"tl.store({place}, {value}, mask={on})"]
        # Another layout may read it in another thread of the program.
        return [*lines, "tl.debug_barrier()"] if s.array in self.scratch else lines

    def _place(self, array: str, offset: X, on: str) -> str:
        if array in self.scratch:
            return f"scratch + (({self.x(add(self.scratch[array], offset), on)}) * tasks + task)"
        return f"{self.array(array)} + ({self.x(offset, on)} + zero)"

    def array(self, name: str) -> str:
        """The variable that holds an array."""
        return f"a_{ascii_name(name)}"

    def _same(self, x: X) -> bool:
        """Whether a value is the same in all lanes."""
        match x:
            case Lit():
                return True
            case Ref(name=name):
                return name in self.uniform
            case Do(args=args):
                return all(map(self._same, args))
            case _:
                return False

    def x(self, x: X, on: str) -> str:
        """An expression; reads are masked by `on`."""
        match x:
            case Lit():
                return self._literal(x)
            case Ref(name=name):
                return name
            case Read():
                return self._read(x, on)
            case Do():
                return self._do(x, [self.x(a, on) for a in x.args])

    def _read(self, x: Read, on: str) -> str:
        if x.type.lanes > 1:
            raise unprinted("vectors", self.name)
        found = f"tl.load({self._place(x.array, x.offset, on)}, mask={on}, other=0)"
        if x.array in self.whole:
            return f"{found}.to(tl.int32, bitcast=True)"
        return found if x.dtype in ("f32", "i32") else f"{found}.to({_TYPES[x.type.base]})"

    def _do(self, x: Do, args: list[str]) -> str:
        base = x.args[0].type.base
        match x.op:
            case "splat":
                return args[0]
            case "select":
                return f"tl.where({', '.join(args)})"
            case "and" | "or":
                return f"({args[0]} {'&' if x.op == 'and' else '|'} {args[1]})"
            case "not":
                return f"(({args[0]}) == 0)"
            case "neg" | "invert":
                return f"({'-' if x.op == 'neg' else '~'}{args[0]})"
            case "float":
                return f"({args[0]} * 1.0)"
            case op if op in INFIX:
                return f"({args[0]} {INFIX[op]} {args[1]})"
            case op if (base, op) in _CALLS:
                return f"{_CALLS[base, op]}({', '.join(args)})"
            case op:
                raise unprinted(f"`{op}`", self.name)

    def _literal(self, x: Lit) -> str:
        if x.type.base == "m":
            return str(bool(x.value))
        if x.type.base == "i":
            return str(int(x.value))
        value = rounded(x)
        return f"({value!r})" if abs(value) < float("inf") else f'float("{value}")'
