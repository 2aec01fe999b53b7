"""Second moments of activations on calibration data: what the next layer really sees of each channel and each pair.

For a weight input x with K channels, the sum of x x' over all samples and positions. It says how much an error in a
weight matters (Wanda, arXiv:2306.11695), which directions of a matrix are used (whitening in front of an SVD), and how
well a dropped channel can be rebuilt from those that stay. It is also the Hessian of a product's squared error.

Padding is left out: short sentences in a model of 128 tokens are nine tenths padding, and weights fitted to that are
fitted to what no output depends on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from portolan.core.model import Model
from portolan.errors import UsageError
from portolan.passes._observe import explained, session
from portolan.passes._weights import Layer

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: Samples per run where the model leaves the batch free: products of a few rows cost more than they compute.
_BATCH = 8
#: Rows that are collected before they are multiplied.
_TOGETHER = 1024
#: Inputs that say which positions hold something, as tokenizers call them.
_MASKS = ("attention_mask", "input_mask", "mask")


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
    proto: onnx.ModelProto, axes: Mapping[str, int], runs: Sequence[Mapping[str, np.ndarray]], name: str
) -> dict[str, Moment]:
    """Runs the graph with ONNX Runtime and adds up the moments of some of its tensors.

    Args:
        proto: the graph to run.
        axes: the tensors to look at, each with the axis of its channels.
        runs: the inputs of each run, from `usable` or `joined`.
        name: what to call the model in an error.

    Raises:
        UsageError: an activation is NaN or infinite.
        ModelError: ONNX Runtime cannot run the graph.
    """
    given = {value.name for value in proto.graph.input}
    made = [tensor for tensor in axes if tensor not in given]
    sums = {tensor: _Sum(tensor, name) for tensor in axes}
    with explained(name), session(proto, made) as running:
        for inputs in runs:
            values = dict(zip(made, running.run(made, dict(inputs)), strict=True)) if made else {}
            for tensor, axis in axes.items():
                sums[tensor].add(_rows(values[tensor] if tensor in values else inputs[tensor], axis, inputs))
    return {tensor: found.moment() for tensor, found in sums.items()}


def hessians(
    graph: onnx.ModelProto, chosen: Sequence[Layer], runs: Sequence[Mapping[str, np.ndarray]], name: str
) -> dict[str, np.ndarray]:
    """X'X of every product's input, the Hessian of its squared error, by the name of its weight.

    Args:
        graph: what `layers` looked at.
        chosen: its layers; those that are no products have none. A weight that is shared has the sum over its users.
        runs: inputs of each calibration run.
        name: what to call the model in an error.

    Raises:
        UsageError, ModelError: as `moments`.
    """
    products = [layer for layer in chosen if layer.role == "product"]
    known = moments(graph, {tensor: -1 for layer in products for tensor in layer.inputs}, runs, name)
    return {layer.name: reduce(add, (known[tensor] for tensor in layer.inputs)).gram for layer in products}


class _Sum:
    """The moment of one tensor while runs go by. Rows wait: one large product costs less than many small ones."""

    def __init__(self, tensor: str, model: str) -> None:
        self._tensor, self._model = tensor, model
        self._waiting: list[np.ndarray] = []
        self._gram: Any = None
        self._rows = 0

    def add(self, rows: np.ndarray) -> None:
        """Takes one run's rows.

        Raises:
            UsageError: what waited so far holds NaN or infinity.
        """
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= _TOGETHER:
            self._multiply()

    def moment(self) -> Moment:
        """Everything added up."""
        if self._waiting:
            self._multiply()
        return Moment(self._gram, self._rows)

    def _multiply(self) -> None:
        import numpy as np

        rows = np.concatenate(self._waiting)
        self._waiting = []
        with np.errstate(over="ignore", invalid="ignore"):
            gram = rows.T @ rows
        if not np.isfinite(gram).all():
            raise UsageError(
                f"`{self._model}` gives NaN or infinite activations on the calibration data, first in `{self._tensor}`",
                hint="give inputs in the range that the model was trained for",
            )
        self._gram = gram.astype(np.float64) if self._gram is None else np.add(self._gram, gram, out=self._gram)
        self._rows += len(rows)


def _rows(values: np.ndarray, axis: int, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The vectors along an axis, without those at masked positions."""
    import numpy as np

    values = np.moveaxis(values, axis, -1)
    rows: np.ndarray = values.reshape(-1, values.shape[-1])
    rows = rows.astype(np.float64 if rows.dtype == np.float64 else np.float32, copy=False)
    for name in _MASKS:
        mask = inputs.get(name)
        if mask is not None and mask.ndim >= 1 and values.shape[: mask.ndim] == mask.shape and mask.any():
            # Heads or anything else between position and channel would follow the mask's axes.
            shape = mask.shape + (1,) * (values.ndim - mask.ndim - 1)
            kept = np.broadcast_to((mask != 0).reshape(shape), values.shape[:-1])
            rows = rows[kept.reshape(-1)]
            break
    return rows


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
    mean.flat[:: size + 1] += scale * ridge
    lower: np.ndarray = np.linalg.cholesky(mean)
    return lower.T


def joined(model: Model, runs: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
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
