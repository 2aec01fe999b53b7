"""What a weight is multiplied with: X'X over calibration runs, the Hessian of a product's squared error.

Padding is left out: short sentences in a model of 128 tokens are nine tenths padding, and weights fitted to that are
fitted to what no output depends on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.core.silence import runtime
from portolan.errors import ModelError, UsageError
from portolan.passes._graphs import write
from portolan.passes._weights import Layer

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: Rows that are collected before they are multiplied.
_TOGETHER = 1024
#: Inputs that say which positions hold something, as tokenizers call them.
_MASKS = ("attention_mask", "input_mask", "mask")


def session(proto: onnx.ModelProto, name: str) -> Any:
    """An ONNX Runtime session of a graph that a pass made for itself.

    Raises:
        ModelError: ONNX Runtime does not load the graph.
    """
    ort = runtime("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = write(proto, Path(scratch) / "probe.onnx")
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions share no class
            raise ModelError(
                f"ONNX Runtime cannot load `{name}`, so nothing can be calibrated: {str(error)[:200]}",
                hint="take a `method` that needs no calibration data",
            ) from error


def run(probe: Any, names: Sequence[str], inputs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One run of a session.

    Raises:
        ModelError: the run fails.
    """
    try:
        return dict(zip(names, probe.run(list(names), dict(inputs)), strict=True))
    except Exception as error:  # as above
        raise ModelError(
            f"ONNX Runtime cannot run `{name}` on the calibration data: {str(error)[:200]}",
            hint="check the data with `portolan bench`",
        ) from error


def hessians(
    graph: onnx.ModelProto, chosen: Sequence[Layer], runs: Sequence[Mapping[str, np.ndarray]], name: str
) -> dict[str, np.ndarray]:
    """X'X of every product's input, by the name of its weight; of a shared weight the sum over its users.

    Args:
        graph: what `layers` looked at.
        chosen: its layers; those that are no products have none.
        runs: inputs of each calibration run.
        name: what to call the model in an error.

    Raises:
        UsageError: an activation is NaN or infinite.
        ModelError: ONNX Runtime cannot run the graph.
    """
    import numpy as np
    import onnx

    products = [layer for layer in chosen if layer.role == "product"]
    given = {value.name for value in graph.graph.input}
    names = list(dict.fromkeys(x for layer in products for x in layer.inputs if x not in given))
    probe = onnx.ModelProto()
    probe.CopyFrom(graph)
    known = {value.name for value in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=x) for x in names if x not in known)
    loaded = session(probe, name)
    # One product per activation, however many weights it goes to.
    sums: dict[str, Any] = {}
    waiting: dict[str, list[Any]] = {}

    def add(key: str) -> None:
        """Adds up what waits: one large product costs less than many small ones."""
        rows = np.concatenate(waiting.pop(key, [])) if waiting.get(key) else None
        if rows is None:
            return
        gram = rows.T @ rows
        if not np.isfinite(gram).all():
            raise UsageError(
                f"`{name}` gives NaN or infinite activations on the calibration data, first in `{key}`",
                hint="give inputs in the range that the model was trained for",
            )
        sums[key] = sums.get(key, 0.0) + gram.astype(np.float64)

    for inputs in runs:
        values = {**inputs, **(run(loaded, names, inputs, name) if names else {})}
        for key in dict.fromkeys(x for layer in products for x in layer.inputs):
            waiting.setdefault(key, []).append(_rows(values[key], inputs))
            if sum(map(len, waiting[key])) >= _TOGETHER:
                add(key)
    for key in list(waiting):
        add(key)
    return {layer.name: sum(sums[key] for key in layer.inputs) for layer in products}


def _rows(values: np.ndarray, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The vectors that a weight is multiplied with, without those at masked positions."""
    import numpy as np

    rows: np.ndarray = values.reshape(-1, values.shape[-1]).astype(np.float32)
    for name in _MASKS:
        mask = inputs.get(name)
        if mask is not None and mask.ndim >= 1 and values.shape[: mask.ndim] == mask.shape and mask.any():
            # Heads or anything else between position and channel would follow the mask's axes.
            shape = mask.shape + (1,) * (values.ndim - mask.ndim - 1)
            kept = np.broadcast_to((mask != 0).reshape(shape), values.shape[:-1])
            rows = rows[kept.reshape(-1)]
            break
    return rows
