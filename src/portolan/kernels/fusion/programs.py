"""A chain as a kernel: its program in the kernels' tree, and how its arguments and results are reshaped for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from portolan.core.carried import Carried
from portolan.core.extensions import domain
from portolan.core.target import Target
from portolan.kernels.candidates import default
from portolan.kernels.embed.carry import about
from portolan.kernels.fusion import nodes
from portolan.kernels.fusion.chains import Chain, arguments
from portolan.kernels.fusion.elements import ALONG, ELEMENTWISE, Writer
from portolan.kernels.fusion.piece import Fresh, Piece
from portolan.kernels.fusion.spaces import Joined, Shape, joined
from portolan.kernels.lower.nest import groups
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.tree import Expr, Idx, Load, Num, Program, Tensor, walk
from portolan.kernels.tune import source
from portolan.kernels.verify import Judge, odd_cases
from portolan.worker.session import Worker

if TYPE_CHECKING:
    import onnx

#: Parts of a kernel's expressions, each counted as often as it is used.
_MOST_PARTS = 1500


@dataclass(frozen=True)
class Fused(Piece):
    """A kernel that computes a chain.

    Attributes:
        program: the kernel; its name says what it computes, so equal chains are one kernel.
        chain: the nodes.
        numbers: constants of one element that the chain reads.
        given, results: for each argument and result, the sizes to reshape the graph's tensor to and from; None where
            it is taken as it is.
    """

    program: Program
    chain: Chain
    numbers: Mapping[str, float]
    given: tuple[tuple[int, ...] | None, ...]
    results: tuple[tuple[int, ...] | None, ...]

    @property
    def name(self) -> str:
        """Of the operator: what it computes, hashed."""
        return self.program.name

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """What it replaces."""
        return self.chain.nodes

    @property
    def inputs(self) -> Sequence[str]:
        """What it reads."""
        return self.chain.inputs

    @property
    def outputs(self) -> Sequence[str]:
        """What it gives."""
        return self.chain.outputs

    def moved(self) -> float:
        """What goes from node to node; a free size counts as one."""
        return float(prod([s if isinstance(s, int) else 1 for s in self.chain.space])) * (len(self.nodes) - 1)

    def operator(self) -> Carried:
        """What the operator takes and gives."""
        return about(self.program, domain(self.name))

    def code(self, target: Target, shapes: Mapping[str, Shape]) -> str:
        """The kernel in C."""
        return source(self.program, self._schedules(target, shapes))

    def check(self, path: Path, worker: Worker, target: Target, shapes: Mapping[str, Shape]) -> None:
        """Compares it with the oracle at odd sizes."""
        cases = odd_cases(self.program, self._schedules(target, shapes)[0], np.random.default_rng(0))
        Judge(self.program, cases, worker).error(self.name, path)

    def calls(self, graph: onnx.GraphProto, fresh: Fresh) -> list[onnx.NodeProto]:
        """The operator in the graph."""
        return nodes.calls(self, graph, fresh)

    def function(self, imports: Sequence[onnx.OperatorSetIdProto]) -> onnx.FunctionProto:
        """Its body."""
        return nodes.function(self, imports)

    def _schedules(self, target: Target, shapes: Mapping[str, Shape]) -> list[Schedule]:
        free = {s: 1 for shape in shapes.values() for s in shape if isinstance(s, str)}
        wanted = sizes(self, shapes, free)
        return [default(self.program, group, target, wanted) for group in groups(self.program)]


def fused(chain: Chain, shapes: Mapping[str, Shape], numbers: Mapping[str, float]) -> Fused | None:
    """The kernel of a chain; None where its shapes cannot be brought into the kernel's, or it is too large."""
    tensors = [shapes[name] for name in (*chain.inputs, *chain.outputs)]
    runs = joined(chain.space, tensors, chain.reduces)
    ways = [_reshaped(runs, shapes[name]) for name in chain.inputs]
    back = [_restored(runs, shapes[name]) for name in chain.outputs]
    if not runs.runs or any(w is None for w in (*ways, *back)):
        return None
    inputs = tuple(Tensor(f"x{n}", _axes(runs, shapes[name]), "f32") for n, name in enumerate(chain.inputs))
    values = _values(chain, runs, shapes, numbers)
    if values is None:
        return None
    axes = tuple(_symbol(n) for n in range(len(runs.runs)))
    many = len(values) > 1
    outputs = tuple(Tensor(f"out{n}" if many else "out", axes, "f32") for n in range(len(values)))
    program = Program("fused", inputs, outputs, (), values)
    program = replace(program, name=f"fused_{_digest(program)}")
    given = tuple(w[0] if w else None for w in ways)
    known = {name: numbers[name] for node in chain.nodes for name in arguments(node) if name in numbers}
    return Fused(program, chain, known, given, tuple(b[0] if b else None for b in back))


def _digest(program: Program) -> str:
    return hashlib.sha256(repr((program.inputs, program.outputs, program.values)).encode()).hexdigest()[:12]


def _symbol(number: int) -> str:
    return f"a{number}"


def _axes(runs: Joined, shape: Shape) -> tuple[str | int, ...]:
    return tuple(1 if n is None else _symbol(n) for n in runs.axes(shape))


def _index(axis: str | int) -> Expr:
    return Idx(axis) if isinstance(axis, str) else Num(0, "i")


Way = tuple[tuple[int, ...] | None]


def _reshaped(runs: Joined, shape: Shape) -> Way | None:
    """What to reshape an argument to (a tuple of it, or of None for as it is); None where numbers cannot say it."""
    if len(runs.axes(shape)) == len(shape):
        return (None,)
    target = runs.target(shape)
    return None if target is None else (tuple(target),)


def _restored(runs: Joined, shape: Shape) -> Way | None:
    """What to reshape a result to, likewise."""
    if len(runs.runs) == len(shape):
        return (None,)
    if sum(isinstance(s, str) for s in shape) > 1:
        return None
    return (tuple(-1 if isinstance(s, str) else s for s in shape),)


def _values(
    chain: Chain, runs: Joined, shapes: Mapping[str, Shape], numbers: Mapping[str, float]
) -> tuple[Expr, ...] | None:
    last = _symbol(len(runs.runs) - 1)
    writer = Writer((last, last) if chain.reduces else None, numbers)
    found: dict[str, Expr] = {
        name: Load(f"x{n}", tuple(map(_index, _axes(runs, shapes[name]))), "f") for n, name in enumerate(chain.inputs)
    }
    for node in chain.nodes:
        args = [found[n] if n in found else Num(numbers[n], "f") for n in arguments(node)]
        value = (ELEMENTWISE.get(node.op_type) or ALONG[node.op_type])(writer, node, args)
        if not _small(value):
            return None
        found[node.output[0]] = value
    return tuple(found[name] for name in chain.outputs)


def _small(value: Expr) -> bool:
    return all(number < _MOST_PARTS for number, _ in enumerate(walk(value)))


def sizes(fused: Fused, shapes: Mapping[str, Shape], free: Mapping[str, int]) -> dict[str, int]:
    """The size of each of the kernel's axes, with free sizes as given."""
    found: dict[str, int] = {}
    runs = joined(
        fused.chain.space, [shapes[n] for n in (*fused.chain.inputs, *fused.chain.outputs)], fused.chain.reduces
    )
    for number, run in enumerate(runs.runs):
        total = 1
        for d in run:
            size = fused.chain.space[d]
            total *= size if isinstance(size, int) else free.get(size, 1)
        found[_symbol(number)] = total
    return found
