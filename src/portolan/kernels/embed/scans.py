"""Scans and stages as loops of ONNX: what does not depend on the carried value is computed before, at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import helper

from portolan.kernels.embed.nodes import TYPES, Value
from portolan.kernels.tree import Carry, Expr, Kind, Program, Scan, Stages, children, free, walk

if TYPE_CHECKING:
    from portolan.kernels.embed.body import Body


def scanned(body: Body, e: Scan) -> Value:
    """A value carried along an axis; that axis comes first.

    A Loop that takes its steps by Gather, not a Scan: OpenVINO 2026.4 runs a Scan of static shapes in place, over the
    array that it steps through, where a product in its body names that array before the state.
    """
    g = body.graph
    axes = tuple(sorted(free(e.step) - {e.carry, e.axis} - _carries(e.step)))
    parts = _apart(e.step, e.carry, e.axis)
    inner_graph = g.inner()
    number, going = inner_graph.fresh(), inner_graph.fresh()
    place, state = Value(number, (), "i"), Value(inner_graph.fresh(), axes, "f")
    inner = body.inside({}, graph=inner_graph, places={e.axis: place}, carries={e.carry: state})
    for x in parts:
        whole = body.value(x)
        order = (e.axis, *(a for a in whole.axes if a != e.axis))
        taken = inner_graph.add("Gather", g.over(whole, order), number, axis=0)
        inner._known[x] = Value(taken, order[1:], whole.kind)
    found = inner.value(e.step)
    made = inner_graph.whole(found, axes, body.sizes(axes))
    new, kept = inner_graph.add("Identity", made), inner_graph.add("Identity", made)
    still = inner_graph.add("Identity", going)
    rank = len(axes)
    inputs = [_declared(number, "i", 0), _declared(going, "b", 0), _declared(state.name, "f", rank)]
    outputs = [_declared(still, "b", 0), _declared(new, "f", rank), _declared(kept, "f", rank)]
    graph = helper.make_graph(inner_graph.nodes, "step", inputs, outputs)
    begin = g.add("Expand", g.constant(0.0, "f"), g.shape([body.size(body.ranges[a]) for a in axes]))
    count = g.add("Squeeze", body.size(body.ranges[e.axis]))
    _, states = g.several("Loop", [count, g.constant(True, "b"), begin], 2, body=graph)
    return Value(states, (e.axis, *axes), "f")


def _declared(name: str, kind: Kind, rank: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TYPES[kind], [None] * rank)


def _carries(e: Expr) -> set[str]:
    return {x.name for x in walk(e) if isinstance(x, Carry)}


def _apart(e: Expr, carry: str, axis: str) -> list[Expr]:
    """The largest parts of a step that mention the axis and not the carried value."""
    found: list[Expr] = []

    def visit(x: Expr) -> None:
        names = free(x)
        if not (names & {carry}) and not _carries(x):
            if axis in names and children(x):
                found.append(x)
            return
        for child in children(x):
            visit(child)

    visit(e)
    return list(dict.fromkeys(found))


def staged(make: Body, program: Program, stage: Stages) -> str:
    """The array after all stages; `make` writes outside of the loop."""
    from portolan.kernels.embed.body import Body as Writer

    g = make.graph
    inner_graph = g.inner()
    number, going, array = (inner_graph.fresh() for _ in range(3))
    axes = tuple(str(a) for a in program.tensor(stage.tensor).axes)
    inner = Writer(
        inner_graph,
        program,
        {**make.tensors, stage.tensor: array},
        {a: a for a in axes},
        {stage.index: Value(number, (), "i")},
    )
    found = inner.value(stage.value)
    made = inner_graph.whole(found, axes, {a: inner.size(a) for a in axes})
    new = inner_graph.add("Identity", made)
    still = inner_graph.add("Identity", going)
    graph = helper.make_graph(
        inner_graph.nodes,
        "stage",
        [_declared(number, "i", 0), _declared(going, "b", 0), _declared(array, "f", len(axes))],
        [_declared(still, "b", 0), _declared(new, "f", len(axes))],
    )
    count = g.add("Squeeze", make.size(stage.extent))
    return g.add("Loop", count, g.constant(True, "b"), make.tensors[stage.tensor], body=graph)
