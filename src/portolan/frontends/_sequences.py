"""Sequences and optionals at a model's edge, which no array holds: operators put there make tensors of them.

A sequence `x` of n tensors is a ragged array: `x.values`, the elements' numbers one after the other, and `x.shapes`, n
rows that are the elements' shapes. Any length and any shapes fit, and nothing is lost. An optional `x` is what it
holds, `x.value` where that is a tensor, and is always there. Inside, the model stays as it is.

    x.values, x.shapes ── Loop: Slice, Reshape, SequenceInsert ── x ── model ── y ── Loop: SequenceAt, Shape, Concat ──
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.core import external, protos
from portolan.errors import ModelError

if TYPE_CHECKING:
    import onnx

#: From here on a loop carries a sequence from one round to the next; from here on there are optionals.
_LOOPS, _OPTIONALS = 13, 15
#: From here on a size of 0 in `Reshape` can mean 0.
_ZEROS = 14


def on_edge(proto: onnx.ModelProto) -> bool:
    """Whether an input or output is a sequence or an optional of tensors."""
    return any(_kind(value.type) is not None for value in (*proto.graph.input, *proto.graph.output))


def lowered(path: Path, proto: onnx.ModelProto, out: Path) -> Path:
    """Writes the model with tensors in the place of sequences and optionals to `out`, with its external data.

    Args:
        path: where `proto` was read from.
        proto: the graph, without its external data.
        out: a folder for the new file and copies of the external data.

    Raises:
        ModelError: the model's opset is too old for it, or its external data is unsafe.
    """
    locations = external.files(proto, path)
    changed = _Edge(_recent(proto, path)).changed()
    out.mkdir(parents=True, exist_ok=True)
    for location in locations:
        copy = out / location
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists() or not copy.samefile(path.parent / location):
            shutil.copyfile(external.inside(path, location), copy)
    target, partial = out / path.name, out / f"{path.name}.partial"
    partial.write_bytes(changed.SerializeToString(deterministic=True))
    partial.replace(target)
    return target


def _kind(kind: onnx.TypeProto) -> tuple[bool, bool, int] | None:
    """Whether it is optional, whether a sequence, and of which element type; None for what needs no lowering."""
    optional = kind.HasField("optional_type")
    inner = kind.optional_type.elem_type if optional else kind
    sequence = inner.HasField("sequence_type")
    tensor = inner.sequence_type.elem_type if sequence else inner
    if not (optional or sequence) or not tensor.HasField("tensor_type"):
        return None
    return optional, sequence, int(tensor.tensor_type.elem_type)


def _recent(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """A copy of the model, at an opset that has what the edge needs."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    opset = next((entry.version for entry in proto.opset_import if protos.domain(entry.domain) == ""), 0)
    if opset >= _LOOPS:
        return copy
    try:
        return onnx.version_converter.convert_version(copy, _LOOPS)
    except Exception:  # whatever its C++ code throws
        raise ModelError(
            f"`{path}` has sequences as inputs or outputs and opset {opset}, which cannot make tensors of them",
            hint=f"export the model with `opset_version={_LOOPS}` or later",
        ) from None


class _Edge:
    """Rewrites one model's inputs and outputs."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        import onnx

        self._onnx, self._proto = onnx, proto
        self._opset = next(e.version for e in proto.opset_import if protos.domain(e.domain) == "")
        nodes = [node for _, body in protos.bodies(proto) for node in body]
        self._taken = {name for node in nodes for name in (*node.input, *node.output)}
        self._taken |= {value.name for value in (*proto.graph.input, *proto.graph.output)}
        self._before: list[onnx.NodeProto] = []
        self._after: list[onnx.NodeProto] = []

    def changed(self) -> onnx.ModelProto:
        """The model, rewritten."""
        graph = self._proto.graph
        known = {value.name: self._side(value, enter=True) for value in graph.input}
        fed = [value for values in known.values() for value in values]
        # What goes straight through is read as it was fed.
        read = [v for value in graph.output for v in known.get(value.name) or self._side(value, enter=False)]
        nodes = [*self._before, *graph.node, *self._after]
        for field, values in (("node", nodes), ("input", fed), ("output", read)):
            graph.ClearField(field)
            getattr(graph, field).extend(values)
        return self._proto

    def _side(self, value: onnx.ValueInfoProto, *, enter: bool) -> list[onnx.ValueInfoProto]:
        """The tensors in place of an input (`enter`) or output, with the operators between them and the model's."""
        kind = _kind(value.type)
        if kind is None:
            return [value]
        optional, sequence, dtype = kind
        nodes = self._before if enter else self._after
        inner = self._new(value.name) if optional else value.name
        if optional and not enter:
            nodes.append(self._node("OptionalGetElement", [value.name], [inner]))
        if sequence:
            made = self._packed(value.name, dtype)
            names = [one.name for one in made]
            nodes += self._built(names, inner, dtype) if enter else self._taken_apart(inner, names, dtype)
        else:
            made = [
                self._onnx.ValueInfoProto(name=self._new(value.name, "value"), type=value.type.optional_type.elem_type)
            ]
            if enter:
                inner = made[0].name
            else:
                nodes.append(self._node("Identity", [inner], [made[0].name]))
        if optional and enter:
            nodes.append(self._node("Optional", [inner], [value.name]))
        return made

    def _packed(self, name: str, dtype: int) -> list[onnx.ValueInfoProto]:
        info = self._onnx.helper.make_tensor_value_info
        integers = self._onnx.TensorProto.INT64
        return [
            info(self._new(name, "values"), dtype, [f"{name}_values"]),
            info(self._new(name, "shapes"), integers, [f"{name}_length", f"{name}_rank"]),
        ]

    def _built(self, packed: list[str], name: str, dtype: int) -> list[onnx.NodeProto]:
        """Operators that make the sequence `name` of its values and shapes."""
        values, shapes = packed
        zero, first, axes, empty = (self._new(name) for _ in range(4))
        size, count, offset = (self._new(name) for _ in range(3))
        body = [
            self._node("Gather", [shapes, "round"], ["shape"], axis=0),
            self._node("ReduceProd", ["shape"], ["numbers"], keepdims=1),
            self._node("Add", ["offset", "numbers"], ["next"]),
            self._node("Slice", [values, "offset", "next", axes], ["flat"]),
            self._node(
                "Reshape", ["flat", "shape"], ["element"], **({"allowzero": 1} if self._opset >= _ZEROS else {})
            ),
            self._node("SequenceInsert", ["so far", "element"], ["longer"]),
            self._node("Identity", ["go on"], ["on"]),
        ]
        carried = {"offset": self._numbers([1]), "so far": self._sequence(dtype)}
        loop = self._loop(body, carried, ["on", "next", "longer"], {})
        return [
            self._constant(zero, 0), self._constant(first, [0]), self._constant(axes, [0]),
            self._node("SequenceEmpty", [], [empty], dtype=dtype),
            self._node("Shape", [shapes], [size]),
            self._node("Gather", [size, zero], [count], axis=0),
            self._node("Loop", [count, "", first, empty], [offset, name], body=self._within(loop, name)),
        ]  # fmt: skip

    def _taken_apart(self, name: str, packed: list[str], dtype: int) -> list[onnx.NodeProto]:
        """Operators that make values and shapes of the sequence `name`."""
        values, shapes = packed
        flat, none, count = (self._new(name) for _ in range(3))
        body = [
            self._node("SequenceAt", [name, "round"], ["element"]),
            self._node("Reshape", ["element", flat], ["row"]),
            self._node("Concat", ["so far", "row"], ["longer"], axis=0),
            self._node("Shape", ["element"], ["shape"]),
            self._node("Identity", ["go on"], ["on"]),
        ]
        carried = {"so far": self._onnx.helper.make_tensor_type_proto(dtype, [None])}
        loop = self._loop(body, carried, ["on", "longer"], {"shape": self._numbers([None])})
        nothing = self._onnx.helper.make_tensor("nothing", dtype, [0], [])
        return [
            self._constant(flat, [-1]), self._node("Constant", [], [none], value=nothing),
            self._node("SequenceLength", [name], [count]),
            self._node("Loop", [count, "", none], [values, shapes], body=self._within(loop, name)),
        ]  # fmt: skip

    def _loop(
        self, nodes: list[onnx.NodeProto], carried: dict[str, Any], outputs: list[str], scanned: dict[str, Any]
    ) -> onnx.GraphProto:
        """A loop's body; `outputs` are the condition and what is carried on."""
        helper, kinds = self._onnx.helper, self._onnx.TensorProto
        condition = helper.make_tensor_type_proto(kinds.BOOL, [])
        fed = {"round": self._numbers([]), "go on": condition} | carried
        read = dict(zip(outputs, (condition, *carried.values()), strict=True)) | scanned
        made = [[helper.make_value_info(name, kind) for name, kind in side.items()] for side in (fed, read)]
        return helper.make_graph(nodes, "elements", *made)

    def _within(self, graph: onnx.GraphProto, name: str) -> onnx.GraphProto:
        """The body with names that no other graph of the model has: inner names hide outer ones."""
        own = [value.name for value in graph.input] + [out for node in graph.node for out in node.output]
        new = {old: self._new(name) for old in own}
        for value in (*graph.input, *graph.output):
            value.name = new[value.name]
        for node in graph.node:
            node.input[:] = [new.get(one, one) for one in node.input]
            node.output[:] = [new[one] for one in node.output]
        return graph

    def _numbers(self, shape: list[int | None]) -> Any:
        return self._onnx.helper.make_tensor_type_proto(self._onnx.TensorProto.INT64, shape)

    def _sequence(self, dtype: int) -> Any:
        helper = self._onnx.helper
        return helper.make_sequence_type_proto(helper.make_tensor_type_proto(dtype, None))

    def _constant(self, name: str, value: int | list[int]) -> onnx.NodeProto:
        kinds = self._onnx.TensorProto
        shape, numbers = ([], [value]) if isinstance(value, int) else ([len(value)], value)
        return self._node(
            "Constant", [], [name], value=self._onnx.helper.make_tensor(name, kinds.INT64, shape, numbers)
        )

    def _node(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
        return self._onnx.helper.make_node(operator, inputs, outputs, **attributes)

    def _new(self, name: str, what: str = "portolan") -> str:
        """`NAME.WHAT`, or with a number behind it where that is taken."""
        found, number = f"{name}.{what}", 0
        while found in self._taken:
            number += 1
            found = f"{name}.{what}{number}"
        self._taken.add(found)
        return found
