"""The shapes of a graph's tensors, with names for free sizes, and how the axes of a chain join into a few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portolan.passes._surgery import light

if TYPE_CHECKING:
    import onnx

Size = int | str
Shape = tuple[Size, ...]


def shapes(proto: onnx.ModelProto) -> dict[str, Shape]:
    """The shape of every f32 tensor of the main graph of which each size is a number or has a name."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(light(proto), data_prop=True).graph
    found: dict[str, Shape] = {}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        tensor = value.type.tensor_type
        sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
        if tensor.elem_type == onnx.TensorProto.FLOAT and tensor.HasField("shape") and all(s != "" for s in sizes):
            found[value.name] = tuple(sizes)
    for tensor in inferred.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            found[tensor.name] = tuple(tensor.dims)
    return {name: shape for name, shape in found.items() if 0 not in shape}


def aligned(shape: Shape, rank: int) -> Shape:
    """The shape with ones in front, as broadcasting sees it."""
    return (1,) * (rank - len(shape)) + shape


def within(shape: Shape, space: Shape) -> bool:
    """Whether a tensor of that shape broadcasts into the space."""
    if len(shape) > len(space):
        return False
    return all(a in (1, b) for a, b in zip(aligned(shape, len(space)), space, strict=True))


@dataclass(frozen=True)
class Joined:
    """The axes of a space in runs that every tensor has whole or not at all.

    Attributes:
        space: the sizes.
        runs: for each axis of the kernel, the dimensions that it stands for.
    """

    space: Shape
    runs: tuple[tuple[int, ...], ...]

    def axes(self, shape: Shape) -> tuple[int | None, ...]:
        """For each dimension of a tensor of that shape in the kernel, its run; None for one that is 1.

        Runs in front that it does not have are left out, as broadcasting allows.
        """
        full = aligned(shape, len(self.space))
        found = [n if any(full[d] != 1 for d in run) else None for n, run in enumerate(self.runs)]
        first = next((n for n, run in enumerate(found) if run is not None), len(found))
        return tuple(found[first:])

    def target(self, shape: Shape) -> list[int] | None:
        """The sizes to reshape a tensor to, so that each run that it has is one dimension; None if not by numbers."""
        sizes = [1 if n is None else _product([self.space[d] for d in self.runs[n]]) for n in self.axes(shape)]
        free = [s for s in sizes if isinstance(s, str)]
        return None if len(free) > 1 else [-1 if isinstance(s, str) else s for s in sizes]


def _product(sizes: Sequence[Size]) -> Size:
    total = 1
    for size in sizes:
        if isinstance(size, str):
            return "*".join(map(str, sizes))
        total *= size
    return total


def joined(space: Shape, tensors: Sequence[Shape], apart: bool) -> Joined:
    """Joins neighbouring dimensions that occur together in all tensors; the last stays by itself if `apart`."""
    rank = len(space)
    has = [[size != 1 for size in aligned(t, rank)] for t in tensors]
    runs: list[list[int]] = []
    before: list[bool] | None = None
    for d in range(rank):
        if space[d] == 1 and not (apart and d == rank - 1):
            continue
        mine = [h[d] for h in has]
        if runs and mine == before and not (apart and d == rank - 1):
            runs[-1].append(d)
        else:
            runs.append([d])
        before = mine
    return Joined(space, tuple(map(tuple, runs)))
