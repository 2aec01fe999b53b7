"""What front ends do to a converted graph: names of its inputs, outputs and axes, and writing it as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from portolan.core import protos
from portolan.core.model import Model
from portolan.core.signature import Dim
from portolan.errors import ModelError

if TYPE_CHECKING:
    import onnx

#: Protobuf ends at 2 GiB; above this the weights go into a file of their own.
LARGEST = 1_900_000_000


def write(proto: onnx.ModelProto, out: Path, name: str, format: str) -> Model:
    """Writes `out/NAME.onnx`, large weights into a file beside it, and reads it back.

    Raises:
        ModelError: the graph is invalid.
    """
    import onnx

    from portolan.core.graph import load_model

    proto.graph.name, proto.doc_string, proto.graph.doc_string = name, "", ""
    proto.ClearField("metadata_props")
    for node in proto.graph.node:
        node.ClearField("metadata_props")  # some exporters keep lines and paths of the user's source
        node.doc_string = ""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.onnx"
    if protos.weight_bytes(proto) > LARGEST:
        beside = out / f"{name}.onnx.data"
        beside.unlink(missing_ok=True)  # it would be appended to
        onnx.save_model(proto, str(path), save_as_external_data=True, location=beside.name, size_threshold=256)
    else:
        path.write_bytes(proto.SerializeToString(deterministic=True))
    return load_model(path, name=name, format=format)


def name_axes(proto: onnx.ModelProto, axes: Mapping[str, Sequence[Dim]]) -> None:
    """Gives each input's axes these sizes and names; a first axis that is free in inputs is so in the outputs too."""
    firsts = {shape[0] for shape in axes.values() if shape and isinstance(shape[0], str)}
    for value in proto.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, axes.get(value.name, ()), strict=False):
            if isinstance(size, str):
                dim.dim_param = size
            else:
                dim.dim_value = size
    for value in proto.graph.output:
        dims = value.type.tensor_type.shape.dim
        if len(firsts) == 1 and dims and not dims[0].dim_value:
            dims[0].dim_param = next(iter(firsts))


def rename(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Gives inputs and outputs these names; an inner value that has one of them makes room.

    The exporter itself would define the name twice: an output called `embedding` in a model with an embedding.
    """
    import onnx

    graph = model.graph
    olds = [value.name for value in graph.input]
    mapping: dict[str, str] = dict(zip(olds, inputs, strict=True))
    for value, wanted in zip(graph.output, outputs, strict=True):
        if value.name in mapping or value.name in {t.name for t in graph.initializer}:
            # An input, a weight or an earlier output handed out as it is needs a value of its own.
            graph.node.append(onnx.helper.make_node("Identity", [value.name], [f"{value.name}::{wanted}"]))
            value.name = f"{value.name}::{wanted}"
        mapping[value.name] = wanted
    wanted_names = set(mapping.values())
    if len(wanted_names) != len(mapping):
        raise ModelError(
            f"an input and an output of the model have the same name: {sorted(mapping.values())}",
            hint="give other names to the inputs, or return a tuple instead of a dict",
        )
    used = {name for node in protos.walk(graph.node) for name in (*node.input, *node.output)}
    used |= {tensor.name for tensor in graph.initializer}
    for clash in sorted(wanted_names & used - mapping.keys()):
        mapping[clash] = f"{clash}::inner"
    for one in protos.graphs(model):
        for thing in (*one.input, *one.output, *one.value_info, *one.initializer):
            thing.name = mapping.get(thing.name, thing.name)
        for node in one.node:
            node.input[:] = [mapping.get(name, name) for name in node.input]
            node.output[:] = [mapping.get(name, name) for name in node.output]
