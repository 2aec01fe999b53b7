"""Bodies of `Scan` that say all they need, for readers that take them by themselves.

ONNX lets a body use what is computed outside of it, and leave out the types of its inputs where they follow from the
node's. OpenVINO's reader (2026.4) does not know the one and cannot do without the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from portolan.core import protos
from portolan.importers.operators import key

if TYPE_CHECKING:
    import onnx

#: From here on a scan has no batch of its own, and its inputs are states and what is scanned.
_OLDEST = 9


def closed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A graph in which each `Scan` hands its body all that it uses, with types; the graph itself where it has none.

    What a body took from outside becomes a state that no step changes; a constant becomes its own.
    """
    import onnx
    from onnx import helper

    versions = {protos.domain(entry.domain): entry.version for entry in proto.opset_import}
    if versions.get("", 1) < _OLDEST or not any(map(_scans, protos.walk(proto.graph.node))):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    types, constants, changed = protos.types(copy), _constants(copy), False
    for number, node in enumerate(list(protos.walk(copy.graph.node))):
        if not _scans(node):
            continue
        body, scanned, axes = _parts(node)
        changed |= _typed(node, body, scanned, axes, types)
        for place, name in enumerate(sorted(_taken(body) & types.keys())):
            inside = f"taken_{number}_{place}"
            _rename(body, name, inside)
            if name in constants:
                body.node.insert(0, helper.make_node("Constant", [], [inside], value=constants[name]))
            else:
                _hand(node, body, name, types[name], inside)
            changed = True
    return copy if changed else proto


def _scans(node: onnx.NodeProto) -> bool:
    return key(node.op_type, node.domain) == "Scan"


def _parts(node: onnx.NodeProto) -> tuple[onnx.GraphProto, int, list[int]]:
    """The body, how many inputs are scanned, and along which axis each."""
    by = {attribute.name: attribute for attribute in node.attribute}
    scanned = by["num_scan_inputs"].i
    return by["body"].g, scanned, list(by["scan_input_axes"].ints) if "scan_input_axes" in by else [0] * scanned


def _typed(
    node: onnx.NodeProto, body: onnx.GraphProto, scanned: int, axes: list[int], types: Mapping[str, onnx.TypeProto]
) -> bool:
    """Gives the body's inputs without a type that of the node's, less the axis that is scanned; whether it did."""
    states, changed = len(node.input) - scanned, False
    for place, (value, name) in enumerate(zip(body.input, node.input, strict=True)):
        if value.type.tensor_type.elem_type or name not in types:
            continue
        value.type.CopyFrom(types[name])
        changed = True
        if place >= states and value.type.tensor_type.HasField("shape"):
            del value.type.tensor_type.shape.dim[axes[place - states]]
    return changed


def _taken(graph: onnx.GraphProto) -> set[str]:
    """What a body uses and does not make."""
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    used = {value.name for value in graph.output}
    for node in graph.node:
        made.update(node.output)
        used.update(node.input, *map(_taken, protos.subgraphs(node)))
    return used - made


def _hand(node: onnx.NodeProto, body: onnx.GraphProto, name: str, type: onnx.TypeProto, inside: str) -> None:
    """Makes an outer value the first state, which the body calls `inside`."""
    from onnx import helper

    after = f"{inside}_after"
    body.node.append(helper.make_node("Identity", [inside], [after]))
    _first(body.input, helper.make_value_info(inside, type))
    _first(body.output, helper.make_value_info(after, type))
    node.input.insert(0, name)
    node.output.insert(0, f"{after}_last")


def _constants(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The tensors by name that the graph and its bodies hold."""
    found = {tensor.name: tensor for graph in protos.graphs(proto) for tensor in graph.initializer}
    for node in protos.walk(proto.graph.node):
        if key(node.op_type, node.domain) == "Constant":
            found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return found


def _rename(graph: onnx.GraphProto, name: str, new: str) -> None:
    for node in protos.walk(graph.node):
        node.input[:] = [new if one == name else one for one in node.input]


def _first(values: Any, value: onnx.ValueInfoProto) -> None:
    held = [value, *values]
    del values[:]
    values.extend(held)
