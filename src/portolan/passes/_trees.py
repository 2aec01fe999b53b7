"""Tree ensembles behind a Scaler compare with the numbers that came in: the same answers, bit for bit, without it.

A scaler of positive factors keeps the order of a feature's values, rounding included. So for each threshold there is
one float32 up to which the scaled value is below it, and it is found by halving: 32 steps for all nodes at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from portolan.core import protos

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]
_DOMAIN = "ai.onnx.ml"
_FLOAT32 = 1
"""`onnx.TensorProto.FLOAT`."""
_TREES = ("TreeEnsembleClassifier", "TreeEnsembleRegressor")
#: What their nodes compare, by what, and with what.
_NODES = ("nodes_featureids", "nodes_modes", "nodes_values")
#: Comparisons by whether what is equal to the threshold goes with what is below it.
_BELOW = {b"BRANCH_LEQ": True, b"BRANCH_GT": True, b"BRANCH_LT": False, b"BRANCH_GTE": False}
_LEAF = b"LEAF"
#: Beside the keys of all finite numbers.
_INFINITE = 0x7F800000


def without_scalers(proto: onnx.ModelProto) -> None:
    """Lets every tree ensemble that reads a Scaler's float32 input through it compare with that input, in place.

    A Scaler stays where something else reads it, and where its factors are not all positive and finite.
    """
    graph = proto.graph
    inputs = {value.name for value in graph.input if value.type.tensor_type.elem_type == _FLOAT32}
    outputs = {value.name for value in graph.output}
    for scaler in [n for n in graph.node if n.domain == _DOMAIN and n.op_type == "Scaler" and n.input[0] in inputs]:
        scaled = scaler.output[0]
        trees = [node for node in graph.node if scaled in node.input]
        read = sum(scaled in node.input for node in protos.walk(graph.node))
        if scaled in outputs or read > len(trees) or not trees or not all(_foldable(tree, scaler) for tree in trees):
            continue
        for tree in trees:
            _fold(tree, scaler)
        graph.node.remove(scaler)


def _foldable(tree: onnx.NodeProto, scaler: onnx.NodeProto) -> bool:
    values = _attributes(tree)
    # Thresholds in float64 are in another attribute.
    if tree.domain != _DOMAIN or tree.op_type not in _TREES or not values.keys() >= {*_NODES}:
        return False
    offset, scale = _affine(scaler)
    modes, features = values["nodes_modes"].strings, values["nodes_featureids"].ints
    thresholds = values["nodes_values"].floats
    return (
        0 < len(thresholds) == len(modes) == len(features)
        and {*modes} <= {_LEAF, *_BELOW}
        and bool(np.isfinite(np.concatenate([thresholds, offset, scale])).all() and (scale > 0).all())
        and len(scale) == len(offset)
        and (len(scale) == 1 or 0 <= min(features) <= max(features) < len(scale))
    )


def _fold(tree: onnx.NodeProto, scaler: onnx.NodeProto) -> None:
    offset, scale = _affine(scaler)
    values = _attributes(tree)
    features = np.array(values["nodes_featureids"].ints) if len(scale) > 1 else 0
    thresholds = np.array(values["nodes_values"].floats, np.float32)
    modes = values["nodes_modes"].strings
    with_equal = np.array([_BELOW.get(mode, True) for mode in modes])
    found = unscaled(thresholds, offset[features], scale[features], with_equal)
    leaf = np.array([mode == _LEAF for mode in modes])
    values["nodes_values"].floats[:] = np.where(leaf, thresholds, found).tolist()
    tree.input[0] = scaler.input[0]


def unscaled(thresholds: Array, offset: Array, scale: Array, with_equal: Array) -> Array:
    """What to compare a value with, instead of comparing the scaled value with a threshold.

    Args:
        thresholds: float32, one for each comparison.
        offset: what the scaler subtracts from each value, float32.
        scale: what it multiplies with then, float32 and positive.
        with_equal: per comparison, whether a scaled value equal to the threshold goes with those below it (`<=` and
            `>`); else with those above (`<` and `>=`).

    Returns:
        float32: the last value on the lower side where `with_equal`, else the first one on the upper side.
    """
    low = np.full(thresholds.shape, -_INFINITE, np.int64)  # minus infinity is below every threshold
    high = np.full(thresholds.shape, _INFINITE, np.int64)  # and infinity above
    while np.any(high - low > 1):
        middle = (low + high) // 2
        with np.errstate(over="ignore"):
            scaled = (_floats(middle) - offset) * scale
        below = np.where(with_equal, scaled <= thresholds, scaled < thresholds)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return _floats(np.where(with_equal, low, high))


def _floats(keys: Array) -> Array:
    """float32 by keys in the order of the numbers: 0 is 0, and neighbours are one apart."""
    return np.where(keys < 0, 0x80000000 - keys, keys).astype(np.uint32).view(np.float32)


def _affine(scaler: onnx.NodeProto) -> tuple[Array, Array]:
    values = _attributes(scaler)
    offset, scale = (
        np.array(values[name].floats if name in values else [], np.float32) for name in ("offset", "scale")
    )
    return offset, scale


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: attribute for attribute in node.attribute}
