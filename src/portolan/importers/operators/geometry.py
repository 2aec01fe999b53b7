"""Sampling between elements, windows laid back into images, and what else works on places."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from portolan.errors import UnsupportedOperator
from portolan.importers import numpy_
from portolan.importers.operators import shapes
from portolan.importers.operators.call import Call, Operator, sizes

if TYPE_CHECKING:
    import numpy as np


def _col2im(call: Call, x: Any, image: np.ndarray, block: np.ndarray) -> Any:
    """Each element of the window is a strided slice of the padded image; the slices are added up."""
    wide, kernel = sizes(image), sizes(block)
    rank = len(kernel)
    strides, dilations = call.get("strides", [1] * rank), call.get("dilations", [1] * rank)
    pads = call.get("pads", [0] * 2 * rank)
    padded = [n + pads[i] + pads[i + rank] for i, n in enumerate(wide)]
    spans = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(padded, kernel, strides, dilations, strict=True)]
    channels = x.shape[1] // math.prod(kernel)
    parts = call.xp.reshape(x, [x.shape[0], channels, math.prod(kernel), math.prod(spans)])
    places = _flat_places(kernel, strides, dilations, spans, padded)
    flat = call.xp.reshape(parts, [x.shape[0], channels, -1])
    empty = call.xp.broadcast_to(flat[:, :, :1] * 0, [x.shape[0], channels, math.prod(padded)])
    total = _added(call, empty, places, flat)
    found = call.xp.reshape(total, [x.shape[0], channels, *padded])
    for axis, size in enumerate(wide):
        found = shapes.padded(call, found, 2 + axis, -pads[axis], size + pads[axis] - padded[axis], "constant", 0.0)
    return found


def _flat_places(kernel: Any, strides: Any, dilations: Any, spans: Any, padded: Any) -> np.ndarray:
    import numpy as np

    grids = []
    for axis, (k, s, d, n) in enumerate(zip(kernel, strides, dilations, spans, strict=True)):
        line = np.arange(k)[:, None] * d + np.arange(n)[None] * s
        rank = len(kernel)
        shape = [k if i == axis else 1 for i in range(rank)] + [n if i == axis else 1 for i in range(rank)]
        grids.append(line.reshape(shape))
    flat = np.zeros([*kernel, *spans], np.int64)
    for grid, size in zip(grids, padded, strict=True):
        flat = flat * size + grid
    return flat.reshape(-1)


def _added(call: Call, x: Any, places: np.ndarray, values: Any) -> Any:
    """`x` [rows, channels, size] with `values` [rows, channels, count] added at `places` [count]."""
    rows = call.xp.asarray(numpy_.array(list(range(x.shape[0]))).reshape(-1, 1, 1))
    channels = call.xp.asarray(numpy_.array(list(range(x.shape[1]))).reshape(1, -1, 1))
    return call.xp.put(x, (rows, channels, call.xp.asarray(places.reshape(1, 1, -1))), values, "add")


def _max_unpool(call: Call, x: Any, indices: Any, given: np.ndarray | None = None) -> Any:
    kernel = call.get("kernel_shape")
    rank = len(kernel)
    strides, pads = call.get("strides", [1] * rank), call.get("pads", [0] * 2 * rank)
    own = [(x.shape[2 + i] - 1) * strides[i] - pads[i] - pads[i + rank] + kernel[i] for i in range(rank)]
    whole = [*x.shape[:2], *own]
    empty = call.xp.broadcast_to(call.xp.reshape(x, [-1])[:1] * 0, [math.prod(whole)])
    flat = call.xp.put(empty, (call.xp.reshape(indices, [-1]),), call.xp.reshape(x, [-1]), "none")
    found = call.xp.reshape(flat, whole)
    if given is None:
        return found
    for axis, size in enumerate(sizes(given)[2:], 2):
        found = shapes.padded(call, found, axis, 0, size - whole[axis], "constant", 0.0)
    return found


def _grid_sample(call: Call, x: Any, grid: Any) -> Any:
    """The grid's last axis counts the image's axes from the last to the first, from -1 to 1."""
    rank, aligned = len(x.shape) - 2, bool(call.get("align_corners", 0))
    mode, padding = call.get("mode", "linear"), call.get("padding_mode", "zeros")
    count = math.prod(grid.shape[1:-1])
    flat = call.xp.reshape(grid, [grid.shape[0], count, rank])
    places = []
    for axis in range(rank):
        value, size = flat[..., rank - 1 - axis], x.shape[2 + axis]
        places.append((value + 1) / 2 * (size - 1) if aligned else ((value + 1) * size - 1) / 2)
    if mode in ("nearest",):
        taps = [
            [(call.xp.round(_bounded(call, p, x.shape[2 + i], padding, aligned)), None)] for i, p in enumerate(places)
        ]
    elif mode in ("linear", "bilinear"):
        taps = [_linear(call, _bounded(call, p, x.shape[2 + i], padding, aligned)) for i, p in enumerate(places)]
    else:
        taps = [_cubic(call, p) for p in places]
    found = sampled(call, x, taps, padding, aligned)
    return call.xp.reshape(found, [*x.shape[:2], *grid.shape[1:-1]])


def sampled(call: Call, x: Any, taps: list[list[tuple[Any, Any]]], padding: str, aligned: bool) -> Any:
    """Weighted elements of `x` [rows, channels, sizes...] at places [rows, count], one list of taps per axis."""
    wide = list(x.shape[2:])
    flat = call.xp.reshape(x, [x.shape[0], x.shape[1], -1])
    total: Any = None
    for chosen in itertools.product(*taps):
        index: Any = 0
        weight: Any = None
        for (place, share), size in zip(chosen, wide, strict=True):
            held = _bounded(call, place, size, padding, aligned)
            inside = call.xp.logical_and(held >= 0, held <= size - 1)
            index = index * size + call.xp.astype(call.xp.clip(held, 0, size - 1), "int64")
            factor = call.xp.astype(inside, call.xp.dtype(x))
            factor = factor if share is None else factor * share
            weight = factor if weight is None else weight * factor
        wanted = call.xp.broadcast_to(call.xp.reshape(index, [x.shape[0], 1, -1]), [*x.shape[:2], index.shape[-1]])
        term = call.xp.take_along(flat, wanted, 2) * call.xp.reshape(weight, [x.shape[0], 1, -1])
        total = term if total is None else total + term
    return total


def _linear(call: Call, place: Any) -> list[tuple[Any, Any]]:
    low = call.xp.floor(place)
    return [(low, 1 - (place - low)), (low + 1, place - low)]


def _cubic(call: Call, place: Any) -> list[tuple[Any, Any]]:
    low, a = call.xp.floor(place), -0.75
    found = []
    for step in range(-1, 3):
        d = call.xp.abs(place - low - step)
        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        found.append((low + step, call.xp.where(d <= 1, near, far)))
    return found


def _bounded(call: Call, place: Any, size: int, padding: str, aligned: bool) -> Any:
    """Places outside as the padding has them; with zeros they stay outside."""
    if padding == "zeros":
        return place
    if padding == "border":
        return call.xp.clip(place, 0, size - 1)
    low, high = (0.0, size - 1.0) if aligned else (-0.5, size - 0.5)
    span = high - low
    if span == 0:
        return 0 * place
    off = call.xp.abs(place - low)
    turns = call.xp.floor(off / span)
    rest = off - turns * span
    odd = turns - 2 * call.xp.floor(turns / 2)
    return call.xp.where(odd == 0, rest + low, high - rest)


def _deform_conv(call: Call, x: Any, weight: Any, offset: Any, bias: Any = None, mask: Any = None) -> Any:
    """A convolution whose taps are moved: samples first, then one product."""
    kernel = list(weight.shape[2:])
    if len(kernel) != 2:
        raise UnsupportedOperator("`DeformConv` over other than two axes is not supported", hint="export it with two")
    strides, dilations = call.get("strides", [1, 1]), call.get("dilations", [1, 1])
    pads, group, parts = call.get("pads", [0] * 4), call.get("group", 1), call.get("offset_group", 1)
    rows, channels, taps = x.shape[0], x.shape[1], math.prod(kernel)
    high, wide = offset.shape[2:]
    moved = call.xp.reshape(offset, [rows * parts, taps, 2, high * wide])
    held = call.xp.reshape(x, [rows * parts, channels // parts, *x.shape[2:]])
    columns = []
    for tap, (i, j) in enumerate(itertools.product(*map(range, kernel))):
        first = (i * dilations[0] - pads[0], j * dilations[1] - pads[1])
        lines = [_line(call, n, s, f) for n, s, f in zip((high, wide), strides, first, strict=True)]
        down = call.xp.reshape(call.xp.broadcast_to(call.xp.reshape(lines[0], [-1, 1]), [high, wide]), [1, -1])
        along = call.xp.reshape(call.xp.broadcast_to(call.xp.reshape(lines[1], [1, -1]), [high, wide]), [1, -1])
        places = [down + moved[:, tap, 0], along + moved[:, tap, 1]]
        part = sampled(call, held, [_linear(call, place) for place in places], "zeros", True)
        if mask is not None:
            part = part * call.xp.reshape(mask, [rows * parts, taps, high * wide])[:, tap : tap + 1]
        columns.append(call.xp.reshape(part, [rows, channels, high * wide]))
    stacked = call.xp.reshape(call.xp.stack(columns, 2), [rows, group, channels // group * taps, high * wide])
    flat = call.xp.reshape(weight, [1, group, weight.shape[0] // group, -1])
    found = call.xp.reshape(call.xp.matmul(flat, stacked), [rows, weight.shape[0], high, wide])
    return found if bias is None else found + call.xp.reshape(bias, [-1, 1, 1])


def _line(call: Call, count: int, stride: int, first: int) -> Any:
    return call.xp.asarray(numpy_.array([first + stride * i for i in range(count)]).astype("float32"))


OPERATORS: dict[str, Operator] = {
    "Col2Im": Operator(_col2im, static=(1, 2), folds=False),
    "DeformConv": Operator(_deform_conv, folds=False),
    "GridSample": Operator(_grid_sample, folds=False),
    "MaxUnpool": Operator(_max_unpool, static=(2,), folds=False),
}
