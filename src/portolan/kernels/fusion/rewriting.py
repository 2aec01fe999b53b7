"""Chains in a graph replaced by operators of their own, whose bodies are the nodes they replace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from portolan.core.extensions import DOMAIN
from portolan.kernels.fusion.chains import Chain, arguments
from portolan.kernels.fusion.programs import Fused

if TYPE_CHECKING:
    import onnx


def replaced(proto: onnx.ModelProto, found: Sequence[Fused], numbers: Mapping[str, float]) -> None:
    """Puts an operator in place of each chain; equal chains share one function."""
    import onnx

    gone = {node.output[0] for one in found for node in one.chain.nodes}
    after: dict[int, list[onnx.NodeProto]] = {}
    position = {name: n for n, node in enumerate(proto.graph.node) for name in node.output}
    names = {name for node in proto.graph.node for name in (*node.input, *node.output)}
    for one in found:
        after.setdefault(position[one.chain.nodes[-1].output[0]], []).extend(calls(one, proto.graph, names))
    kept = []
    for number, node in enumerate(proto.graph.node):
        if not node.output or node.output[0] not in gone:
            kept.append(node)
        kept += after.get(number, [])
    ordered = _sorted([onnx.NodeProto.FromString(n.SerializeToString()) for n in kept])
    made = {one.program.name: one for one in found}
    imports = [o for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    functions = [function(one, numbers, imports) for one in made.values()]
    del proto.graph.node[:]
    proto.graph.node.extend(ordered)
    proto.functions.extend(functions)
    proto.opset_import.extend(onnx.helper.make_opsetid(domain(name), 1) for name in made)
    proto.ir_version = max(proto.ir_version, 8)


def domain(name: str) -> str:
    """The domain of an operator: one for each, since a runtime takes a domain from one library only."""
    return f"{DOMAIN}.{name}"


def calls(one: Fused, graph: onnx.GraphProto, taken: set[str]) -> list[onnx.NodeProto]:
    """The operator's node, between those that reshape its arguments and results. New constants go into the graph."""
    from onnx import helper

    nodes: list[onnx.NodeProto] = []

    def reshaped(source: str, to: Sequence[int], result: str) -> onnx.NodeProto:
        sizes = fresh(f"{result}_sizes")
        graph.initializer.append(helper.make_tensor(sizes, 7, [len(to)], list(to)))  # 7: int64
        return helper.make_node("Reshape", [source, sizes], [result])

    def fresh(stem: str) -> str:
        name, number = stem, 0
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        return name

    given = []
    for name, to in zip(one.chain.inputs, one.inputs, strict=True):
        given.append(name if to is None else fresh(f"{name}_rows"))
        if to is not None:
            nodes.append(reshaped(name, to, given[-1]))
    results = [
        name if to is None else fresh(f"{name}_rows") for name, to in zip(one.chain.outputs, one.outputs, strict=True)
    ]
    nodes.append(helper.make_node(one.program.name, given, results, domain=domain(one.program.name)))
    for name, to, result in zip(one.chain.outputs, one.outputs, results, strict=True):
        if to is not None:
            nodes.append(reshaped(result, to, name))
    return nodes


def function(
    one: Fused, numbers: Mapping[str, float], imports: Sequence[onnx.OperatorSetIdProto]
) -> onnx.FunctionProto:
    """The nodes that were replaced as the operator's body, on the shapes that the operator has."""
    from onnx import helper

    chain = one.chain
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
    return helper.make_function(domain(one.program.name), one.program.name, inputs, outputs, nodes, list(imports))


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


def _sorted(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes behind those whose results they read, otherwise in the order given."""
    from portolan.passes._surgery import captured

    producer = {name: n for n, node in enumerate(nodes) for name in node.output if name}
    done: set[int] = set()
    ordered: list[onnx.NodeProto] = []
    for start in range(len(nodes)):
        waiting = [start]
        while waiting:
            number = waiting[-1]
            read = (*nodes[number].input, *captured(nodes[number]))
            before = [producer[n] for n in read if n in producer and producer[n] not in done]
            if number in done or not before:
                waiting.pop()
                if number not in done:
                    done.add(number)
                    ordered.append(nodes[number])
            else:
                waiting += before
    return ordered
