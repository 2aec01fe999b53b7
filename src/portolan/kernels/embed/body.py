"""A kernel as an ONNX function of standard operators, made from its tree: slow, and right wherever ONNX runs.

Whole index spaces are made, as in the oracle; products that are summed go through Einsum, which makes none. There, what
a mask leaves out has to be a number: nothing times NaN is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from portolan.kernels.embed.elements import element
from portolan.kernels.embed.nodes import ELEMENTS, TYPES, Graph, Value
from portolan.kernels.tree import (
    Carry,
    Expr,
    Ext,
    Extent,
    Idx,
    Kind,
    Load,
    Num,
    Op,
    Program,
    Ranked,
    Reduce,
    Scan,
    free,
)


@dataclass
class Body:
    """Writes the operators of expressions where indices have the `ranges` and `places` given.

    Attributes:
        graph: where the nodes go.
        program: the kernel.
        tensors: for each argument, where it is now: stages remake one.
        ranges: what each index runs over.
        places: indices that are no whole range, such as the step of a scan.
        carries: values of scans one step before.
        outer: the writer around, which knows the value of whatever mentions nothing that is new here.
        fresh: the names that are new here.
    """

    graph: Graph
    program: Program
    tensors: Mapping[str, str]
    ranges: Mapping[str, Extent]
    places: Mapping[str, Value] = field(default_factory=dict)
    carries: Mapping[str, Value] = field(default_factory=dict)
    outer: Body | None = None
    fresh: frozenset[str] = frozenset()
    _known: dict[Expr, Value] = field(default_factory=dict)
    _sizes: dict[Extent, str] = field(default_factory=dict)
    _indices: dict[Extent, str] = field(default_factory=dict)
    _cast: dict[str, str] = field(default_factory=dict)

    def inside(
        self,
        ranges: Mapping[str, Extent],
        *,
        graph: Graph | None = None,
        places: Mapping[str, Value] | None = None,
        carries: Mapping[str, Value] | None = None,
    ) -> Body:
        """A writer where more names are known."""
        return Body(
            graph or self.graph,
            self.program,
            self.tensors,
            {**self.ranges, **ranges},
            {**{k: v for k, v in self.places.items() if k not in ranges}, **(places or {})},
            {**self.carries, **(carries or {})},
            self,
            frozenset((*ranges, *(places or {}), *(carries or {}))),
        )

    def value(self, e: Expr) -> Value:
        """The value of `e`."""
        if self.outer is not None and not free(e) & self.fresh:
            return self.outer.value(e)
        if e not in self._known:
            self._known[e] = self._value(e)
        return self._known[e]

    def _value(self, e: Expr) -> Value:
        from portolan.kernels.embed.reductions import ranked, reduced
        from portolan.kernels.embed.scans import scanned

        match e:
            case Num(value=value, kind=kind):
                return self.graph.number(value, kind)
            case Idx(name=name):
                return self.index(name)
            case Ext(symbol=symbol):
                return Value(self.graph.add("Squeeze", self.size(symbol)), (), "i")
            case Carry(name=name):
                return self.carries[name]
            case Load():
                return self._load(e)
            case Op(name=name, args=args):
                return element(self.graph, name, [self.value(a) for a in args], e.kind)
            case Reduce():
                return reduced(self, e)
            case Ranked():
                return ranked(self, e)
            case Scan():
                return scanned(self, e)

    def index(self, name: str) -> Value:
        """An index as a value."""
        if name in self.places:
            return self.places[name]
        extent, top = self.ranges[name], self._top()
        if extent not in top._indices:
            limit = top.graph.add("Squeeze", top.size(extent))
            zero, one = top.graph.constant(0, "i"), top.graph.constant(1, "i")
            top._indices[extent] = top.graph.add("Range", zero, limit, one)
        return Value(top._indices[extent], (name,), "i")

    def _top(self) -> Body:
        body = self
        while body.outer is not None:
            body = body.outer
        return body

    def size(self, extent: Extent) -> str:
        """An extent as an array of one number."""
        top = self._top()
        if extent not in top._sizes:
            top._sizes[extent] = top._measured(extent)
        return top._sizes[extent]

    def _measured(self, extent: Extent) -> str:
        if isinstance(extent, int):
            return self.graph.constant([extent], "i")
        for tensor in self.program.inputs:
            if extent in tensor.axes:
                place = tensor.axes.index(extent)
                return self.graph.add("Shape", tensor.name, start=place, end=place + 1)
        raise KeyError(extent)

    def sizes(self, axes: Sequence[str]) -> dict[str, str]:
        """The size of each index's range, as arrays of one number."""
        return {a: self.size(self.ranges[a]) for a in axes}

    # Loads ----------------------------------------------------------------------------------------------------------

    def _load(self, e: Load) -> Value:
        """Whole arrays as they are; one place of a dimension after the other by Gather, several at once as a row."""
        tensor, name = self.program.tensor(e.tensor), self._converted(e.tensor)
        parts: list[Value | str] = []
        for index, size in zip(e.index, tensor.axes, strict=True):
            parts.append(str(index.name) if self._is_plain(index, size) else self._kept(index, size))  # type: ignore[union-attr]
        sizes = list(tensor.axes)
        for number in reversed(range(len(parts))):
            part = parts[number]
            if isinstance(part, Value) and not part.axes:
                name = self.graph.add("Gather", name, part.name, axis=number)
                del parts[number], sizes[number]
        named = [p for p in parts if isinstance(p, str)]
        others = [n for n, p in enumerate(parts) if isinstance(p, Value)]
        if len(set(named)) == len(named) and not others:
            return Value(name, tuple(named), e.kind)
        if len(set(named)) == len(named) and len(others) == 1:
            place = parts[others[0]]
            if isinstance(place, Value) and not set(place.axes) & set(named):
                axes = (*named[: others[0]], *place.axes, *named[others[0] :])
                return Value(self.graph.add("Gather", name, place.name, axis=others[0]), axes, e.kind)
        places = [self.index(p) if isinstance(p, str) else p for p in parts]
        return self._flat(name, places, sizes, e.kind)

    def _converted(self, tensor: str) -> str:
        """An argument in the type that it is computed in."""
        top, dtype = self._top(), self.program.tensor(tensor).dtype
        if dtype == "f32":
            return self.tensors[tensor]
        if tensor not in top._cast:
            code = TYPES["i" if dtype.startswith("i") else "f"]
            top._cast[tensor] = top.graph.add("Cast", self.tensors[tensor], to=code)
        return top._cast[tensor]

    def _is_plain(self, index: Expr, size: Extent) -> bool:
        """Whether an index runs over a whole dimension in order."""
        return isinstance(index, Idx) and index.name not in self.places and self.ranges.get(index.name) == size

    def _kept(self, index: Expr, size: Extent) -> Value:
        """An index moved to the nearest end of its dimension: what a mask leaves out may lie outside."""
        place, g = self.value(index), self.graph
        if isinstance(index, Num) and isinstance(size, int) and 0 <= index.value < size:
            return place
        limit = Value(g.add("Squeeze", self.size(size)), (), "i")
        last = g.call("Sub", [limit, g.number(1, "i")], "i")
        return g.call("Max", [g.call("Min", [place, last], "i"), g.number(0, "i")], "i")

    def _flat(self, name: str, places: Sequence[Value], sizes: Sequence[Extent], kind: Kind) -> Value:
        """One Gather on the array as a row, with a zero at its end so that an empty one can be indexed too."""
        g = self.graph
        place = places[0]
        for part, size in zip(places[1:], sizes[1:], strict=True):
            limit = Value(g.add("Squeeze", self.size(size)), (), "i")
            place = g.call("Add", [g.call("Mul", [place, limit], "i"), part], "i")
        row = g.add("Concat", g.add("Reshape", name, g.constant([-1], "i")), g.constant([0], kind), axis=0)
        return Value(g.add("Gather", row, place.name, axis=0), place.axes, kind)


def results(body: Body, program: Program, extents: Mapping[str, Extent]) -> list[str]:
    """The results, whole and of their types, by name."""
    made = []
    for tensor, value in zip(program.outputs, program.values, strict=True):
        axes = tuple(str(a) for a in tensor.axes)
        inner = body.inside({a: extents[a] for a in axes})
        found = inner.value(value)
        name = body.graph.whole(found, axes, {a: body.size(extents[a]) for a in axes})
        made.append(body.graph.add("Cast", name, to=ELEMENTS[tensor.dtype]))
    return made
