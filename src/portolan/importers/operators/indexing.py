"""Operators that pick, place, sort or mark elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def _tensor_scatter(call: Call, past: Any, update: Any, starts: Any = None) -> Any:
    """Rows written into a cache along an axis, each batch from a place of its own."""
    axis = call.get("axis", -2) % len(past.shape)
    places = _grids(call, list(update.shape))
    if starts is not None:
        places[axis] = places[axis] + call.xp.reshape(starts, [-1, *(1 for _ in past.shape[1:])])
    if call.get("mode", "linear") == "circular":
        places[axis] = places[axis] % past.shape[axis]
    return call.xp.put(past, tuple(places), update, "none")


def _reverse_sequence(call: Call, x: Any, lengths: Any) -> Any:
    """The first elements of each row turned round, as many as its length says."""
    time, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    places = _grids(call, list(x.shape))
    held = call.xp.reshape(lengths, [-1 if i == batch else 1 for i in range(len(x.shape))])
    at = places[time]
    turned = call.xp.where(at < held, held - 1 - at, at)
    wanted = call.xp.broadcast_to(turned, list(x.shape))
    return call.xp.take_along(x, call.xp.astype(wanted, "int64"), time)


def _compress(call: Call, x: Any, condition: Any) -> Any:
    """What is chosen decides a size, so the condition is known, or nobody can tell."""
    import numpy as np

    chosen = np.flatnonzero(condition)
    axis = call.get("axis")
    if axis is None:
        return call.xp.take(call.xp.reshape(x, [-1]), call.xp.asarray(chosen), 0)
    return call.xp.take(x, call.xp.asarray(chosen), axis % len(x.shape))


def _unique(call: Call, x: Any) -> tuple[Any, ...]:
    import numpy as np

    held, axis = call.known(x), call.get("axis")
    found, first, inverse, counts = np.unique(
        held, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    inverse = inverse.reshape(-1)
    if not call.get("sorted", 1):
        order = np.argsort(first, kind="stable")
        rank = np.argsort(order, kind="stable")
        found = np.take(found, order, 0 if axis is None else axis)
        first, counts, inverse = first[order], counts[order], rank[inverse]
    return found, first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)


def _suppressed(
    call: Call, boxes: Any, scores: Any, most: Any = None, overlap: Any = None, least: Any = None
) -> np.ndarray:
    """Boxes of each class from the best on, without those that cover one already taken too much; [count, 3].

    How many there are is known only from what the inputs hold, so this is NumPy's.
    """
    import numpy as np

    corners = _corners(call.known(boxes, "where the boxes are"), call.get("center_point_box", 0))
    held = call.known(scores, "what the boxes score")
    limit = 0 if most is None else int(call.known(most).reshape(-1)[0])
    cover = 0.0 if overlap is None else float(call.known(overlap).reshape(-1)[0])
    floor = -np.inf if least is None else float(call.known(least).reshape(-1)[0])
    found = []
    for batch, kind in np.ndindex(*held.shape[:2]):
        line, taken = held[batch, kind], list[int]()
        for place in np.argsort(-line, kind="stable"):
            if len(taken) >= limit or not line[place] > floor:
                break
            if all(_shared(corners[batch, place], corners[batch, other]) <= cover for other in taken):
                taken.append(int(place))
        found += [[batch, kind, place] for place in taken]
    return np.array(found, np.int64).reshape(-1, 3)


def _corners(boxes: np.ndarray, centred: int) -> np.ndarray:
    """Boxes as low and high corners; they come as two corners in any order, or as a centre and a size."""
    import numpy as np

    if centred:
        x, y, wide, high = np.moveaxis(boxes, -1, 0)
        return np.stack([y - high / 2, x - wide / 2, y + high / 2, x + wide / 2], -1)
    one, two = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([np.minimum(one, two), np.maximum(one, two)], -1)


def _shared(one: np.ndarray, other: np.ndarray) -> float:
    """The intersection of two boxes over their union."""
    import numpy as np

    sides = np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0)
    inside = float(sides.prod())
    union = float((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod()) - inside
    return inside / union if union > 0 else 0.0


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


OPERATORS: dict[str, Operator] = {
    "Compress": Operator(_compress, static=(1,)),
    "EyeLike": Operator(_eye_like),
    "Gather": Operator(_gather),
    "GatherElements": Operator(_gather_elements),
    "GatherND": Operator(_gather_nd),
    "NonMaxSuppression": Operator(_suppressed, folds=False, raw=True),
    "NonZero": Operator(lambda call, x: call.xp.nonzero(x)),
    "OneHot": Operator(_one_hot, static=(1,), folds=False),
    "ReverseSequence": Operator(_reverse_sequence),
    "Scatter": Operator(_scatter_elements),
    "ScatterElements": Operator(_scatter_elements),
    "ScatterND": Operator(_scatter_nd),
    "TensorScatter": Operator(_tensor_scatter),
    "TopK": Operator(_top_k, static=(1,), folds=False),
    "Trilu": Operator(_triangle, static=(1,)),
    "Unique": Operator(_unique, folds=False, raw=True),
}
