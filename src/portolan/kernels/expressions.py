"""One Python expression of a kernel's body, as a tree. Nothing of the user's is executed here."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field

from portolan.errors import nearest
from portolan.kernels.build_tree import load_kind, op
from portolan.kernels.functions import FUNCTIONS, MONOIDS, OPS
from portolan.kernels.tree import Binder, Carry, Expr, Ext, Extent, Idx, Load, Num, Op, Ranked, Reduce, Scan, Tensor
from portolan.kernels.trouble import Place

_BINARY: dict[type[ast.operator], str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
    ast.FloorDiv: "floordiv",
    ast.Mod: "mod",
    ast.Pow: "pow",
    ast.LShift: "shl",
    ast.RShift: "shr",
    ast.BitAnd: "bitand",
    ast.BitOr: "bitor",
    ast.BitXor: "bitxor",
}
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
    ast.Eq: "eq",
    ast.NotEq: "ne",
}
_UNARY: dict[type[ast.unaryop], str] = {ast.USub: "neg", ast.Invert: "invert", ast.Not: "not"}
_KINDS = {"f": "a float", "i": "an integer", "b": "a truth value"}
_RANKED = ("smallest", "largest")


@dataclass(frozen=True)
class Pair:
    """What `smallest` and `largest` give: values, and where they were."""

    value: Expr
    index: Expr


@dataclass
class Reader:
    """Reads expressions in the names that are known at this point of the body.

    Attributes:
        tensors: arguments by name.
        axes: the axes of all annotations; a name here may be used as an index, its capital as an extent.
        locals: values given a name further up.
        constants: numbers of the module around the kernel.
        bound: indices that generators around this expression bring in, with their extents.
    """

    place: Place
    tensors: Mapping[str, Tensor]
    axes: frozenset[str]
    constants: Mapping[str, float | int]
    locals: dict[str, Expr | Pair] = field(default_factory=dict)
    bound: dict[str, Extent] = field(default_factory=dict)
    carries: int = 0

    def value(self, node: ast.expr) -> Expr:
        """The tree of `node`; a pair stands for its values."""
        found = self.any(node)
        return found.value if isinstance(found, Pair) else found

    def any(self, node: ast.expr) -> Expr | Pair:
        """The tree of `node`."""
        match node:
            case ast.Constant(value=bool() as value):
                return Num(value, "b")
            case ast.Constant(value=int() | float() as value):
                return self._number(node, value)
            case ast.Name(id=name):
                return self._name(node, name)
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
                return self._typed(node, _BINARY[type(sign)], self.value(left), self.value(right))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.value(operand)
            case ast.UnaryOp(op=sign, operand=operand):
                return self._typed(node, _UNARY[type(sign)], self.value(operand))
            case ast.BoolOp(op=joint, values=values):
                name = "and" if isinstance(joint, ast.And) else "or"
                return self._folded(node, name, [self.value(v) for v in values])
            case ast.Compare():
                return self._compare(node)
            case ast.IfExp(test=test, body=body, orelse=other):
                return self._typed(node, "where", self.value(test), self.value(body), self.value(other))
            case ast.Subscript(value=ast.Name(id=name), slice=index):
                return self._load(node, name, list(index.elts) if isinstance(index, ast.Tuple) else [index])
            case ast.Call(func=ast.Name(id=name)):
                return self._call(node, name)
            case _:
                raise self.place.fault(
                    node,
                    f"`{ast.unparse(node)}` is not part of the language",
                    "write arithmetic, `A[i, k]`, element functions, and reductions such as `sum(... for k in K)`",
                )

    def _number(self, node: ast.expr, value: float | int) -> Num:
        if isinstance(value, int) and not -(2**31) <= value < 2**31:
            raise self.place.fault(node, f"`{value}` does not fit in 32 bits", f"write `{float(value)}`")
        return Num(value, "i" if isinstance(value, int) else "f")

    def _name(self, node: ast.Name, name: str) -> Expr | Pair:
        if name in self.locals:
            return self.locals[name]
        if name in self.bound or name in self.axes:
            return Idx(name)
        if name.isupper() and name.lower() in self.axes:
            return Ext(name.lower())
        if name in self.tensors:
            return self._bare(node, self.tensors[name])
        if name == "inf":
            return Num(float("inf"), "f")
        if name in self.constants:
            return self._number(node, self.constants[name])
        known = {*self.locals, *self.bound, *self.axes, *(a.upper() for a in self.axes), *self.tensors, *self.constants}
        raise self.place.fault(node, f"there is no index, argument or value named `{name}`", nearest(name, known))

    def _bare(self, node: ast.Name, tensor: Tensor) -> Expr:
        """An array's name alone: its element at its own axes, where those are names that differ."""
        names = [a for a in tensor.axes if isinstance(a, str)]
        if len(set(names)) != len(tensor.axes):
            axes = ", ".join(str(a) for a in tensor.axes)
            raise self.place.fault(
                node, f"`{tensor.name}` is a whole array", f"write one element: `{tensor.name}[{axes}]`"
            )
        return Load(tensor.name, tuple(Idx(a) for a in names), load_kind(tensor), node.lineno)

    def _typed(self, node: ast.expr, name: str, *args: Expr) -> Expr:
        function = OPS[name]
        wanted = function.takes if len(function.takes) == len(args) else function.takes * len(args)
        for arg, takes in zip(args, wanted, strict=True):
            fits = {"f": arg.kind in "fi", "i": arg.kind == "i", "b": arg.kind == "b", "n": arg.kind in "fi"}[takes]
            if not fits and name == "where" and takes == "n" and arg.kind == "b":
                continue
            if not fits:
                self._misfit(node, name, takes, arg)
        return op(name, *args)

    def _misfit(self, node: ast.expr, name: str, takes: str, arg: Expr) -> None:
        need = {"f": "a number", "n": "a number", "i": "integers", "b": "a truth value"}[takes]
        hints = {
            ("i", "f"): "write `int(...)` around it, which rounds toward zero",
            ("b", "f"): "write a comparison, such as `x > 0`",
            ("b", "i"): "write a comparison, such as `i > 0`",
            ("n", "b"): "write `where(condition, 1.0, 0.0)`",
            ("f", "b"): "write `where(condition, 1.0, 0.0)`",
        }
        hint = hints.get((takes, arg.kind))
        raise self.place.fault(node, f"`{ast.unparse(node)}`: `{name}` takes {need}, not {_KINDS[arg.kind]}", hint)

    def _folded(self, node: ast.expr, name: str, values: list[Expr]) -> Expr:
        result = values[0]
        for value in values[1:]:
            result = self._typed(node, name, result, value)
        return result

    def _compare(self, node: ast.Compare) -> Expr:
        sides = [self.value(n) for n in (node.left, *node.comparators)]
        for sign in node.ops:
            if type(sign) not in _COMPARE:
                raise self.place.fault(
                    node, f"`{ast.unparse(node)}` is not part of the language", "compare with < <= > >= =="
                )
        pairs = zip(node.ops, sides, sides[1:], strict=False)
        return self._folded(node, "and", [self._typed(node, _COMPARE[type(s)], a, b) for s, a, b in pairs])

    def _load(self, node: ast.Subscript, name: str, index: list[ast.expr]) -> Expr:
        if name not in self.tensors:
            if name in self.locals:
                raise self.place.fault(
                    node, f"`{name}` is a value and is not indexed", f"write `{name}`: it carries its axes"
                )
            raise self.place.fault(node, f"there is no argument named `{name}`", nearest(name, self.tensors))
        tensor = self.tensors[name]
        if len(index) != len(tensor.axes):
            axes = " ".join(str(a) for a in tensor.axes)
            raise self.place.fault(
                node,
                f"`{ast.unparse(node)}`: `{name}` has the axes `{axes}` and is given {len(index)}",
                f"write `{name}[{', '.join(str(a) for a in tensor.axes)}]`",
            )
        values = []
        for part in index:
            if isinstance(part, ast.Slice):
                raise self.place.fault(
                    part, f"`{ast.unparse(node)}` takes a slice", "write an index: values carry their axes"
                )
            value = self.value(part)
            if value.kind != "i":
                hint = f"write `int({ast.unparse(part)})`, which rounds toward zero"
                raise self.place.fault(part, f"`{ast.unparse(part)}` is {_KINDS[value.kind]}, no index", hint)
            values.append(value)
        return Load(name, tuple(values), load_kind(tensor), node.lineno)

    def _call(self, node: ast.Call, name: str) -> Expr | Pair:
        if node.keywords:
            raise self.place.fault(node, f"`{name}` takes no keywords", "give the arguments by their order")
        if name in _RANKED:
            return self._ranked(node, name == "largest")
        if name == "scan":
            return self._scan(node)
        if len(node.args) == 1 and isinstance(node.args[0], ast.GeneratorExp) and name in MONOIDS:
            return self._reduce(node, name, node.args[0])
        if name in ("max", "min") and len(node.args) > 1:
            return self._folded(node, f"{name}imum", [self.value(a) for a in node.args])
        if name in MONOIDS:
            given = f", not `{ast.unparse(node.args[0])}`" if node.args else ""
            raise self.place.fault(node, f"`{name}` reduces a generator{given}", f"write `{name}(A[i, k] for k in K)`")
        if name not in FUNCTIONS:
            known = {*FUNCTIONS, *MONOIDS, *_RANKED, "scan"}
            raise self.place.fault(node, f"there is no function named `{name}`", nearest(name, known))
        if len(node.args) != FUNCTIONS[name].arity:
            wanted = FUNCTIONS[name].arity
            raise self.place.fault(node, f"`{name}` takes {wanted} argument{'s' * (wanted > 1)}, not {len(node.args)}")
        return self._typed(node, name, *(self.value(a) for a in node.args))

    def _binders(self, node: ast.GeneratorExp) -> tuple[list[Binder], list[ast.expr]]:
        binders, conditions = [], []
        for part in node.generators:
            if not isinstance(part.target, ast.Name) or not part.target.id.islower():
                raise self.place.fault(node, f"`{ast.unparse(part.target)}` is no index", "write `for k in K`")
            extent = self.extent(part.iter, part.target.id)
            if part.target.id in self.tensors or part.target.id in self.locals:
                raise self.place.fault(node, f"`{part.target.id}` is a value already", "use another name for the index")
            binders.append(Binder(part.target.id, extent))
            conditions += part.ifs
        return binders, conditions

    def extent(self, node: ast.expr, index: str) -> Extent:
        """What a `for` runs over: `K`, or `range(3)`."""
        match node:
            case ast.Name(id=name) if name.isupper() and name.lower() in self.axes:
                return name.lower()
            case ast.Call(func=ast.Name(id="range"), args=[limit]):
                found = self.value(limit)
                if isinstance(found, Num) and found.kind == "i" and found.value >= 0:
                    return int(found.value)
                if isinstance(found, Ext):
                    return found.symbol
        known = ", ".join(f"`{a.upper()}`" for a in sorted(self.axes))
        raise self.place.fault(
            node, f"`{ast.unparse(node)}` is no extent", f"write `for {index} in` one of {known}, or `range(3)`"
        )

    def _reduce(self, node: ast.Call, monoid: str, generator: ast.GeneratorExp) -> Expr:
        binders, conditions = self._binders(generator)
        inside = self._inside({b.index: b.extent for b in binders})
        where = [inside.value(c) for c in conditions]
        for condition, value in zip(conditions, where, strict=True):
            if value.kind != "b":
                self._misfit(condition, "if", "b", value)
        parts = [generator.elt]
        if monoid == "softmean":
            if not isinstance(generator.elt, ast.Tuple) or len(generator.elt.elts) != 2:
                raise self.place.fault(node, "`softmean` takes pairs", "write `softmean((score, value) for j in J)`")
            parts = list(generator.elt.elts)
        body = [inside.value(p) for p in parts]
        boolean = monoid in ("any", "all")
        for part, value in zip(parts, body, strict=True):
            if (value.kind == "b") != boolean:
                self._misfit(part, monoid, "b" if boolean else "n", value)
        if monoid in ("logsumexp", "softmean"):
            body = [op("float", b) for b in body]
        kind = "b" if boolean else "i" if monoid.startswith("arg") else body[0].kind
        return Reduce(monoid, tuple(binders), self._conjunction(where), tuple(body), kind)

    def _conjunction(self, where: list[Expr]) -> Expr | None:
        result: Expr | None = None
        for condition in where:
            result = condition if result is None else Op("and", (result, condition), "b")
        return result

    def _inside(self, bound: Mapping[str, Extent]) -> Reader:
        more = {**self.bound, **bound}
        return Reader(self.place, self.tensors, self.axes, self.constants, self.locals, more, self.carries)

    def _ranked(self, node: ast.Call, largest: bool) -> Pair:
        name = "largest" if largest else "smallest"
        form = f"write `{name}(8, (... for j in J), r)`, with `r` an axis of the result"
        match node.args:
            case [count, ast.GeneratorExp() as generator, ast.Name(id=rank)]:
                number = self.value(count)
            case _:
                raise self.place.fault(node, f"`{name}` takes a number, a generator and a new index", form)
        if not isinstance(number, Num) or number.kind != "i" or not 1 <= number.value <= 1024:
            raise self.place.fault(node, f"`{name}` takes a whole number from 1 to 1024 as its first argument", form)
        if rank not in self.axes:
            raise self.place.fault(node, f"`{rank}` is no axis of the result", form)
        binders, conditions = self._binders(generator)
        if len(binders) != 1:
            raise self.place.fault(node, f"`{name}` ranks over one index", form)
        inside = self._inside({binders[0].index: binders[0].extent})
        where = self._conjunction([inside.value(c) for c in conditions])
        body = inside.value(generator.elt)
        if body.kind == "b":
            self._misfit(generator.elt, name, "n", body)
        body = op("float", body)
        n = int(number.value)
        return Pair(
            Ranked(n, largest, "value", binders[0], where, body, rank, "f"),
            Ranked(n, largest, "index", binders[0], where, body, rank, "i"),
        )

    def _scan(self, node: ast.Call) -> Expr:
        form = "write `scan(lambda h: a[t] * h + x[t], t)`"
        match node.args:
            case [ast.Lambda(args=ast.arguments(args=[ast.arg(arg=carry)]), body=body), ast.Name(id=axis)]:
                pass
            case _:
                raise self.place.fault(node, "`scan` takes a function of one value, and an index", form)
        if axis not in self.axes:
            raise self.place.fault(node, f"`{axis}` is no axis", form)
        if carry in self.axes or carry in self.tensors:
            raise self.place.fault(node, f"`{carry}` has a meaning already", "use another name for the carried value")
        unique = f"{carry}@{node.lineno}.{node.col_offset}"
        names = {**self.locals, carry: Carry(unique, "f")}
        inside = Reader(self.place, self.tensors, self.axes, self.constants, names, self.bound)
        step = inside.value(body)
        if step.kind == "b":
            self._misfit(body, "scan", "n", step)
        return Scan(unique, axis, op("float", step), "f")
