"""Chains of operators that one kernel can compute: neighbours in the graph over one space of indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from portolan.kernels.fusion.elements import ALONG, ELEMENTWISE
from portolan.kernels.fusion.spaces import Shape, aligned, within

if TYPE_CHECKING:
    import onnx

_LEAST, _MOST = 2, 24
#: Operators along the last axis in one chain: each uses what is before it several times.
_ALONG = 2


@dataclass(frozen=True)
class Chain:
    """Nodes that become one.

    Attributes:
        nodes: in the order of the graph.
        inputs: tensors from outside of it that are no numbers.
        outputs: tensors that others read.
        space: the sizes over which all is computed.
        reduces: whether something works along the last axis.
    """

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    space: Shape
    reduces: bool


@dataclass
class _Group:
    members: set[int] = field(default_factory=set)
    space: Shape = ()
    reduces: bool = False


class Finder:
    """Finds the chains of a graph.

    Args:
        graph: nodes in topological order.
        shapes: of f32 tensors.
        numbers: constants of one element: they are written into kernels.
    """

    def __init__(self, graph: onnx.GraphProto, shapes: Mapping[str, Shape], numbers: Mapping[str, float]) -> None:
        self.nodes, self.shapes, self.numbers = list(graph.node), shapes, numbers
        self._producer = {name: n for n, node in enumerate(self.nodes) for name in node.output if name}
        self._results = {value.name for value in graph.output}
        self._above: list[int] = []
        self._groups: dict[int, _Group] = {}

    def chains(self) -> list[Chain]:
        """Chains of at least two nodes, in the order of their last nodes."""
        for number, node in enumerate(self.nodes):
            before = [self._producer[name] for name in _read(node) if name in self._producer]
            above = 0
            for other in before:
                above |= self._above[other] | (1 << other)
            self._above.append(above)
            if self._usable(node):
                self._take(number)
        distinct = {id(group): group for group in self._groups.values()}.values()
        found = [c for g in distinct if (c := self._chain(g)) is not None]
        return sorted(found, key=lambda c: self._producer[c.outputs[-1]])

    def _usable(self, node: onnx.NodeProto) -> bool:
        """Whether the kernels' tree has the operator, on tensors whose shapes are known."""
        if (
            node.domain not in ("", "ai.onnx")
            or len([o for o in node.output if o]) != 1
            or any(a.g.node for a in node.attribute)
        ):
            return False
        names = arguments(node)
        tensors = [n for n in names if n not in self.numbers]
        if not tensors or node.output[0] not in self.shapes:
            return False
        if node.op_type in ELEMENTWISE:
            return all(n in self.shapes for n in tensors)
        return node.op_type in ALONG and self._along(node)

    def _along(self, node: onnx.NodeProto) -> bool:
        """Whether a node works along the last axis, and leaves that axis in its result."""
        shape = self.shapes.get(node.input[0])
        if shape is None or len(shape) < 1 or shape[-1] == 1:
            return False
        values = {a.name: a for a in node.attribute}
        if node.op_type.startswith("Reduce"):
            keeps = values["keepdims"].i if "keepdims" in values else 1
            return bool(keeps) and aligned(self.shapes[node.output[0]], len(shape)) == (*shape[:-1], 1)
        axis = values["axis"].i if "axis" in values else -1
        scales = [n for n in node.input[1:] if n]
        return axis in (-1, len(shape) - 1) and all(self.shapes.get(n) == shape[-1:] for n in scales)

    def _take(self, number: int) -> None:
        """Puts a node into the groups before it where they stay one piece, else into one of its own."""
        node = self.nodes[number]
        group = _Group({number}, self._space(node), node.op_type in ALONG)
        for name in node.input:
            other = self._groups.get(self._producer.get(name, -1))
            if other is None or other is group or number in other.members:
                continue
            if (wider := self._together(group, other)) is not None:
                group = wider
        for member in group.members:
            self._groups[member] = group

    def _space(self, node: onnx.NodeProto) -> Shape:
        return self.shapes[node.input[0] if node.op_type in ALONG else node.output[0]]

    def _together(self, a: _Group, b: _Group) -> _Group | None:
        small, space = sorted((a.space, b.space), key=lambda s: (len(s), [x != 1 for x in s]))
        members, reduces = a.members | b.members, a.reduces or b.reduces
        if len(members) > _MOST or not within(small, space):
            return None
        if sum(self.nodes[m].op_type in ALONG for m in members) > _ALONG:
            return None
        if reduces and any(g.reduces and aligned(g.space, len(space))[-1] != space[-1] for g in (a, b)):
            return None
        mask = sum(1 << m for m in members)
        for member in members:
            for name in _read(self.nodes[member]):
                producer = self._producer.get(name)
                if producer is not None and producer not in members and self._above[producer] & mask:
                    return None
        return _Group(members, space, reduces)

    def _chain(self, group: _Group) -> Chain | None:
        """The group as a chain; None where it is too short, or gives something that is not of its whole space."""
        order = sorted(group.members)
        nodes = [self.nodes[m] for m in order]
        if len([n for n in nodes if n.op_type != "Identity"]) < _LEAST:
            return None
        made = [n.output[0] for n in nodes]
        others = {name for number, n in enumerate(self.nodes) if number not in group.members for name in _read(n)}
        outputs = tuple(name for name in made if name in others or name in self._results)
        known = {*made, *self.numbers, ""}
        inputs = tuple(dict.fromkeys(name for n in nodes for name in arguments(n) if name not in known))
        rank = len(group.space)
        if not outputs or any(self.shapes[o] != group.space for o in outputs) or rank == 0:
            return None
        # Each axis of the space has to be one of an argument's: sizes come from there.
        full = [aligned(self.shapes[i], rank) for i in inputs]
        if any(size != 1 and all(f[d] == 1 for f in full) for d, size in enumerate(group.space)):
            return None
        return Chain(tuple(nodes), inputs, outputs, group.space, group.reduces)


def arguments(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node computes with: not the axes of a reduction, which are always the last."""
    return [n for n in node.input if n][: 1 if node.op_type.startswith("Reduce") else None]


def _read(node: onnx.NodeProto) -> Sequence[str]:
    """What a node reads, in its subgraphs too."""
    from portolan.passes._surgery import captured

    return [*[n for n in node.input if n], *captured(node)]


__all__ = ["Chain", "Finder", "arguments"]
