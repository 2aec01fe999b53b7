"""A decorated Python function, as a program. Its body is read from the syntax tree and never executed."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

from portolan.errors import nearest
from portolan.kernels.build_tree import KIND_OF_DTYPE, apart, op
from portolan.kernels.check import check
from portolan.kernels.expressions import Pair, Reader
from portolan.kernels.tree import Expr, Extent, Program, Ranked, Stages, Tensor, walk
from portolan.kernels.trouble import Place

_AXIS = re.compile(r"[a-z][a-z0-9_]*$")
_MAX_TENSORS = 64
_FORM = 'write `A: "i k"`, or with a type `A: "i k : f16"`'


@dataclass(frozen=True)
class _Header:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def axes(self) -> frozenset[str]:
        found = {a for t in (*self.inputs, *self.outputs) for a in t.axes if isinstance(a, str)}
        return frozenset(found)


def parse(node: ast.FunctionDef, path: str, constants: Mapping[str, float | int], source: str = "") -> Program:
    """The program that a function definition means.

    Args:
        node: the definition.
        path: the file that it stands in, for errors.
        constants: numbers that the body may name.
        source: its text.

    Raises:
        KernelError: it is not a kernel, or would read outside of its arrays.
    """
    place = Place(path, node.name)
    header = _header(node, place)
    body = _Body(Reader(place, {t.name: t for t in header.inputs}, header.axes, constants), header, place)
    for statement in node.body:
        body.read(statement)
    if body.values is None:
        raise place.fault(node, "it returns nothing", "end it with `return` and the value of one element of the result")
    outputs, values = zip(
        *(_fitted(o, v, place, body.line) for o, v in zip(header.outputs, body.values, strict=True)), strict=True
    )
    program = Program(
        node.name, header.inputs, tuple(outputs), tuple(body.stages), tuple(values), source, path, node.lineno
    )
    check(program, place, body.line)
    return program


def _header(node: ast.FunctionDef, place: Place) -> _Header:
    arguments = node.args
    if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.defaults:
        raise place.fault(node, "it takes arguments that are not plain", 'write each argument as `name: "axes"`')
    inputs = []
    for arg in (*arguments.posonlyargs, *arguments.args):
        axes, dtype = _annotation(arg.annotation, arg, f"the argument `{arg.arg}`", place)
        inputs.append(Tensor(arg.arg, axes, dtype or "f32"))
    if not inputs:
        raise place.fault(node, "it takes no arguments", _FORM)
    if len(inputs) > _MAX_TENSORS:
        raise place.fault(node, f"it takes {len(inputs)} arguments; {_MAX_TENSORS} are the most")
    if node.returns is None:
        raise place.fault(node, "it does not say which axes its result has", 'write `-> "i j":` after the arguments')
    several = isinstance(node.returns, ast.Tuple)
    parts = list(node.returns.elts) if isinstance(node.returns, ast.Tuple) else [node.returns]
    outputs = []
    for number, part in enumerate(parts):
        axes, dtype = _annotation(part, part, "the result", place)
        if any(isinstance(a, int) for a in axes) or len(set(axes)) != len(axes):
            raise place.fault(
                part, f"the result's axes `{ast.unparse(part)}` are not all names that differ", 'write `-> "i j"`'
            )
        outputs.append(Tensor(f"out{number}" if several else "out", axes, dtype))
    header = _Header(tuple(inputs), tuple(outputs))
    for tensor in inputs:
        if tensor.name in header.axes:
            raise place.fault(
                node, f"`{tensor.name}` is the name of an argument and of an axis", "give the argument another"
            )
    return header


def _annotation(node: ast.expr | None, where: ast.AST, what: str, place: Place) -> tuple[tuple[Extent, ...], str]:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        raise place.fault(where, f"{what} does not say which axes it has", _FORM)
    text, colon, dtype = node.value.partition(":")
    dtype = dtype.strip()
    if colon and dtype not in KIND_OF_DTYPE:
        raise place.fault(where, f"{what} has no type `{dtype}`", nearest(dtype, KIND_OF_DTYPE))
    axes: list[Extent] = []
    for word in text.split():
        if word.isdigit() and 0 < int(word) < 2**31:
            axes.append(int(word))
        elif _AXIS.match(word):
            axes.append(word)
        else:
            raise place.fault(
                where, f"{what} has an axis `{word}`", 'an axis is a lower-case name, or a number: `"i k 2"`'
            )
    return tuple(axes), dtype


class _Body:
    """The statements, read one after another."""

    def __init__(self, reader: Reader, header: _Header, place: Place) -> None:
        self.reader = reader
        self.header = header
        self.place = place
        self.stages: list[Stages] = []
        self.values: list[Expr] | None = None
        self.line = 0

    def read(self, statement: ast.stmt) -> None:
        """One statement at the top of the body."""
        if self.values is not None:
            raise self.place.fault(statement, "nothing may follow `return`")
        match statement:
            case ast.Expr(value=ast.Constant(value=str())):
                pass
            case ast.Assign(targets=[target], value=value):
                self._assign(target, value)
            case ast.Return(value=value) if value is not None:
                self.line = statement.lineno
                self.values = self._returned(value)
            case ast.For(target=ast.Name(id=index), iter=over, body=body):
                if statement.orelse:
                    raise self.place.fault(statement, "a `for` has no `else` here")
                self._stage(statement, index, over, body)
            case _:
                raise self.place.fault(
                    statement,
                    f"`{ast.unparse(statement).splitlines()[0]}` is not part of the language",
                    "write `name = value` and `return value`; `for s in S:` remakes an argument stage by stage",
                )

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        match target:
            case ast.Name(id=name):
                self._free(target, name)
                self.reader.locals[name] = self.reader.any(value)
            case ast.Tuple(elts=[ast.Name(id=first), ast.Name(id=second)]):
                found = self.reader.any(value)
                if not isinstance(found, Pair):
                    raise self.place.fault(target, "only `smallest` and `largest` give two values", "give one name")
                for name in (first, second):
                    self._free(target, name)
                self.reader.locals[first], self.reader.locals[second] = found.value, found.index
            case _:
                raise self.place.fault(
                    target, f"`{ast.unparse(target)}` cannot be given a value", "write `name = value`"
                )

    def _free(self, node: ast.AST, name: str) -> None:
        if name in self.reader.tensors:
            raise self.place.fault(node, f"`{name}` is an argument", "give the value another name")
        results = {a for t in self.header.outputs for a in t.axes}
        if name in results or (name.isupper() and name.lower() in self.reader.axes):
            raise self.place.fault(node, f"`{name}` is an index or an extent", "give the value another name")

    def _returned(self, value: ast.expr) -> list[Expr]:
        wanted = len(self.header.outputs)
        if isinstance(value, ast.Tuple):
            values = [self.reader.value(v) for v in value.elts]
        else:
            found = self.reader.any(value)
            pair = isinstance(found, Pair)
            values = [found.value, found.index] if isinstance(found, Pair) else [found]
            if pair and wanted == 1:
                values = values[:1]
        if len(values) != wanted:
            raise self.place.fault(value, f"it returns {len(values)} values, and its annotation names {wanted}")
        return values

    def _stage(self, node: ast.For, index: str, over: ast.expr, body: list[ast.stmt]) -> None:
        extent = self.reader.extent(over, index)
        outer = dict(self.reader.locals)
        self.reader.bound[index] = extent
        for number, statement in enumerate(body):
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in self.reader.tensors:
                    if number + 1 < len(body):
                        raise self.place.fault(statement, f"nothing may follow the new `{name}` in its loop")
                    self._remade(statement, name, index, extent, self.reader.value(value))
                case ast.Assign(targets=[target], value=value):
                    self._assign(target, value)
                case _:
                    raise self.place.fault(statement, "a loop over stages holds only assignments")
        if not self.stages or self.stages[-1].index != index:
            names = ", ".join(f"`{n}`" for n in self.reader.tensors)
            raise self.place.fault(node, "a loop over stages has to remake an argument", f"assign one of {names} in it")
        del self.reader.bound[index]
        self.reader.locals = outer

    def _remade(self, node: ast.stmt, name: str, index: str, extent: Extent, value: Expr) -> None:
        tensor = self.reader.tensors[name]
        if any(isinstance(a, int) for a in tensor.axes) or len(set(tensor.axes)) != len(tensor.axes):
            raise self.place.fault(
                node, f"`{name}` has axes without names of their own", "only named axes can be remade"
            )
        axes = frozenset(str(a) for a in tensor.axes)
        if self.stages:
            raise self.place.fault(node, "only one loop over stages is possible", "split the kernel in two")
        if tensor.dtype != "f32":
            raise self.place.fault(node, f"`{name}` is {tensor.dtype}; stages keep f32", f'write `{name}: "... : f32"`')
        self.stages.append(Stages(name, index, extent, apart(op("float", value), axes | {index})))


def _fitted(output: Tensor, value: Expr, place: Place, line: int) -> tuple[Tensor, Expr]:
    """The result's type, and its value as a number."""
    if value.kind == "b":
        raise place.fault(line, "the result is a truth value", "write `where(condition, 1.0, 0.0)`")
    dtype = output.dtype or ("i32" if value.kind == "i" else "f32")
    if value.kind == "f" and KIND_OF_DTYPE[dtype] == "i":
        raise place.fault(
            line, f"the result is a float, and its annotation says {dtype}", "write `int(...)`, or another type"
        )
    if value.kind == "i" and KIND_OF_DTYPE[dtype] == "f":
        value = op("float", value)
    axes = frozenset(str(a) for a in output.axes)
    value = apart(value, axes)
    ranks = {e.rank for e in walk(value) if isinstance(e, Ranked)}
    for rank in ranks - axes:
        raise place.fault(line, f"`{rank}` is no axis of this result", f'add it to the annotation: `-> "... {rank}"`')
    return Tensor(output.name, output.axes, dtype), value
