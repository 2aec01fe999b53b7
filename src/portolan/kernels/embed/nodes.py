"""Nodes of an ONNX body, and arrays in it whose dimensions are named by indices.

A value is an ONNX name whose dimensions are the indices it mentions, in order; numbers are float32 and int64, truth
values bool. It is the oracle's way (`kernels.oracle`), written down as operators and not computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from portolan.kernels.tree import Kind

TYPES: Mapping[Kind, int] = {"f": TensorProto.FLOAT, "i": TensorProto.INT64, "b": TensorProto.BOOL}
ELEMENTS: Mapping[str, int] = {
    "f32": TensorProto.FLOAT,
    "f16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "i8": TensorProto.INT8,
    "i32": TensorProto.INT32,
}
_NUMPY = {"f": np.float32, "i": np.int64, "b": np.bool_}


@dataclass(frozen=True)
class Value:
    """An ONNX value with one dimension for each of `axes`."""

    name: str
    axes: tuple[str, ...]
    kind: Kind


@dataclass
class Graph:
    """A list of nodes that grows; `outer` is the graph around it, whose values are seen from here.

    Attributes:
        names: the count of names given, shared by all graphs of one body.
    """

    outer: Graph | None = None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    names: list[int] = field(default_factory=lambda: [0])
    _constants: dict[tuple[str, str, bytes], str] = field(default_factory=dict)

    def inner(self) -> Graph:
        """A graph inside of a node of this one."""
        return Graph(self, names=self.names)

    def fresh(self) -> str:
        """A name that no argument can have."""
        self.names[0] += 1
        return f"v/{self.names[0]}"

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Adds a node; the name of its first result."""
        return self.several(operator, inputs, outputs, **attributes)[0]

    def several(self, operator: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        """Adds a node; the names of its results."""
        made = [self.fresh() for _ in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), made, **attributes))
        return made

    def constant(self, value: Any, kind: Kind) -> str:
        """A constant, once for the whole body."""
        top = self
        while top.outer is not None:
            top = top.outer
        array: Any = np.asarray(value, _NUMPY[kind])
        key = (kind, str(array.shape), array.tobytes())
        if key not in top._constants:
            top._constants[key] = top.fresh()
            tensor = numpy_helper.from_array(array, top._constants[key])
            top.nodes.append(helper.make_node("Constant", [], [top._constants[key]], value=tensor))
        return top._constants[key]

    # Arrays with named dimensions -----------------------------------------------------------------------------------

    def over(self, value: Value, axes: Sequence[str]) -> str:
        """`value` with one dimension for each of `axes`, 1 wide where it has none; leading ones may be left out."""
        order = [a for a in axes if a in value.axes]
        name = value.name
        if order != list(value.axes):
            name = self.add("Transpose", name, perm=[value.axes.index(a) for a in order])
        first = next((n for n, a in enumerate(axes) if a in value.axes), len(axes))
        missing = [n - first for n, a in enumerate(axes) if a not in value.axes and n > first]
        return self.add("Unsqueeze", name, self.constant(missing, "i")) if missing else name

    def whole(self, value: Value, axes: Sequence[str], sizes: Mapping[str, str]) -> str:
        """`value` with exactly the dimensions `axes`, as long as `sizes` (names of arrays of one number) say."""
        name = self.over(value, axes)
        if set(value.axes) == set(axes):
            return name
        return self.add("Expand", name, self.shape([sizes[a] for a in axes]))

    def shape(self, sizes: Sequence[str]) -> str:
        """Sizes, each an array of one number, as one shape."""
        if not sizes:
            return self.constant(np.zeros(0), "i")
        return sizes[0] if len(sizes) == 1 else self.add("Concat", *sizes, axis=0)

    def call(self, operator: str, values: Sequence[Value], kind: Kind, **attributes: Any) -> Value:
        """An element-wise operator on values of any axes."""
        axes = union(values)
        return Value(self.add(operator, *(self.over(v, axes) for v in values), **attributes), axes, kind)

    def number(self, value: Any, kind: Kind) -> Value:
        """A number as a value."""
        return Value(self.constant(value, kind), (), kind)

    def cast(self, value: Value, kind: Kind) -> Value:
        """The value as another kind."""
        if value.kind == kind:
            return value
        return Value(self.add("Cast", value.name, to=TYPES[kind]), value.axes, kind)

    def reduced(self, operator: str, value: Value, bound: Sequence[str]) -> Value:
        """The value reduced along `bound`, all of which it has, by an operator that takes axes as an input."""
        places = [n for n, a in enumerate(value.axes) if a in bound]
        name = self.add(operator, value.name, self.constant(places, "i"), keepdims=0)
        return Value(name, tuple(a for a in value.axes if a not in bound), value.kind)


def union(values: Sequence[Value]) -> tuple[str, ...]:
    """All axes, in order of first appearance."""
    return tuple(dict.fromkeys(a for v in values for a in v.axes))
