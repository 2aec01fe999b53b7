"""Normalisation, softmax and attention."""

from __future__ import annotations

import math
from typing import Any

from portolan.errors import UnsupportedOperator
from portolan.importers import numpy_
from portolan.importers.operators.call import Call, Operator


def _softmax(name: str) -> Any:
    def function(call: Call, x: Any) -> Any:
        normal = getattr(call.xp, name)
        if call.version >= 13:
            return normal(x, call.get("axis", -1))
        # Before operator set 13, everything from `axis` on was one axis.
        axis = call.get("axis", 1) % len(x.shape)
        flat = call.xp.reshape(x, [math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])
        return call.xp.reshape(normal(flat, -1), list(x.shape))

    return function


def _hard_max(call: Call, x: Any) -> Any:
    """One at the first of the largest elements, zero elsewhere."""
    axis = call.get("axis", -1 if call.version >= 13 else 1) % len(x.shape)
    flat = x if call.version >= 13 else call.xp.reshape(x, [math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])
    along = axis if call.version >= 13 else 1
    best = call.xp.argmax(flat, along)
    best = call.xp.reshape(best, [1 if i == along else n for i, n in enumerate(flat.shape)])
    line = call.xp.asarray(numpy_.array(list(range(flat.shape[along]))))
    line = call.xp.reshape(line, [-1 if i == along else 1 for i in range(len(flat.shape))])
    return call.xp.reshape(call.xp.astype(best == line, call.xp.dtype(x)), list(x.shape))


def _batch_norm(call: Call, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
    epsilon = call.get("epsilon", 1e-5)
    if not call.get("training_mode", 0):
        return call.xp.batch_norm(x, scale, bias, mean, variance, epsilon)
    # By the batch's own statistics, which move the counted ones a little.
    axes, keep = tuple(i for i in range(len(x.shape)) if i != 1), call.get("momentum", 0.9)
    now = call.xp.reduce("mean", x, axes, False)
    centred = x - call.xp.reduce("mean", x, axes, True)
    spread = call.xp.reduce("mean", centred * centred, axes, False)
    found = call.xp.batch_norm(x, scale, bias, now, spread, epsilon)
    return found, mean * keep + now * (1 - keep), variance * keep + spread * (1 - keep)


def _layer_norm(call: Call, x: Any, scale: Any, bias: Any = None) -> Any:
    axis, epsilon = call.get("axis", -1) % len(x.shape), call.get("epsilon", 1e-5)
    found = call.xp.layer_norm(x, list(x.shape[axis:]), scale, bias, epsilon)
    if call.outputs == 1:
        return found
    axes = tuple(range(axis, len(x.shape)))
    mean = call.xp.reduce("mean", x, axes, True)
    spread = call.xp.reduce("mean", (x - mean) * (x - mean), axes, True)
    return found, mean, 1 / call.xp.sqrt(spread + epsilon)


def _rms_norm(call: Call, x: Any, scale: Any) -> Any:
    axes = tuple(range(call.get("axis", -1) % len(x.shape), len(x.shape)))
    return x / call.xp.sqrt(call.xp.reduce("mean", x * x, axes, True) + call.get("epsilon", 1e-5)) * scale


def _grouped(call: Call, x: Any, groups: int) -> Any:
    """`x` normalised over each group of channels."""
    flat = call.xp.reshape(x, [x.shape[0], groups, -1])
    centred = flat - call.xp.reduce("mean", flat, (2,), True)
    spread = call.xp.reduce("mean", centred * centred, (2,), True)
    return call.xp.reshape(centred / call.xp.sqrt(spread + call.get("epsilon", 1e-5)), list(x.shape))


def _channels(call: Call, values: Any, x: Any) -> Any:
    return call.xp.reshape(values, [-1, *(1 for _ in x.shape[2:])])


def _instance_norm(call: Call, x: Any, scale: Any, bias: Any) -> Any:
    return _grouped(call, x, x.shape[1]) * _channels(call, scale, x) + _channels(call, bias, x)


def _group_norm(call: Call, x: Any, scale: Any, bias: Any) -> Any:
    if call.version < 21:
        raise UnsupportedOperator("`GroupNormalization` before operator set 21 is not supported", hint="export anew")
    groups = call.get("num_groups")
    return _grouped(call, x, groups) * _channels(call, scale, x) + _channels(call, bias, x)


def _lp_norm(call: Call, x: Any) -> Any:
    axis = (call.get("axis", -1) % len(x.shape),)
    first = call.get("p", 2) == 1
    total = call.xp.reduce("sum", call.xp.abs(x) if first else x * x, axis, True)
    size = total if first else call.xp.sqrt(total)
    return x / call.xp.where(size == 0, call.xp.ones_like(size), size)


def _skip_layer_norm(call: Call, x: Any, skip: Any, scale: Any, shift: Any = None, bias: Any = None) -> Any:
    total = x + skip if bias is None else x + skip + bias
    found = call.xp.layer_norm(total, list(x.shape[-1:]), scale, shift, call.get("epsilon", 1e-12))
    return (found, None, None, total) if call.outputs > 3 else found


OPERATORS: dict[str, Operator] = {
    "BatchNormalization": Operator(_batch_norm, folds=False),
    "GroupNormalization": Operator(_group_norm, folds=False),
    "Hardmax": Operator(_hard_max, folds=False),
    "InstanceNormalization": Operator(_instance_norm, folds=False),
    "LayerNormalization": Operator(_layer_norm, folds=False),
    "LogSoftmax": Operator(_softmax("log_softmax"), folds=False),
    "LpNormalization": Operator(_lp_norm),
    "RMSNormalization": Operator(_rms_norm),
    "Softmax": Operator(_softmax("softmax"), folds=False),
    "com.microsoft.SkipLayerNormalization": Operator(_skip_layer_norm, folds=False),
}
