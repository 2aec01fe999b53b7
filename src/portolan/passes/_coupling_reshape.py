"""What reshaping says about channels, where it keeps them apart: blocks of positions, heads, and written-out sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from portolan.passes._coupling import Coupling, Fix
from portolan.passes._surgery import Shape

if TYPE_CHECKING:
    import numpy as np
    import onnx


def stays(c: Coupling, tensor: str, axes: Sequence[int]) -> None:
    """These axes of a tensor keep all their positions."""
    for axis in axes:
        c.keep(c.axis(tensor, axis))


def reshape(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """The rule of Reshape, Flatten and their like; False where the sizes are not understood."""
    x, y = node.input[0], node.output[0]
    parts = regrouped(c.sizes[x], c.sizes[y])
    for before, after in parts:
        _merged(c, x, before, y, after)
    for side, name in enumerate((x, y)):
        touched = {axis for part in parts for axis in part[side]}
        stays(c, name, [axis for axis in range(len(c.sizes[name])) if axis not in touched])
    return node.op_type != "Reshape" or _shape_constant(c, proto, node)


def regrouped(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """Runs of axes that hold the same numbers on both sides: from the right while sizes are known, then the left."""
    found = []
    i, j = len(before), len(after)
    while i and j and before[i - 1] is not None and after[j - 1] is not None:
        a, b = i - 1, j - 1
        left, right = before[a], after[b]
        while left != right and left is not None and right is not None:
            if left < right:
                a -= 1
                size = before[a] if a >= 0 else None
                left = None if size is None else left * size
            else:
                b -= 1
                size = after[b] if b >= 0 else None
                right = None if size is None else right * size
        if left is None or right is None:
            break
        found.append((list(range(a, i)), list(range(b, j))))
        i, j = a, b
    for k in range(min(i, j)):
        if before[k] != after[k]:
            break
        found.append(([k], [k]))
    return found


def _merged(c: Coupling, x: str, before: list[int], y: str, after: list[int]) -> None:
    """Couples one axis of each side of a run; the others stay."""
    chosen, coordinates = [], []
    for name, axes in ((x, before), (y, after)):
        sizes = [c.sizes[name][axis] or 1 for axis in axes]
        wide = [k for k, size in enumerate(sizes) if size > 1] or [0]
        pick = wide[-2] if c.heads and len(wide) > 2 else wide[0]
        chosen.append((name, axes[pick]))
        coordinates.append(_coordinate(sizes, pick))
        for k, axis in enumerate(axes):
            if k != pick:
                c.keep(c.axis(name, axis))
    numbers = [c.axis(*axis) for axis in chosen]
    if numbers[0] is None or numbers[1] is None:
        c.same(*numbers)
    else:
        c.same(numbers[0][coordinates[0]], numbers[1][coordinates[1]])


def _coordinate(sizes: list[int], pick: int) -> np.ndarray:
    """For each position of the flattened axes, where it is on one of them."""
    import numpy as np

    inner = math.prod(sizes[pick + 1 :])
    return np.arange(math.prod(sizes)) // inner % sizes[pick]


def _shape_constant(c: Coupling, proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """The sizes in a Reshape's second input are set again where they are constants, alone or put together."""
    shape, y = node.input[1], node.output[0]
    if shape in c.constants:
        for index, size in enumerate(c.constants[shape].tolist()):
            if size > 0:
                c.fixes.append(Fix(y, 1, index, (y, index)))
            elif size == 0 and c.sizes[node.input[0]][index : index + 1] != c.sizes[y][index : index + 1]:
                return False
        return True
    maker = next((n for n in proto.graph.node if shape in n.output), None)
    if maker is None or maker.op_type != "Concat":
        return False
    readers = [n for n in proto.graph.node if shape in n.input]
    if any(n.op_type != "Reshape" or len(c.sizes.get(n.output[0], ())) != len(c.sizes[y]) for n in readers):
        return False
    return _listed_sizes(c, maker, [n.output[0] for n in readers])


def _listed_sizes(c: Coupling, maker: onnx.NodeProto, results: list[str]) -> bool:
    """Sizes that a Concat puts together: all who read the same list must agree on it."""
    first, index = results[0], 0
    for place, piece in enumerate(maker.input):
        known = c.sizes.get(piece, ())
        if len(known) != 1 or known[0] is None:
            return False
        for within in range(known[0]):
            axes = [c.axis(name, index) for name in results]
            if piece not in c.constants:
                for axis in axes:
                    c.keep(axis)
            elif c.constants[piece][within] > 0:
                for axis in axes[1:]:
                    c.same(axes[0], axis)
                c.fixes.append(Fix(maker.output[0], place, within, (first, index)))
            index += 1
    return True
