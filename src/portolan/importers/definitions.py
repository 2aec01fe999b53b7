"""Operators that are defined by others, by ONNX or here, written out.

ONNX's inliner does this for functions that a file holds. For those of the standard it fails where an optional input is
left out and forgets defaults (1.23), so their definitions are put into the file first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from portolan.core import protos
from portolan.importers.operators import key

if TYPE_CHECKING:
    import onnx

#: How deep definitions may lie in definitions.
_DEEPEST = 5
#: Operators that are defined by others, which the table has.
FUNCTIONS = frozenset((
    "AffineGrid", "Attention", "BlackmanWindow", "CausalConvWithState", "Celu", "CenterCropPad",
    "DynamicQuantizeLinear", "HammingWindow", "HannWindow", "LinearAttention", "MeanVarianceNormalization", "Mod",
    "NegativeLogLikelihoodLoss", "RotaryEmbedding", "SequenceMap", "SoftmaxCrossEntropyLoss",
    "SpaceToDepth", "SwiGLU",
))  # fmt: skip
_REMAINDER = """<domain: "portolan.definitions", opset_import: ["": 15]> Mod (x, y) => (z) {
    rest = Mod <fmod = 1> (x, y)
    number = Constant <value = float {0}> ()
    zero = CastLike (number, rest)
    below = Less (rest, zero)
    under = Less (y, zero)
    apart = Xor (below, under)
    none = Equal (rest, zero)
    some = Not (none)
    wrong = And (apart, some)
    moved = Add (rest, y)
    z = Where (wrong, moved, rest)
}"""
#: Where definitions are put.
_DOMAIN = "portolan.definitions"


def expanded(proto: onnx.ModelProto, operators: frozenset[str]) -> onnx.ModelProto:
    """A graph with operators written out as they are defined by others; the graph itself where it has none of them.

    Args:
        proto: the graph, its external data loaded.
        operators: names, of which only those in `FUNCTIONS` are written out.
    """
    from onnx import inliner

    for _ in range(_DEEPEST):
        if not any(key(n.op_type, n.domain) in operators & FUNCTIONS for n in protos.walk(proto.graph.node)):
            break
        defined = _with_definitions(proto, operators & FUNCTIONS)
        if not defined.functions:
            break
        proto = inliner.inline_local_functions(defined)
    return proto


def _with_definitions(proto: onnx.ModelProto, operators: frozenset[str]) -> onnx.ModelProto:
    """A copy in which each node of those operators calls a function of its own, where it has a definition."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    versions = {protos.domain(entry.domain): entry.version for entry in proto.opset_import}
    types = protos.types(proto)
    for number, node in enumerate(protos.walk(copy.graph.node)):
        if key(node.op_type, node.domain) not in operators:
            continue
        schema = onnx.defs.get_schema(node.op_type, versions.get(protos.domain(node.domain), 1), node.domain)
        if not _defined(node, schema, types):
            continue
        stated = {attribute.name for attribute in node.attribute}
        defaults = (a.default_value for name, a in schema.attributes.items() if name not in stated)
        node.attribute.extend(value for value in defaults if value.type)
        function = _definition(schema, node, types, versions.get("", 1))
        function.name, function.domain = f"{node.op_type}_{number}", _DOMAIN
        for entry in function.opset_import:
            # Its definition holds from the version it was made for until the next one.
            entry.version = versions.get(protos.domain(entry.domain), entry.version)
        node.op_type, node.domain = function.name, _DOMAIN
        copy.functions.append(function)
    copy.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    return copy


def _floored(node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto]) -> bool:
    """Whether a remainder is one of floats with the divisor's sign."""
    import onnx

    kinds = onnx.TensorProto
    floats = (kinds.FLOAT, kinds.FLOAT16, kinds.DOUBLE, kinds.BFLOAT16)
    kind = types.get(node.input[0], onnx.TypeProto()).tensor_type.elem_type
    return kind in floats and not any(a.name == "fmod" and a.i for a in node.attribute)


#: Definitions that ONNX does not have, and the nodes that they hold for.
_OWN: Mapping[str, tuple[str, Callable[[onnx.NodeProto, Mapping[str, onnx.TypeProto]], bool]]] = {
    "Mod": (_REMAINDER, _floored)
}


def _defined(node: onnx.NodeProto, schema: onnx.defs.OpSchema, types: Mapping[str, onnx.TypeProto]) -> bool:
    """Whether there is a definition for a node, in its version."""
    if node.op_type in _OWN:
        return _OWN[node.op_type][1](node, types)
    return bool(schema.has_function or schema.has_context_dependent_function)


def _definition(
    schema: onnx.defs.OpSchema, node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto], version: int
) -> onnx.FunctionProto:
    """The newest definition for that operator set; some depend on the node's attributes and types."""
    import onnx

    if schema.name in _OWN:
        return onnx.parser.parse_function(_OWN[schema.name][0])
    if schema.has_context_dependent_function:
        given = [types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
        chosen = _newest(schema.context_dependent_function_opset_versions, version)
        made = schema.get_context_dependent_function_with_opset_version(chosen, node.SerializeToString(), given)
    else:
        made = schema.get_function_with_opset_version(_newest(schema.function_opset_versions, version))
    return onnx.FunctionProto.FromString(made)


def _newest(versions: list[int], limit: int) -> int:
    return max((version for version in versions if version <= limit), default=min(versions))
