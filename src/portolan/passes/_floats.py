"""Weights stored in 16 bits, with a Cast behind each: half the file, the same arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from portolan.core.model import Model
from portolan.errors import UsageError
from portolan.passes._graphs import save_graph
from portolan.passes._surgery import opened
from portolan.passes._weights import check_finite

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: Smaller constants (a bias of a few channels, a shape) would save less than their Cast takes.
_LEAST = 64


def sixteen(model: Model, folder: Path, kind: str) -> Model:
    """Stores float32 weights as `float16` or `bfloat16`.

    A weight with a value that float16 cannot hold stays as it is. Runtimes fold the Casts when they load, so what is
    resident and what is computed is float32, with weights of 11 (float16) or 8 (bfloat16) significant bits.

    Args:
        model: a float32 model.
        folder: for the new file.
        kind: `float16` or `bfloat16`.

    Raises:
        UsageError: no weight can be stored so.
        ModelError: weights that are NaN or infinite, or a graph that cannot be handled.
    """
    import onnx

    original, graph = opened(model, opset=13)
    casts, shorter, longer = [], [], []
    taken = {t.name for t in graph.graph.initializer} | {o for node in graph.graph.node for o in node.output}
    for i, tensor in enumerate(graph.graph.initializer):
        short = _short(tensor, kind, model.name)
        if short is None:
            continue
        while short.name in taken:
            short.name += "_"
        shorter.append(short)
        longer.append(i)
        # The Cast gives the weight its old name, so nobody who reads it changes, in whatever graph.
        node = onnx.helper.make_node("Cast", [short.name], [tensor.name], name=short.name, to=onnx.TensorProto.FLOAT)
        casts.append(node)
    if not casts:
        raise UsageError(
            f"`{model.name}` cannot be stored as {kind}: it has no float32 weights that fit",
            hint="leave `quantize` out of the recipe",
        )
    # In place: a copy of the whole message would hold the weights once more, or fail beyond 2 GiB.
    for i in reversed(longer):
        del graph.graph.initializer[i]
    graph.graph.initializer.extend(shorter)
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return save_graph(graph, original, model, folder, (kind,))


def _short(tensor: onnx.TensorProto, kind: str, model: str) -> onnx.TensorProto | None:
    """The tensor in 16 bits; None where it must or should stay."""
    import math

    import numpy as np
    import onnx

    if tensor.data_type != onnx.TensorProto.FLOAT or math.prod(tensor.dims) < _LEAST:
        return None
    array = onnx.numpy_helper.to_array(tensor)
    check_finite(array, tensor.name, model)
    name = f"{tensor.name}.{kind}"
    if kind == "float16":
        if float(np.abs(array).max()) > float(np.finfo(np.float16).max):
            return None
        return onnx.numpy_helper.from_array(array.astype(np.float16), name)
    short = onnx.TensorProto(name=name, data_type=onnx.TensorProto.BFLOAT16, dims=tensor.dims)
    short.raw_data = _bfloat16(array).astype("<u2").tobytes()
    return short


def _bfloat16(array: np.ndarray) -> np.ndarray:
    """The upper halves of float32, rounded to the nearest, ties to even; the largest finite values stay finite."""
    import numpy as np

    raw = np.ascontiguousarray(array, np.float32).view(np.uint32)
    nearest = (raw + np.uint32(0x7FFF) + ((raw >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    endless = (nearest & np.uint32(0x7FFF)) == np.uint32(0x7F80)
    found: np.ndarray = np.where(endless, raw >> np.uint32(16), nearest).astype(np.uint16)
    return found
