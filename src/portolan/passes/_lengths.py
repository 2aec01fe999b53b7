"""Where a length goes: which axes of which tensors hold one entry per position of a sequence.

It enters with some inputs, and every operator says where it goes on (`_lengths_rules`). On the way it meets what was
written for the full length: constants, which have to be cut, and sizes, which have to be set. Whether an operator that
mixes positions, such as a sum, gives the same without those at the end is not known here; see `trim`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from portolan.passes._surgery import Constants, Shape, captured, shapes, standard

if TYPE_CHECKING:
    import onnx


class Stuck(Exception):
    """An operator that a length cannot go through; the text says why, as a clause."""


class Wanted(Exception):
    """An axis of a tensor has to follow the length; so far nothing led it there."""

    def __init__(self, tensor: str, axis: int) -> None:
        super().__init__(tensor, axis)
        self.tensor, self.axis = tensor, axis


@dataclass(frozen=True)
class Cut:
    """A constant that has to be cut to the length.

    Attributes:
        node: the node that reads it, by its first output.
        place: among its inputs.
        axis: along which.
    """

    node: str
    place: int
    axis: int


@dataclass(frozen=True)
class Size:
    """A full length in the sizes that a Reshape or Expand reads, to be set to the length.

    Attributes:
        node: that node, by its first output.
        index: among the sizes.
    """

    node: str
    index: int


@dataclass(eq=False)
class Lengths:
    """What is known while operators are asked.

    Attributes:
        constants: the graph's.
        shapes: of every tensor whose number of axes is known.
        full: the length that the graph is written for.
        version: of the default operator set.
        wanted: axes of tensors that have to follow the length, known from an earlier look.
        axes: for each tensor that the length goes through, its axes that hold one entry per position.
        cuts: constants to cut.
        sizes: sizes to set.
    """

    constants: Constants
    shapes: dict[str, Shape]
    full: int
    version: int
    wanted: dict[str, frozenset[int]]
    axes: dict[str, frozenset[int]] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)

    def at(self, tensor: str) -> frozenset[int]:
        """The axes of a tensor that hold one entry per position."""
        return self.axes.get(tensor, frozenset())

    def rank(self, tensor: str) -> int:
        """The number of its axes."""
        return len(self.shape(tensor))

    def shape(self, tensor: str) -> Shape:
        """Its sizes, None where one is free."""
        if tensor not in self.shapes:
            raise Stuck(f"the number of axes of `{tensor}` is not known")
        return self.shapes[tensor]

    def put(self, tensor: str, axes: Iterable[int]) -> None:
        """Says which axes of a tensor hold one entry per position."""
        if found := frozenset(axes):
            self.axes[tensor] = found

    def meet(self, node: onnx.NodeProto, place: int, axis: int) -> None:
        """The input at `place` has to fit the length along `axis`: it has it, one entry there, or is cut.

        Raises:
            Wanted: it is computed, and where may be made to follow the length.
            Stuck: it is computed, and does not.
        """
        name = node.input[place]
        if axis in self.at(name) or self.shape(name)[axis] == 1:
            return
        if self.shape(name)[axis] != self.full or axis in self.wanted.get(name, ()):
            raise Stuck(f"{named(node)} combines it with `{name}`, whose length is its own")
        if name not in self.constants:
            raise Wanted(name, axis)
        self.cuts.append(Cut(node.output[0], place, axis))


def named(node: onnx.NodeProto) -> str:
    """A node in a sentence."""
    return f"{node.op_type} `{node.name or node.output[0]}`"


def follow(graph: onnx.ModelProto, constants: Constants, inputs: Iterable[str], axis: int, full: int) -> Lengths:
    """Follows a length from the axis `axis` of the graph's `inputs` as far as it goes.

    Args:
        graph: with every weight an initializer and constants folded.
        constants: the graph's.
        inputs: names of inputs.
        axis: of each of them.
        full: the length that the graph is written for.

    Raises:
        Stuck: an operator does not let it through.
    """
    version = next((entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")), 1)
    wanted: dict[str, frozenset[int]] = {}
    sizes = shapes(graph)
    while True:
        found = Lengths(constants, sizes, full, version, wanted, {name: frozenset([axis]) for name in inputs})
        try:
            _walk(graph, found)
        except Wanted as more:  # a constant that it meets has the full length on an axis where nothing else has any
            wanted[more.tensor] = wanted.get(more.tensor, frozenset()) | {more.axis}
        else:
            return found


def _walk(graph: onnx.ModelProto, found: Lengths) -> None:
    from portolan.passes._lengths_rules import RULES

    for node in graph.graph.node:
        if captured(node) & found.axes.keys():
            raise Stuck(f"a body of {named(node)} uses it")
        if not any(found.at(name) for name in node.input) and node.output[0] not in found.wanted:
            continue
        rule = RULES.get(node.op_type) if standard(node) else None
        if rule is None:
            raise Stuck(f"no rule says what {named(node)} does with it")
        rule(found, node)
