"""A kernel as an ONNX function, and as a model of one node that calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import helper

from portolan.kernels.embed.body import Body, results
from portolan.kernels.embed.nodes import ELEMENTS, Graph
from portolan.kernels.embed.scans import staged
from portolan.kernels.tree import Program, extents_of

#: The domain of kernels' operators. A model that names it needs a function of that name, or a library beside it.
DOMAIN = "portolan.kernels"
#: The first version of the standard operators that has all that a body uses.
OPSET = 18
_IR_VERSION = 10


def function(program: Program, *, domain: str = DOMAIN, name: str | None = None, opset: int = OPSET) -> Any:
    """The kernel as a function of standard operators (an `onnx.FunctionProto`); sizes come from its arguments.

    Args:
        program: the kernel.
        domain: of the operator.
        name: of the operator; the kernel's own without one.
        opset: version of the standard operators, at least 18.
    """
    graph = Graph()
    tensors = {t.name: t.name for t in program.inputs}
    for stage in program.stages:
        tensors = {**tensors, stage.tensor: staged(Body(graph, program, tensors, {}), program, stage)}
    body = Body(graph, program, tensors, {})
    made = results(body, program, extents_of(program))
    nodes = [*graph.nodes]
    outputs = output_names(program)
    nodes += [helper.make_node("Identity", [found], [out]) for found, out in zip(made, outputs, strict=True)]
    inputs = [t.name for t in program.inputs]
    imports = [helper.make_opsetid("", opset)]
    return helper.make_function(domain, name or program.name, inputs, outputs, nodes, imports)


def output_names(program: Program) -> list[str]:
    """The results' names, none of them an argument's."""
    taken = {t.name for t in program.inputs}
    names = []
    for tensor in program.outputs:
        name = tensor.name
        while name in taken:
            name += "_"
        taken.add(name)
        names.append(name)
    return names


def model(program: Program, sizes: Mapping[str, int] | None = None) -> onnx.ModelProto:
    """A model of one node that calls the kernel's function; sizes stay symbols but for those given."""
    known = sizes or {}
    extents = extents_of(program)

    def declared(name: str, dtype: str, axes: tuple[int | str, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, ELEMENTS[dtype], [known.get(a, a) for a in axes])  # type: ignore[arg-type]

    inputs = [declared(t.name, t.dtype, t.axes) for t in program.inputs]
    names = output_names(program)
    outputs = [
        declared(name, t.dtype, tuple(extents[str(a)] for a in t.axes))
        for name, t in zip(names, program.outputs, strict=True)
    ]
    node = helper.make_node(program.name, [t.name for t in program.inputs], names, domain=DOMAIN)
    graph = helper.make_graph([node], program.name, inputs, outputs)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    made = helper.make_model(graph, opset_imports=imports, functions=[function(program)], ir_version=_IR_VERSION)
    onnx.checker.check_model(made)
    return made
