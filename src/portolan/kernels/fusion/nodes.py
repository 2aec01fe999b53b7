"""A chain's operator in the graph: its node between those that reshape what it takes and gives, and its body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from portolan.core.extensions import domain
from portolan.kernels.fusion.chains import Chain, arguments
from portolan.kernels.fusion.piece import Fresh

if TYPE_CHECKING:
    import onnx

    from portolan.kernels.fusion.programs import Fused


def calls(one: Fused, graph: onnx.GraphProto, fresh: Fresh) -> list[onnx.NodeProto]:
    """The operator's node, between those that reshape its arguments and results. New constants go into the graph."""
    from onnx import helper

    nodes: list[onnx.NodeProto] = []

    def reshaped(source: str, to: Sequence[int], result: str) -> onnx.NodeProto:
        sizes = fresh(f"{result}_sizes")
        graph.initializer.append(helper.make_tensor(sizes, 7, [len(to)], list(to)))  # 7: int64
        return helper.make_node("Reshape", [source, sizes], [result])

    given = []
    for name, to in zip(one.chain.inputs, one.given, strict=True):
        given.append(name if to is None else fresh(f"{name}_rows"))
        if to is not None:
            nodes.append(reshaped(name, to, given[-1]))
    results = [
        name if to is None else fresh(f"{name}_rows") for name, to in zip(one.chain.outputs, one.results, strict=True)
    ]
    nodes.append(helper.make_node(one.name, given, results, domain=domain(one.name)))
    for name, to, result in zip(one.chain.outputs, one.results, results, strict=True):
        if to is not None:
            nodes.append(reshaped(result, to, name))
    return nodes


def function(one: Fused, imports: Sequence[onnx.OperatorSetIdProto]) -> onnx.FunctionProto:
    """The nodes that were replaced as the operator's body, on the shapes that the operator has."""
    from onnx import helper

    chain, numbers = one.chain, one.numbers
    names = {name: f"x{n}" for n, name in enumerate(chain.inputs)}
    names |= {name: f"y{n}" for n, name in enumerate(chain.outputs)}
    inner = [o for node in chain.nodes for o in node.output if o not in names]
    names |= {name: f"t{n}" for n, name in enumerate(inner)}
    constants = list(dict.fromkeys(n for node in chain.nodes for n in arguments(node) if n in numbers))
    names |= {name: f"c{n}" for n, name in enumerate(constants)}
    nodes = [helper.make_node("Constant", [], [names[name]], value_float=numbers[name]) for name in constants]
    if _axes_as_input(chain):
        nodes.append(helper.make_node("Constant", [], ["last"], value_ints=[-1]))
    nodes += [_renamed(node, names) for node in chain.nodes]
    inputs, outputs = [names[n] for n in chain.inputs], [names[n] for n in chain.outputs]
    return helper.make_function(domain(one.name), one.name, inputs, outputs, nodes, list(imports))


def _axes_as_input(chain: Chain) -> bool:
    return any(n.op_type.startswith("Reduce") and len(n.input) > 1 for n in chain.nodes)


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A node on the function's tensors; the axis it works along is the last, however many there are."""
    import onnx

    copy = onnx.NodeProto.FromString(node.SerializeToString())
    data = set(arguments(node))
    del copy.input[:], copy.output[:], copy.attribute[:]
    copy.input.extend("" if not n else names[n] if n in data else "last" for n in node.input)
    copy.output.extend(names[n] if n else "" for n in node.output)
    for attribute in node.attribute:
        if attribute.name == "axis":
            attribute = onnx.helper.make_attribute("axis", -1)
        elif attribute.name == "axes":
            attribute = onnx.helper.make_attribute("axes", [-1])
        copy.attribute.append(attribute)
    copy.name = ""
    return copy
