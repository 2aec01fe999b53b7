"""Parts of a graph replaced by operators of their own, whose bodies compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from portolan.kernels.fusion.piece import Piece

if TYPE_CHECKING:
    import onnx


def replaced(proto: onnx.ModelProto, found: Sequence[Piece]) -> None:
    """Puts an operator in place of each piece; equal ones share one function."""
    import onnx

    gone = {node.output[0] for one in found for node in one.nodes}
    after: dict[int, list[onnx.NodeProto]] = {}
    position = {name: n for n, node in enumerate(proto.graph.node) for name in node.output}
    taken = {name for node in proto.graph.node for name in (*node.input, *node.output)}
    taken |= {tensor.name for tensor in proto.graph.initializer}

    def fresh(stem: str) -> str:
        name, number = stem, 0
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        return name

    for one in found:
        after.setdefault(position[one.nodes[-1].output[0]], []).extend(one.calls(proto.graph, fresh))
    kept = []
    for number, node in enumerate(proto.graph.node):
        if not node.output or node.output[0] not in gone:
            kept.append(node)
        kept += after.get(number, [])
    ordered = _sorted([onnx.NodeProto.FromString(n.SerializeToString()) for n in kept])
    made = {one.name: one for one in found}
    imports = [o for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    functions = [one.function(imports) for one in made.values()]
    del proto.graph.node[:]
    proto.graph.node.extend(ordered)
    proto.functions.extend(functions)
    proto.opset_import.extend(onnx.helper.make_opsetid(one.operator().domain, 1) for one in made.values())
    proto.ir_version = max(proto.ir_version, 8)


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
