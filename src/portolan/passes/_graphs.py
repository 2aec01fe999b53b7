"""What passes share: loading a graph whole, and turning a changed graph into a Model with the old one's signature."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.core import protos
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.errors import ModelError

if TYPE_CHECKING:
    import onnx

#: Protobuf's own limit is 2 GiB for the file; the graph around the weights needs some of it.
LARGEST_FILE = 2**31 - 2**24
#: Constants of so many bytes stay in the graph's own file, where the weights are apart; the others begin at a page.
_INSIDE, _ALIGNED = 1024, 4096
#: Operators that occur only in quantized graphs.
QUANTIZED = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "MatMulBnb4",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)


def quantized(model: Model) -> bool:
    """Whether the graph holds integer arithmetic already, whoever put it there."""
    names = {operator.rpartition(".")[2] for operator in model.operators}  # without the domain
    return bool(QUANTIZED & names) or any(f.startswith(("int", "weights:")) for f in model.features)


def open_graph(model: Model) -> onnx.ModelProto:
    """A copy of the model's graph in memory with its external data, functions inlined and every node named.

    Weights of old files (IR version 3) are inputs with a default there; they become constants, as the signature has it.
    """
    import onnx
    import onnx.inliner

    proto = onnx.load(model.path)
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in stored]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    proto.ir_version = max(proto.ir_version, 4)
    taken = {node.name for node in proto.graph.node}
    for i, node in enumerate(proto.graph.node):
        if not node.name:
            node.name = next(
                name for k in range(len(taken) + 1) if (name := f"{node.op_type}_{i}" + f"_{k}" * (k > 0)) not in taken
            )
            taken.add(node.name)
    return proto


def header(proto: onnx.ModelProto) -> onnx.ModelProto:
    """What `save_graph` needs of the original, without its nodes and weights: large ones need not stay in memory."""
    import onnx

    made = onnx.ModelProto()
    _copy_fields(proto, made, "graph", "functions", "training_info", "configuration")
    _copy_fields(proto.graph, made.graph, "node", "initializer", "sparse_initializer", "value_info")
    return made


def save_graph(
    proto: onnx.ModelProto, original: onnx.ModelProto, model: Model, folder: Path, features: tuple[str, ...] = ()
) -> Model:
    """Writes `proto` into `folder` and reads it back as what `model` became.

    Args:
        proto: the changed graph. It gets the original's inputs, outputs and metadata; notes that exporters and tools
            leave on single nodes are dropped, so equal input gives equal bytes.
        original: what `open_graph` gave, or its `header`.
        model: the model that the graph was changed from.
        folder: for the file; its weights lie beside it only where one file would be larger than protobuf allows.
        features: those that the pass added.

    Raises:
        ModelError: the changed graph is not valid, or has another signature.
    """
    _restore(proto, original, model)
    path = write(proto, folder / "model.onnx")
    result = load_model(path, name=model.name, format=model.format)
    if result.signature != model.signature:
        raise ModelError(f"the pass changed the signature of `{model.name}`", hint="report this: a pass must not")
    return dataclasses.replace(result, features=(*model.features, *features), program=None)


def write(proto: onnx.ModelProto, path: Path, limit: int = LARGEST_FILE) -> Path:
    """Writes one file, or two where the weights have more than `limit` bytes; equal graphs give equal bytes.

    The graph is as before afterwards: `onnx.save_model` would take the weights out of it.
    """
    whole = proto if protos.weight_bytes(proto) <= limit else _apart(proto, path.with_suffix(".data"))
    path.write_bytes(whole.SerializeToString(deterministic=True))
    return path


def _apart(proto: onnx.ModelProto, beside: Path) -> onnx.ModelProto:
    """A copy whose larger constants lie in the file `beside`; none of them is in memory twice for long."""
    import onnx

    light = onnx.ModelProto()
    _copy_fields(proto, light, "graph")
    _copy_fields(proto.graph, light.graph, "initializer")
    with beside.open("wb") as file:
        for tensor in proto.graph.initializer:
            whole = tensor.HasField("raw_data") or tensor.data_type == onnx.TensorProto.STRING
            stored = tensor if whole else onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name)
            if len(stored.raw_data) <= _INSIDE:
                light.graph.initializer.append(stored)
                continue
            added = light.graph.initializer.add(
                name=stored.name, dims=stored.dims, data_type=stored.data_type, data_location=onnx.TensorProto.EXTERNAL
            )
            file.write(b"\0" * (-file.tell() % _ALIGNED))
            for key, value in (("location", beside.name), ("offset", file.tell()), ("length", len(stored.raw_data))):
                added.external_data.add(key=key, value=str(value))
            file.write(stored.raw_data)
    return light


def _copy_fields(source: Any, target: Any, *but: str) -> None:
    for field, value in source.ListFields():
        if field.name in but:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def _restore(proto: onnx.ModelProto, original: onnx.ModelProto, model: Model) -> None:
    for field in ("input", "output"):
        new, old = getattr(proto.graph, field), getattr(original.graph, field)
        if [value.name for value in new] != [value.name for value in old]:
            raise ModelError(f"the pass changed the {field}s of `{model.name}`", hint="report this: a pass must not")
        del new[:]
        new.extend(old)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(proto, field, getattr(original, field))
    del proto.metadata_props[:]
    proto.metadata_props.extend(sorted(original.metadata_props, key=lambda entry: entry.key))
    proto.graph.name = original.graph.name
    del proto.graph.metadata_props[:]
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*proto.graph.value_info, *proto.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keeps what a library prints and logs below errors to itself; stdout belongs to Portolan's own answer."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
