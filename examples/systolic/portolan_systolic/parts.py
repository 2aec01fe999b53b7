"""Cutting a graph: products for the chip, the rest in as few parts as possible for the CPU, in an order that works."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from portolan_systolic.claims import Claim, Graph

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class CpuPart:
    """A part of the graph for ONNX Runtime."""

    proto: onnx.ModelProto


Part = Claim | CpuPart


def read(path: Path, batch: str | None) -> Graph:
    """The graph with the shapes of its tensors, and which of them hold samples along their first axis.

    Args:
        path: an ONNX file.
        batch: the name of the free batch dimension; None where there is none.
    """
    import onnx

    from portolan.core.graph import set_sizes

    proto = onnx.load(str(path))
    one = _shapes(set_sizes(proto, {batch: 1} if batch else {}))
    two = _shapes(set_sizes(proto, {batch: 2})) if batch else one
    batched = [
        name for name, shape in one.items()
        if batch and shape and shape[0] == 1 and two.get(name) == (2, *shape[1:])
    ]  # fmt: skip
    return Graph(proto, one, frozenset(batched))


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    found: dict[str, tuple[int | None, ...]] = {}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape"):
            found[value.name] = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in dims)
    return found


def cut(graph: Graph, claims: Sequence[Claim]) -> list[Part]:
    """The parts in the order in which they run."""
    gone = {name for claim in claims for name in claim.nodes}
    kept = [node for node in graph.proto.graph.node if not gone & set(node.output)]
    kept = _needed(graph, kept, claims)
    stages = _stages(kept, claims)
    parts: list[Part] = []
    for stage in range(max(stages.values(), default=0) + 1):
        if nodes := [node for node in kept if stages[node.output[0]] == stage]:
            parts.append(CpuPart(_piece(graph, nodes, kept, claims)))
        parts += [claim for claim in claims if stages[claim.output] == stage]
    return parts


def _needed(graph: Graph, nodes: list[Any], claims: Sequence[Claim]) -> list[Any]:
    """Without those whose results nobody reads any more: the steps around what the chip takes."""
    wanted = {value.name for value in graph.proto.graph.output} | {claim.input for claim in claims}
    found = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            found.append(node)
            wanted |= set(_read(node))
    return found[::-1]


def _read(node: Any) -> Iterator[str]:
    """What a node reads, subgraphs included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read(inner)


def _stages(nodes: Sequence[Any], claims: Sequence[Claim]) -> dict[str, int]:
    """When each result can be there: even stages are the CPU's, odd ones the chip's."""
    found: dict[str, int] = {}
    waiting: list[tuple[list[str], list[str], int]] = [([c.input], [c.output], 1) for c in claims]
    waiting += [(list(_read(node)), list(node.output), 0) for node in nodes]
    made = {name for _, outputs, _ in waiting for name in outputs}
    while waiting:
        later = []
        for inputs, outputs, parity in waiting:
            own = [name for name in inputs if name in made]
            if any(name not in found for name in own):
                later.append((inputs, outputs, parity))
                continue
            stage = max((found[name] for name in own), default=parity)
            found |= dict.fromkeys(outputs, stage + (stage % 2 != parity))
        waiting = later
    return found


def _piece(graph: Graph, nodes: Sequence[Any], kept: Sequence[Any], claims: Sequence[Claim]) -> onnx.ModelProto:
    """A model of some of the nodes: what they read from others are its inputs, what others read its outputs."""
    import onnx
    from onnx import helper

    whole = graph.proto.graph
    inner = {name for node in nodes for name in node.output}
    read = {name for node in nodes for name in _read(node)}
    others = {name for node in kept if node.output[0] not in inner for name in _read(node)}
    others |= {claim.input for claim in claims} | {value.name for value in whole.output}
    types = {value.name: value for value in (*whole.input, *whole.output, *whole.value_info)}
    types |= {v.name: v for v in onnx.shape_inference.infer_shapes(graph.proto, data_prop=True).graph.value_info}
    types |= {value.name: value for value in (*whole.input, *whole.output)}
    given = sorted((read - inner - graph.constants.keys()) & (types.keys() | {c.output for c in claims}))
    results = [name for name in dict.fromkeys(n for node in nodes for n in node.output) if name in others]
    piece = helper.make_graph(
        list(nodes), "part",
        [types[name] for name in given], [types.get(name, onnx.ValueInfoProto(name=name)) for name in results],
        [tensor for tensor in whole.initializer if tensor.name in read],
    )  # fmt: skip
    return helper.make_model(
        piece,
        opset_imports=graph.proto.opset_import,
        ir_version=graph.proto.ir_version,
        functions=graph.proto.functions,
    )


def verified(claim: Claim, run: Any, cpu: Any, graph: Graph) -> str | None:
    """How the chip's result differs from what the graph says, in words; None where it is within one step.

    Args:
        claim: what the chip computes.
        run: its answer to one batch of a quantized input.
        cpu: makes a function of feeds from a graph's bytes.
        graph: where the product comes from.
    """
    nodes = [node for node in graph.proto.graph.node if claim.nodes & set(node.output)]
    first = {name for node in nodes for name in _read(node)} - {n for node in nodes for n in node.output}
    nodes = [graph.maker[name] for name in sorted(first) if name in graph.maker] + nodes
    import onnx
    from onnx import helper

    kind = np.dtype(claim.stream["type"])
    rng = np.random.default_rng(0)
    lead = (2,) if claim.batched else ()
    sizes = [size or 1 for size in graph.shapes[claim.input]][1 if claim.batched else 0 :]
    sample = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, (*lead, *sizes)).astype(kind)
    inferred: Mapping[str, Any] = {v.name: v for v in graph.proto.graph.output}
    value = helper.make_tensor_value_info(claim.input, helper.np_dtype_to_tensor_dtype(kind), sample.shape)
    result = inferred.get(claim.output) or onnx.ValueInfoProto(name=claim.output)
    used = {name for node in nodes for name in node.input}
    weights = [t for t in graph.proto.graph.initializer if t.name in used]
    piece = helper.make_model(
        helper.make_graph(nodes, "claim", [value], [result], weights),
        opset_imports=graph.proto.opset_import, ir_version=graph.proto.ir_version,
    )  # fmt: skip
    wanted, got = cpu(piece.SerializeToString())({claim.input: sample})[claim.output], run(sample)
    if wanted.shape != got.shape:
        return f"has shape {got.shape}, not {wanted.shape}"
    far = float(np.abs(wanted.astype(np.float64) - got.astype(np.float64)).max(initial=0.0))
    allowed = 1.0 if claim.type != "float32" else 1e-4 * float(np.abs(wanted).max(initial=1.0))
    return f"differs by {far:.3g}" if far > allowed else None
