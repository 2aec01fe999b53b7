"""Scans as ONNX's Scan, stages as its Loop: what does not depend on the carried value is computed before, at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import helper

from portolan.kernels.embed.nodes import TYPES, Value
from portolan.kernels.tree import Carry, Expr, Kind, Program, Scan, Stages, children, free, walk

if TYPE_CHECKING:
    from portolan.kernels.embed.body import Body


def scanned(body: Body, e: Scan) -> Value:
    """A value carried along an axis; that axis comes first."""
    g = body.graph
    axes = tuple(sorted(free(e.step) - {e.carry, e.axis} - _carries(e.step)))
    before = [body.value(x) for x in _apart(e.step, e.carry, e.axis)]
    inner_graph = g.inner()
    places = {}
    fed, names, declared = [], [], []
    for part in (body.index(e.axis), *before):
        order = (e.axis, *(a for a in part.axes if a != e.axis))
        fed.append(g.over(part, order))
        name = inner_graph.fresh()
        names.append(Value(name, order[1:], part.kind))
        declared.append(_declared(name, part.kind, len(order) - 1))
    places[e.axis] = names[0]
    state = Value(inner_graph.fresh(), axes, "f")
    inner = body.inside({}, graph=inner_graph, places=places, carries={e.carry: state})
    for x, value in zip(_apart(e.step, e.carry, e.axis), names[1:], strict=True):
        inner._known[x] = value
    found = inner.value(e.step)
    made = inner_graph.whole(found, axes, body.sizes(axes))
    new, kept = inner_graph.add("Identity", made), inner_graph.add("Identity", made)
    inputs = [_declared(state.name, "f", len(axes)), *declared]
    outputs = [_declared(new, "f", len(axes)), _declared(kept, "f", len(axes))]
    graph = helper.make_graph(inner_graph.nodes, "step", inputs, outputs)
    begin = g.add("Expand", g.constant(0.0, "f"), g.shape([body.size(body.ranges[a]) for a in axes]))
    _, whole = g.several("Scan", [begin, *fed], 2, body=graph, num_scan_inputs=len(fed))
    return Value(whole, (e.axis, *axes), "f")


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
