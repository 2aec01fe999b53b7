"""A pass in one file: float weights stored in 16 bits, and turned back into 32 where they are used."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context, compression
from portolan.core.schema import Knob


@compression(lossy=lambda options: True, stage=lambda options: "precision", distributions=("onnx",))
def halve(
    model: Model,
    context: Context,
    *,
    least: Annotated[int, Knob(values=(256, 4096), help="smallest number of elements of a weight that changes")] = 256,
) -> Model:
    """Stores float32 weights as float16: half the file, the same arithmetic.

    Args:
        model: any model; weights of other types stay as they are.
        context: its folder gets the new file.
        least: weights with fewer elements stay as they are.
    """
    import numpy as np
    import onnx

    proto = onnx.load(str(model.path))  # external data included
    given = {value.name for value in proto.graph.input}
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.name in given:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if values.size < least or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name, short = tensor.name, f"{tensor.name}.float16"
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), short))
        casts.append(onnx.helper.make_node("Cast", [short], [name], name=f"{short}.cast", to=onnx.TensorProto.FLOAT))
    for node in reversed(casts):
        proto.graph.node.insert(0, node)
    path = context.folder / "model.onnx"
    path.write_bytes(proto.SerializeToString(deterministic=True))  # equal input, equal bytes: results are cached
    result = load_model(path, name=model.name, format=model.format)
    return dataclasses.replace(result, features=model.features)
