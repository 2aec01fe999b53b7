"""Writing a length into a graph: computed from a mask, inputs and constants cut to it, and sizes set to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from portolan.passes._lengths import Cut, Lengths, Size
from portolan.passes._surgery import Constants, attribute

if TYPE_CHECKING:
    import onnx

#: What every tensor that is put in is called first.
_PREFIX = "trim"


class Cutter:
    """Puts nodes into a graph that is folded.

    Args:
        graph: is changed.
        constants: the graph's.
    """

    def __init__(self, graph: onnx.ModelProto, constants: Constants) -> None:
        self._graph, self._constants = graph, constants
        self._version = next((e.version for e in graph.opset_import if e.domain in ("", "ai.onnx")), 1)
        self._taken = {name for node in graph.graph.node for name in node.output} | {_PREFIX}
        self._first: list[onnx.NodeProto] = []
        self._before: dict[str, list[onnx.NodeProto]] = {}
        self._cut: dict[tuple[str, int], str] = {}
        self._length = ""

    def measure(self, mask: str, padding: int, full: int | None, multiple: int) -> None:
        """Computes the length: up to the last position, in any row, that is no padding.

        Args:
            mask: an input of two axes, the second the positions.
            padding: its value where there is padding.
            full: the size of that axis, None where it is free.
            multiple: lengths are rounded up to one of these. With a row of nothing but padding it is the full one:
                what a model makes of that row may depend on it.
        """
        import numpy as np
        import onnx

        whole, kind = self._own, onnx.TensorProto.INT64
        if full is None:
            full_one = self._node("Gather", self._node("Shape", mask), whole("one", [1]))
            end = self._node("Add", self._node("Squeeze", full_one), whole("1", 1))
            places = self._node("Range", whole("1", 1), end, whole("1", 1))
        else:
            full_one, places = whole("full", [full]), whole("places", np.arange(1, full + 1))
        padded = self._node("Equal", self._node("Cast", mask, to=kind), whole("padding", padding))
        real = self._node("Cast", self._node("Not", padded), to=kind)
        last = self._reduced("ReduceMax", self._node("Mul", real, places), 1)
        longest, shortest = self._reduced("ReduceMax", last, 0), self._reduced("ReduceMin", last, 0)
        longest = self._node("Where", self._node("Equal", shortest, whole("none", 0)), full_one, longest)
        if multiple > 1:
            step = whole("multiple", multiple)
            more = self._node("Add", longest, whole("more", multiple - 1))
            longest = self._node("Min", self._node("Mul", self._node("Div", more, step), step), full_one)
        self._length = longest

    def shorten(self, inputs: Sequence[str], axis: int) -> None:
        """Cuts inputs to the length, for every node that reads them."""
        short = {name: self._sliced(name, axis) for name in inputs}
        for node in self._graph.graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = short.get(name, name)

    def fit(self, lengths: Lengths) -> None:
        """Cuts the constants and sets the sizes that `follow` found."""
        nodes = {node.output[0]: node for node in self._graph.graph.node if node.output}
        cuts: dict[tuple[str, int], list[Cut]] = {}
        for cut in lengths.cuts:
            cuts.setdefault((cut.node, cut.place), []).append(cut)
        for (name, place), found in cuts.items():
            for axis in dict.fromkeys(cut.axis for cut in found):
                nodes[name].input[place] = self._sliced(nodes[name].input[place], axis)
        sizes: dict[str, list[Size]] = {}
        for size in lengths.sizes:
            sizes.setdefault(size.node, []).append(size)
        for name, wanted in sizes.items():
            self._resize(nodes[name], [size.index for size in wanted], lengths)

    def finish(self) -> None:
        """Puts the new nodes where what they make is needed."""
        before = list(self._graph.graph.node)
        del self._graph.graph.node[:]
        self._graph.graph.node.extend(self._first)
        for node in before:
            self._graph.graph.node.extend(self._before.get(node.output[0] if node.output else "", ()))
            self._graph.graph.node.append(node)

    def _resize(self, node: onnx.NodeProto, indices: Sequence[int], lengths: Lengths) -> None:
        """Sets sizes that a node reads, in words that runtimes know beforehand (0, -1, 1) where there are any."""
        source, y = node.input[0], node.output[0]
        if node.input[1] not in self._constants:
            for index in indices:
                head, tail = self._piece(node, 0, index), self._piece(node, index + 1, 2**31)
                node.input[1] = self._node("Concat", head, self._length, tail, before=node, axis=0)
            return
        entries: list[int | None] = [int(size) for size in self._constants[node.input[1]]]
        if node.op_type == "Expand":
            shift = len(entries) - lengths.rank(source)
            for index in indices:
                entries[index] = 1 if index - shift in lengths.at(source) else None
        else:
            self._reshape(node, entries, indices, lengths.at(source), lengths.shape(y))
        if None not in entries:
            node.input[1] = self._own("sizes", entries)
            return
        parts = [self._length if size is None else self._own("size", [size]) for size in entries]
        node.input[1] = self._node("Concat", *parts, before=node, axis=0)

    def _reshape(
        self,
        node: onnx.NodeProto,
        entries: list[int | None],
        indices: Sequence[int],
        axes: frozenset[int],
        shape: Sequence[int | None],
    ) -> None:
        copies = not attribute(node, "allowzero", 0)
        if not copies and 0 not in entries:
            del node.attribute[:]
            copies = True
        for index in indices:
            if entries[index] == -1 or (entries[index] == 0 and copies):
                continue
            entries[index] = 0 if copies and index in axes else None
        if entries.count(None) == 1:
            if -1 in entries and (known := shape[entries.index(-1)]) is not None and entries.index(-1) not in indices:
                entries[entries.index(-1)] = known
            if -1 not in entries:
                entries[entries.index(None)] = -1

    def _piece(self, node: onnx.NodeProto, start: int, end: int) -> str:
        ends = self._own("start", [start]), self._own("end", [end])
        return self._node("Slice", node.input[1], *ends, self._own("axis", [0]), before=node)

    def _sliced(self, name: str, axis: int) -> str:
        if (name, axis) not in self._cut:
            begin = self._own("begin", [0])
            self._cut[name, axis] = self._node("Slice", name, begin, self._length, self._own("axis", [axis]))
        return self._cut[name, axis]

    def _reduced(self, kind: str, name: str, axis: int) -> str:
        """The axis is an attribute up to operator set 17. What is reduced last keeps one axis of one entry."""
        if self._version < 18:
            return self._node(kind, name, axes=[axis], keepdims=1 - axis)
        return self._node(kind, name, self._own("axis", [axis]), keepdims=1 - axis)

    def _own(self, name: str, value: Any) -> str:
        import numpy as np

        return self._constants.add(f"{_PREFIX}.{name}", np.array(value, np.int64))

    def _node(self, kind: str, *inputs: str, before: onnx.NodeProto | None = None, **attributes: Any) -> str:
        import onnx

        output = next(name for k in range(len(self._taken) + 1) if (name := f"{_PREFIX}.{kind}_{k}") not in self._taken)
        self._taken.add(output)
        made = onnx.helper.make_node(kind, inputs, [output], name=output, **attributes)
        (self._first if before is None else self._before.setdefault(before.output[0], [])).append(made)
        return output
