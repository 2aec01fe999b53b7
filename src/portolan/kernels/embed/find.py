"""Where a model calls a kernel's operator, and how large its arguments are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from portolan.core import protos
from portolan.errors import UsageError, nearest
from portolan.kernels.arrays import sizes
from portolan.kernels.embed.function import DOMAIN
from portolan.kernels.tree import Program


@dataclass(frozen=True)
class Site:
    """A kernel's operator in a model.

    Attributes:
        program: the kernel.
        nodes: how many nodes call it.
        sizes: of the first of them; None where the graph does not say.
        function: the body that the model holds (an `onnx.FunctionProto`), None without.
    """

    program: Program
    nodes: int
    sizes: Mapping[str, int] | None
    function: Any


def sites(model: onnx.ModelProto, programs: Sequence[Program], domain: str = DOMAIN) -> list[Site]:
    """The kernels that a model calls, by domain and name. Only names are compared: nothing of the model is compiled.

    Raises:
        UsageError: it calls none of them, or with another number of arguments or results.
    """
    nodes = [n for _, body in protos.bodies(model) for n in body if n.domain == domain]
    shapes = _shapes(model)
    bodies = {f.name: f for f in model.functions if f.domain == domain}
    found = []
    for program in programs:
        own = [n for n in nodes if n.op_type == program.name]
        for node in own:
            if len(node.input) != len(program.inputs) or len(node.output) > len(program.outputs):
                raise UsageError(
                    f"the model calls `{domain}::{program.name}` with {len(node.input)} arguments and "
                    f"{len(node.output)} results, and the kernel has {len(program.inputs)} and {len(program.outputs)}",
                    hint="export the model with the kernel as it is now",
                )
        if own:
            found.append(Site(program, len(own), _sizes(program, own[0], shapes), bodies.get(program.name)))
    if not found:
        names = sorted({n.op_type for n in nodes})
        wanted = ", ".join(f"`{p.name}`" for p in programs)
        hint = nearest(programs[0].name, names) if names else "`--onnx` writes the function to build such a model from"
        raise UsageError(f"the model calls none of the operators {wanted} of `{domain}`", hint=hint)
    return found


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError:
        inferred = model  # an operator that ONNX knows nothing of: what the graph itself says has to do
    found = {t.name: tuple(t.dims) for t in inferred.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.HasField("shape") and all(d > 0 for d in dims):
            found[value.name] = tuple(dims)
    return found


def _sizes(program: Program, node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int] | None:
    known = [shapes.get(name) for name in node.input]
    if any(k is None or len(k) != len(t.axes) for k, t in zip(known, program.inputs, strict=True)):
        return None
    return sizes(program, [k for k in known if k is not None])
