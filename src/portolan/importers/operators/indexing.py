"""Operators that pick, place, sort or mark elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from portolan.errors import UnsupportedOperator
from portolan.importers import numpy_
from portolan.importers.operators.call import Call, Operator, sizes
from portolan.importers.operators.elementwise import TYPES

if TYPE_CHECKING:
    import numpy as np


def _positive(call: Call, indices: Any, size: Any) -> Any:
    return call.xp.where(indices < 0, indices + size, indices)


def _gather(call: Call, x: Any, indices: Any) -> Any:
    axis = call.get("axis", 0) % len(x.shape)
    return call.xp.take(x, _positive(call, indices, x.shape[axis]), axis)


def _gather_elements(call: Call, x: Any, indices: Any) -> Any:
    axis = call.get("axis", 0) % len(x.shape)
    return call.xp.take_along(x, _positive(call, indices, x.shape[axis]), axis)


def _gather_nd(call: Call, x: Any, indices: Any) -> Any:
    if batch := call.get("batch_dims", 0):
        lead = _grids(call, list(indices.shape[:-1]))[:batch]
        rest = tuple(_positive(call, indices[..., i], x.shape[batch + i]) for i in range(indices.shape[-1]))
        return x[(*lead, *rest)]
    return x[_columns(call, x, indices)]


def _columns(call: Call, x: Any, indices: Any) -> tuple[Any, ...]:
    """The last axis of `indices` as an index array per axis of `x`."""
    return tuple(_positive(call, indices[..., i], x.shape[i]) for i in range(indices.shape[-1]))


def _grids(call: Call, shape: list[Any]) -> list[Any]:
    """Each place's own index along each axis, broadcastable to `shape`."""
    found = []
    for axis, size in enumerate(shape):
        line = call.xp.asarray(call.xp.arange(0, size, 1, "int64"))
        found.append(call.xp.reshape(line, [size if i == axis else 1 for i in range(len(shape))]))
    return found


def _scatter_nd(call: Call, x: Any, indices: Any, updates: Any) -> Any:
    return call.xp.put(x, _columns(call, x, indices), updates, call.get("reduction", "none"))


def _scatter_elements(call: Call, x: Any, indices: Any, updates: Any) -> Any:
    axis = call.get("axis", 0) % len(x.shape)
    places = _grids(call, list(indices.shape))
    places[axis] = _positive(call, indices, x.shape[axis])
    return call.xp.put(x, tuple(places), updates, call.get("reduction", "none"))


def _top_k(call: Call, x: Any, k: np.ndarray | None = None) -> tuple[Any, Any]:
    count = sizes(k)[0] if k is not None else call.get("k")
    return call.xp.topk(x, count, call.get("axis", -1), bool(call.get("largest", 1)))  # type: ignore[no-any-return]


def _one_hot(call: Call, indices: Any, depth: np.ndarray, values: Any) -> Any:
    count = int(sizes(depth)[0])
    axis = call.get("axis", -1) % (len(indices.shape) + 1)
    shape = list(indices.shape)
    shape.insert(axis, 1)
    steps = call.xp.asarray(numpy_.array(list(range(count))))
    steps = call.xp.reshape(steps, [count if i == axis else 1 for i in range(len(shape))])
    at = call.xp.astype(_positive(call, indices, count), "int64")
    return call.xp.where(call.xp.reshape(at, shape) == steps, values[1], values[0])


def _triangle(call: Call, x: Any, k: np.ndarray | None = None) -> Any:
    offset = 0 if k is None else sizes(k)[0]
    return call.xp.triu(x, offset) if call.get("upper", 1) else call.xp.tril(x, offset)


def _eye_like(call: Call, x: Any) -> Any:
    kind = TYPES[call.get("dtype")] if call.get("dtype") else call.xp.dtype(x)
    rows, columns = (call.xp.arange(0, n, 1, "int64") for n in x.shape)
    rows, columns = call.xp.asarray(rows), call.xp.asarray(columns)
    return call.xp.astype(call.xp.reshape(rows, [-1, 1]) + call.get("k", 0) == columns, kind)


def _resize(
    call: Call, x: Any, roi: Any = None, scales: np.ndarray | None = None, given: np.ndarray | None = None
) -> Any:  # fmt: skip
    del roi
    if call.version < 11:
        raise UnsupportedOperator("`Resize` of operator set 10 is not supported", hint="export with a newer one")
    axes = call.get("axes", list(range(len(x.shape))))
    policy = call.get("keep_aspect_ratio_policy", "stretch")
    if call.get("mode", "nearest") not in ("nearest", "linear") or policy != "stretch" or call.get("antialias", 0):
        raise UnsupportedOperator("`Resize` is supported for `nearest` and `linear` only", hint="export one of these")
    for i, axis in enumerate(axes):
        old = x.shape[axis]
        wanted = None if given is None or given.size == 0 else sizes(given)[i]
        factor = float(scales[i]) if wanted is None else wanted / old  # type: ignore[index]
        new = int(old * factor) if wanted is None else wanted
        if new != old or factor != 1:
            x = _resample(call, x, axis, old, new, factor)
    return x


def _resample(call: Call, x: Any, axis: int, old: int, new: int, factor: float) -> Any:
    import numpy as np

    places = _origins(call.get("coordinate_transformation_mode", "half_pixel"), old, new, factor)
    if call.get("mode", "nearest") == "nearest":
        rounded = _nearest(places, call.get("nearest_mode", "round_prefer_floor"))
        chosen = np.clip(rounded, 0, old - 1).astype(np.int64)
        return call.xp.take(x, call.xp.asarray(chosen), axis)
    places = np.clip(places, 0, old - 1)
    low = np.floor(places).astype(np.int64)
    share = (places - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(len(x.shape))])
    below = call.xp.take(x, call.xp.asarray(low), axis)
    above = call.xp.take(x, call.xp.asarray(np.minimum(low + 1, old - 1)), axis)
    weight = call.xp.asarray(share)
    return below * (1 - weight) + above * weight


def _origins(mode: str, old: int, new: int, factor: float) -> np.ndarray:
    """Where in the old axis each new element comes from."""
    import numpy as np

    steps = np.arange(new, dtype=np.float64)
    if mode == "asymmetric":
        return steps / factor
    if mode == "align_corners":
        return steps * (old - 1) / (old * factor - 1) if new > 1 else steps * 0
    if mode == "pytorch_half_pixel" and new == 1:
        return steps * 0
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (steps + 0.5) / factor - 0.5
    raise UnsupportedOperator(f"`Resize` with `{mode}` is not supported", hint="export it with `half_pixel`")


def _nearest(places: np.ndarray, mode: str) -> np.ndarray:
    import numpy as np

    rounding: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "round_prefer_floor": lambda p: np.ceil(p - 0.5),
        "round_prefer_ceil": lambda p: np.floor(p + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    return rounding[mode](places)


OPERATORS: dict[str, Operator] = {
    "EyeLike": Operator(_eye_like),
    "Gather": Operator(_gather),
    "GatherElements": Operator(_gather_elements),
    "GatherND": Operator(_gather_nd),
    "NonZero": Operator(lambda call, x: call.xp.nonzero(x)),
    "OneHot": Operator(_one_hot, static=(1,), folds=False),
    "Resize": Operator(_resize, static=(1, 2, 3), folds=False),
    "ScatterElements": Operator(_scatter_elements),
    "ScatterND": Operator(_scatter_nd),
    "TopK": Operator(_top_k, static=(1,), folds=False),
    "Trilu": Operator(_triangle, static=(1,)),
}
