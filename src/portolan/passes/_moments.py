"""Second moments of activations on calibration data: what the next layer really sees of each channel and each pair.

For a weight input x with K channels, the sum of x x' over all samples and positions. It says how much an error in a
weight matters (Wanda, arXiv:2306.11695), which directions of a matrix are used (whitening in front of an SVD), and how
well a dropped channel can be rebuilt from those that stay.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.core.model import Model
from portolan.core.silence import runtime
from portolan.errors import ModelError, UsageError
from portolan.passes._graphs import write

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: Samples per run where the model leaves the batch free: products of a few rows cost more than they compute.
_BATCH = 8


@dataclass(frozen=True, eq=False)
class Moment:
    """What calibration says of one tensor's channels.

    Attributes:
        gram: sum of x x' over all rows, float64 [K, K].
        rows: how many rows (samples times positions) that is.
    """

    gram: np.ndarray
    rows: int

    @property
    def mean(self) -> np.ndarray:
        """E[x x'], float64 [K, K]."""
        return self.gram / self.rows

    @property
    def square(self) -> np.ndarray:
        """E[x^2] of each channel, float64 [K]."""
        found: np.ndarray = self.gram.diagonal() / self.rows
        return found

    def __add__(self, other: Moment) -> Moment:
        """Both together, for a weight that two nodes share."""
        return Moment(self.gram + other.gram, self.rows + other.rows)


def moments(
    model: Model, proto: onnx.ModelProto, axes: Mapping[str, int], runs: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Moment]:
    """Runs the graph with ONNX Runtime and adds up the moments of some of its tensors.

    Args:
        model: the model, for its signature.
        proto: the graph to run, which has the model's inputs.
        axes: the tensors to look at, each with the axis of its channels.
        runs: the inputs of each run, from `usable`.

    Raises:
        UsageError: an activation is NaN or infinite.
        ModelError: ONNX Runtime cannot run the graph.
    """
    import numpy as np

    inner = [name for name in axes if all(name != value.name for value in proto.graph.input)]
    session = _session(model, proto, inner)
    grams: dict[str, Any] = {}
    rows = dict.fromkeys(axes, 0)
    for inputs in _batches(model, runs):
        try:
            values = dict(zip(inner, session.run(inner, inputs), strict=True)) if inner else {}
        except Exception as error:  # the runtime's own exceptions share no class
            raise ModelError(
                f"ONNX Runtime cannot run `{model.name}` on the calibration data: {error}",
                hint="check the data with `portolan bench`",
            ) from error
        for name, axis in axes.items():
            x = np.moveaxis(values[name] if name in values else inputs[name], axis, -1)
            x = x.reshape(-1, x.shape[-1]).astype(np.float64 if x.dtype == np.float64 else np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                gram = x.T @ x
            if not np.isfinite(gram).all():
                raise UsageError(
                    f"`{model.name}` gives NaN or infinite activations on the calibration data, first in `{name}`",
                    hint="give inputs in the range that the model was trained for",
                )
            grams[name] = grams.get(name, 0.0) + gram.astype(np.float64)
            rows[name] += len(x)
    return {name: Moment(grams[name], rows[name]) for name in axes}


def whitener(moment: Moment | None, size: int, ridge: float = 1e-3) -> np.ndarray:
    """An upper triangular L with L'L = E[x x'] + ridge, so that |L w| is the error that w makes in the output.

    Args:
        moment: None for the identity: every direction counts the same.
        size: channels.
        ridge: added to the diagonal, as a share of its mean: directions that calibration never showed are not free.
    """
    import numpy as np

    if moment is None:
        return np.eye(size)
    mean = moment.mean
    scale = float(np.trace(mean)) / size
    if scale == 0:
        return np.eye(size)
    lower: np.ndarray = np.linalg.cholesky(mean + np.eye(size) * scale * ridge)
    return lower.T


def _session(model: Model, proto: onnx.ModelProto, names: Sequence[str]) -> Any:
    import onnx

    ort = runtime("onnxruntime")
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    known = {value.name for value in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = write(probe, Path(scratch) / "probe.onnx")
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own exceptions share no class
            raise ModelError(
                f"ONNX Runtime cannot load `{model.name}`, so nothing can be calibrated: {error}",
                hint="use a method that needs no calibration data",
            ) from error


def _batches(model: Model, runs: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Single samples put together where the first axis of every input is the free batch."""
    import numpy as np

    specs = model.signature.inputs
    joint = isinstance(model.signature.batch, str) and all(
        spec.shape and spec.shape[0] == model.signature.batch for spec in specs
    )
    if not joint:
        return [dict(inputs) for inputs in runs]
    parts = [runs[i : i + _BATCH] for i in range(0, len(runs), _BATCH)]
    return [{spec.name: np.concatenate([run[spec.name] for run in part]) for spec in specs} for part in parts]
