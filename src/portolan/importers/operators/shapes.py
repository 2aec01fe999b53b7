"""Operators that read or change shapes: what they need to know of sizes is computed in NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from portolan.errors import UnsupportedOperator
from portolan.importers import numpy_
from portolan.importers.operators.call import Call, Operator, axes_of, sizes

if TYPE_CHECKING:
    import numpy as np


def _shape(call: Call, x: Any) -> np.ndarray:
    return numpy_.array(list(x.shape)[slice(call.get("start", 0), call.get("end"))])


def _size(call: Call, x: Any) -> np.ndarray:
    del call
    return numpy_.array(product(x.shape))


def product(numbers: Any) -> Any:
    """The product of sizes, which may be a tracer's symbols."""
    total: Any = 1
    for number in numbers:
        total = total * number
    return total


def _reshape(call: Call, x: Any, shape: np.ndarray) -> Any:
    wanted = sizes(shape)
    if not call.get("allowzero", 0):
        # A symbol is never 0: comparing it would make the tracer decide.
        wanted = [x.shape[i] if type(s) is int and s == 0 else s for i, s in enumerate(wanted)]
    return call.xp.reshape(x, wanted)


def _flatten(call: Call, x: Any) -> Any:
    axis = call.get("axis", 1)
    axis = axis + len(x.shape) if axis < 0 else axis
    return call.xp.reshape(x, [product(x.shape[:axis]), product(x.shape[axis:])])


def _transpose(call: Call, x: Any) -> Any:
    return call.xp.transpose(x, call.get("perm", list(range(len(x.shape)))[::-1]))


def _squeeze(call: Call, x: Any, axes: np.ndarray | None = None) -> Any:
    chosen = axes_of(call, axes)
    rank = len(x.shape)
    drop = {i for i, s in enumerate(x.shape) if s == 1} if chosen is None else {axis % rank for axis in chosen}
    return call.xp.reshape(x, [s for i, s in enumerate(x.shape) if i not in drop])


def _unsqueeze(call: Call, x: Any, axes: np.ndarray | None = None) -> Any:
    chosen = axes_of(call, axes) or []
    rank = len(x.shape) + len(chosen)
    new, old = {axis % rank for axis in chosen}, iter(x.shape)
    return call.xp.reshape(x, [1 if i in new else next(old) for i in range(rank)])


def _concat(call: Call, *parts: Any) -> Any:
    return call.xp.concat(parts, call.get("axis", 1) % len(parts[0].shape))


def _split(call: Call, x: Any, given: np.ndarray | None = None) -> tuple[Any, ...]:
    axis = call.get("axis", 0) % len(x.shape)
    parts = axes_of(call, given, "split")
    if parts is None:
        count = call.get("num_outputs", call.outputs)
        each = -(-x.shape[axis] // count)
        parts = [each] * (count - 1) + [x.shape[axis] - each * (count - 1)]
    found, start = [], 0
    for size in parts:
        found.append(x[_at(axis, slice(start, start + size))])
        start = start + size
    return tuple(found)


def _at(axis: int, index: Any) -> tuple[Any, ...]:
    return (*(slice(None) for _ in range(axis)), index)


def _slice(
    call: Call, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Any:  # fmt: skip
    begin = sizes(starts) if starts is not None else call.get("starts")
    stop = sizes(ends) if ends is not None else call.get("ends")
    chosen = axes_of(call, axes) or list(range(len(begin)))
    strides = [1] * len(begin) if steps is None else sizes(steps)
    for axis, first, last, step in zip(chosen, begin, stop, strides, strict=True):
        x = _cut(call, x, axis % len(x.shape), first, last, step)
    return x


def _cut(call: Call, x: Any, axis: int, first: Any, last: Any, step: int) -> Any:
    if step > 0:
        return x[_at(axis, slice(first, _end(last), step))]
    # Backwards: frameworks have no negative steps, so the elements are named.
    places = list(range(*slice(first, last, step).indices(x.shape[axis])))
    return call.xp.take(x, call.xp.asarray(numpy_.array(places)), axis)


def _end(last: Any) -> Any:
    return None if type(last) is int and last >= 2**31 - 1 else last


def _expand(call: Call, x: Any, shape: np.ndarray) -> Any:
    wanted = sizes(shape)
    rank = max(len(wanted), len(x.shape))
    old, new = ([1] * (rank - len(part)) + list(part) for part in (x.shape, wanted))
    return call.xp.broadcast_to(x, [a if type(b) is int and b == 1 else b for a, b in zip(old, new, strict=True)])


def _tile(call: Call, x: Any, repeats: np.ndarray) -> Any:
    return call.xp.tile(x, tuple(sizes(repeats)))


def _constant_of_shape(call: Call, shape: np.ndarray) -> Any:
    import numpy as np

    value = np.asarray(call.get("value", np.zeros(1, np.float32))).reshape(())
    return _space(call, shape).full(sizes(shape), value)


def _space(call: Call, *bounds: np.ndarray) -> Any:
    """Where an array of that size is made: in NumPy, unless only the tracer knows the size."""
    return call.traced if any(b.dtype.kind == "O" for b in bounds) else numpy_.NumPy()


def _range(call: Call, start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> Any:
    first, last, step = (sizes(v)[0] for v in (start, limit, delta))
    kind = "int64" if start.dtype.kind == "O" else str(start.dtype)
    return _space(call, start, limit, delta).arange(first, last, step, kind)


def _pad(call: Call, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    widths = sizes(pads) if pads is not None else call.get("pads")
    fill = float(value.reshape(())) if value is not None else call.get("value", 0.0)
    rank = len(x.shape)
    chosen = [axis % rank for axis in (sizes(axes) if axes is not None else range(rank))]
    half = len(widths) // 2
    pairs = [(0, 0)] * rank
    for axis, before, after in zip(chosen, widths[:half], widths[half:], strict=True):
        pairs[axis] = (before, after)
    mode = call.get("mode", "constant")
    for axis, (before, after) in enumerate(pairs):
        x = padded(call, x, axis, before, after, mode, fill)
    return x


def padded(call: Call, x: Any, axis: int, before: Any, after: Any, mode: str, fill: float) -> Any:
    """One axis after the other; a negative width cuts."""
    if min(before, after) < 0:
        x = x[_at(axis, slice(max(-before, 0), x.shape[axis] - max(-after, 0)))]
        before, after = max(before, 0), max(after, 0)
    if before == after == 0:
        return x
    size = x.shape[axis]
    if mode == "constant":
        parts = [call.xp.full_like(x[_at(axis, slice(0, 1))], fill)]
        parts = [call.xp.broadcast_to(parts[0], _resized(x, axis, n)) for n in (before, after)]
        return call.xp.concat([parts[0], x, parts[1]], axis)
    places = [_source(i, size, mode) for i in range(-before, size + after)]
    return call.xp.take(x, call.xp.asarray(numpy_.array(places)), axis)


def _resized(x: Any, axis: int, size: Any) -> list[Any]:
    return [size if i == axis else s for i, s in enumerate(x.shape)]


def _source(place: int, size: int, mode: str) -> int:
    """Which element a place outside takes its value from."""
    if mode == "edge":
        return min(max(place, 0), size - 1)
    if mode == "wrap":
        return place % size
    if mode != "reflect":
        raise UnsupportedOperator(f"padding by `{mode}` is not supported", hint="export the model with constant pads")
    period = max(2 * (size - 1), 1)
    return min(place % period, period - place % period) if size > 1 else 0


def _depth_to_space(call: Call, x: Any) -> Any:
    n, c, h, w = x.shape
    b = call.get("blocksize")
    if call.get("mode", "DCR") == "DCR":
        x, order = call.xp.reshape(x, [n, b, b, c // (b * b), h, w]), [0, 3, 4, 1, 5, 2]
    else:
        x, order = call.xp.reshape(x, [n, c // (b * b), b, b, h, w]), [0, 1, 4, 2, 5, 3]
    return call.xp.reshape(call.xp.transpose(x, order), [n, c // (b * b), h * b, w * b])


def _space_to_depth(call: Call, x: Any) -> Any:
    n, c, h, w = x.shape
    b = call.get("blocksize")
    x = call.xp.reshape(x, [n, c, h // b, b, w // b, b])
    order = [0, 3, 5, 1, 2, 4] if call.get("mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    return call.xp.reshape(call.xp.transpose(x, order), [n, c * b * b, h // b, w // b])


OPERATORS: dict[str, Operator] = {
    "Concat": Operator(_concat),
    "ConstantOfShape": Operator(_constant_of_shape, static=(0,)),
    "DepthToSpace": Operator(_depth_to_space),
    "Expand": Operator(_expand, static=(1,)),
    "Flatten": Operator(_flatten),
    "Pad": Operator(_pad, static=(1, 2, 3)),
    "Range": Operator(_range, static=(0, 1, 2)),
    "Reshape": Operator(_reshape, static=(1,)),
    "Shape": Operator(_shape),
    "Size": Operator(_size),
    "Slice": Operator(_slice, static=(1, 2, 3, 4)),
    "SpaceToDepth": Operator(_space_to_depth),
    "Split": Operator(_split, static=(1,)),
    "Squeeze": Operator(_squeeze, static=(1,)),
    "Tile": Operator(_tile, static=(1,)),
    "Transpose": Operator(_transpose),
    "Unsqueeze": Operator(_unsqueeze, static=(1,)),
}
