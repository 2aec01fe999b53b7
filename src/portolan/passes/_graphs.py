"""What passes share: loading a graph whole, and turning a changed graph into a Model with the old one's signature."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from portolan.core import protos
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.errors import ModelError

if TYPE_CHECKING:
    import onnx

#: Protobuf's own limit is 2 GiB for the file; the graph around the weights needs some of it.
LARGEST_FILE = 2**31 - 2**24
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


def save_graph(
    proto: onnx.ModelProto, original: onnx.ModelProto, model: Model, folder: Path, features: tuple[str, ...] = ()
) -> Model:
    """Writes `proto` into `folder` and reads it back as what `model` became.

    Args:
        proto: the changed graph. It gets the original's inputs, outputs and metadata; notes that exporters and tools
            leave on single nodes are dropped, so equal input gives equal bytes.
        original: what `open_graph` gave.
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
    """Writes one file, or two where the weights have more than `limit` bytes; equal graphs give equal bytes."""
    import onnx

    if protos.weight_bytes(proto) > limit:
        onnx.save_model(
            proto, path, save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.stem}.data"
        )
    else:
        path.write_bytes(proto.SerializeToString(deterministic=True))
    return path


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
