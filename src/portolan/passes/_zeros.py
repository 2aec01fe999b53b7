"""Zeros in weights whose shapes stay: any share of them, or two of every four in a row along the summed axis.

The score of a weight is its size, times the norm of its input on calibration data where there are any (Wanda,
arXiv:2306.11695). With data the weights that stay are then fitted anew to the layer's output, by conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from portolan.passes._layers import Layer
from portolan.passes._moments import Moment
from portolan.passes._surgery import Constants, attribute

if TYPE_CHECKING:
    import numpy as np

_RIDGE = 1e-2
_STEPS = 40
#: Weights that are fitted at once: six arrays of this size are in memory then.
_TOGETHER = 2**22
#: Weights per output below which a layer is left whole.
_FEWEST = 16
FOUR = 4


def dense(layer: Layer) -> bool:
    """Whether each output sums over many weights; where it has but a few (depthwise convolutions), each counts."""
    return summed(layer) * (1 if layer.product else int(layer.weight[0, 0].size)) >= _FEWEST


def summed(layer: Layer) -> int:
    """How many inputs each output sums over, the window aside."""
    return int(layer.weight.shape[0] if layer.product else layer.weight.shape[1])


def zero(
    constants: Constants, layers: Sequence[Layer], seen: Mapping[str, Moment], *, ratio: float | None, together: bool
) -> None:
    """Sets weights to zero.

    Args:
        constants: of the graph; they are changed.
        layers: what to work on.
        seen: moments of each layer's inputs by its weight's name; empty to go by size alone.
        ratio: the share of zeros; None for two of four.
        together: one threshold for all layers, not one for each.
    """
    import numpy as np

    for layer, mask in zip(layers, _masks(layers, seen, ratio, together), strict=True):
        rows = np.where(mask, 0, _rows(layer))
        moment = seen.get(layer.name)
        if moment is not None and layer.groups == 1:
            rows = _refit(_rows(layer).astype(np.float64), mask, moment)
        _store(constants, layer, rows)


def _masks(
    layers: Sequence[Layer], seen: Mapping[str, Moment], ratio: float | None, together: bool
) -> Iterator[np.ndarray]:
    """Where each layer's zeros go. One threshold for all needs all scores at once, else one layer's are in memory."""
    import numpy as np

    scores = (np.abs(_rows(layer).astype(np.float64)) * _norms(layer, seen.get(layer.name)) for layer in layers)
    if together and ratio is not None:
        every = list(scores)
        flat = _smallest(np.concatenate([score.ravel() for score in every]), ratio)
        lengths = np.cumsum([score.size for score in every])[:-1]
        yield from (part.reshape(s.shape) for part, s in zip(np.split(flat, lengths), every, strict=True))
        return
    for score in scores:
        yield _two_of_four(score) if ratio is None else _smallest(score.ravel(), ratio).reshape(score.shape)


def _rows(layer: Layer) -> np.ndarray:
    """The weight as [outputs, inputs, positions of the window]."""
    w = layer.weight
    return w.T[:, :, None] if layer.product else w.reshape(w.shape[0], w.shape[1], -1)


def _store(constants: Constants, layer: Layer, rows: np.ndarray) -> None:
    if not layer.product:
        constants.put(layer.name, rows.reshape(layer.weight.shape))
        return
    node = layer.nodes[0]
    alpha = attribute(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0
    turned = node.op_type == "Gemm" and attribute(node, "transB", 0)
    constants.put(layer.name, (rows[:, :, 0] if turned else rows[:, :, 0].T) / alpha)


def _norms(layer: Layer, moment: Moment | None) -> np.ndarray:
    """The root mean square of each input of each output, [outputs or 1, inputs, 1]."""
    import numpy as np

    if moment is None:
        return np.ones((1, 1, 1))
    groups = layer.groups
    each = np.sqrt(moment.square).reshape(groups, -1, 1)
    return np.repeat(each, len(layer.weight) // groups if groups > 1 else 1, axis=0)


def _smallest(scores: np.ndarray, ratio: float) -> np.ndarray:
    """Where the smallest share of the scores is; among equal ones the first."""
    import numpy as np

    mask = np.zeros(len(scores), bool)
    mask[np.argsort(scores, kind="stable")[: round(ratio * len(scores))]] = True
    return mask


def _two_of_four(scores: np.ndarray) -> np.ndarray:
    """Where the two smaller of each four neighbours along the inputs are."""
    import numpy as np

    outputs, inputs, window = scores.shape
    fours = scores.transpose(0, 2, 1).reshape(-1, FOUR)
    mask = np.zeros(fours.shape, bool)
    np.put_along_axis(mask, np.argsort(fours, axis=1, kind="stable")[:, :2], True, axis=1)
    return mask.reshape(outputs, window, inputs).transpose(0, 2, 1)


def _refit(rows: np.ndarray, mask: np.ndarray, moment: Moment) -> np.ndarray:
    """The weights that stay, fitted to what the layer gave, some outputs at a time."""
    import numpy as np

    h = moment.mean
    h.flat[:: len(h) + 1] += max(float(np.trace(h)) / len(h), 1e-30) * _RIDGE
    wanted = np.moveaxis(rows, 1, 2).reshape(-1, len(h))  # [outputs x window, inputs]
    free = ~np.moveaxis(mask, 1, 2).reshape(wanted.shape)
    many = max(1, _TOGETHER // len(h))
    parts = [_fitted(wanted[i : i + many], free[i : i + many], h) for i in range(0, len(wanted), many)]
    outputs, inputs, window = rows.shape
    return np.moveaxis(np.concatenate(parts).reshape(outputs, window, inputs), 2, 1)


def _fitted(wanted: np.ndarray, free: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Conjugate gradients for all rows of `wanted` at once."""
    import numpy as np

    scale = 1 / h.diagonal()
    w = np.where(free, wanted, 0.0)
    residual = (wanted - w) @ h * free
    step = residual * scale
    power = (residual * step).sum(1, keepdims=True)
    for _ in range(_STEPS):
        along = step @ h * free
        length = power / np.maximum((step * along).sum(1, keepdims=True), 1e-300)
        w += length * step
        residual -= length * along
        better = residual * scale
        now = (residual * better).sum(1, keepdims=True)
        step = better + now / np.maximum(power, 1e-300) * step
        power = now
    return w
