"""A kernel's arguments: NumPy arrays checked against its annotations, and the results they lead to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from portolan.core.native import address
from portolan.errors import UsageError
from portolan.kernels.tree import Extent, Program, Tensor, extents_of

Array = np.ndarray[Any, Any]
_LINE = 64
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "uint16", "i8": "int8", "i32": "int32"}


def dtype_of(tensor: Tensor) -> np.dtype[Any]:
    """What holds a tensor's elements; bf16 is held as its bits where NumPy has no such type."""
    return np.dtype(_DTYPES[tensor.dtype])


def taken(program: Program, given: Sequence[Any]) -> tuple[list[Array], dict[str, int]]:
    """The arguments, contiguous and of the annotated types, and the size of each symbol.

    Raises:
        UsageError: a number of arguments, a type, a rank or sizes that do not fit.
    """
    arrays = [contiguous(a) for a in arguments(program, given)]
    return arrays, sizes(program, [a.shape for a in arrays])


def arguments(program: Program, given: Sequence[Any]) -> list[Array]:
    """The arguments, of the annotated types and ranks, as they lie in memory.

    Raises:
        UsageError: a number of arguments, a type or a rank that does not fit.
    """
    if len(given) != len(program.inputs):
        names = ", ".join(t.name for t in program.inputs)
        raise UsageError(f"kernel `{program.name}` takes {len(program.inputs)} arrays ({names}), not {len(given)}")
    return [_array(program, t, a) for t, a in zip(program.inputs, given, strict=True)]


def _array(program: Program, tensor: Tensor, value: Any) -> Array:
    array = np.asarray(value)
    wanted = dtype_of(tensor)
    if tensor.dtype == "bf16" and array.dtype.name == "bfloat16":
        array = array.view(np.uint16)
    if array.dtype != wanted:
        raise UsageError(
            f"kernel `{program.name}`: `{tensor.name}` is {tensor.dtype} and was given {array.dtype}",
            hint=f"{tensor.name}.astype(numpy.{wanted.name})"
            if tensor.dtype != "bf16"
            else "give bfloat16, or its bits",
        )
    if array.ndim != len(tensor.axes):
        axes = " ".join(str(a) for a in tensor.axes)
        raise UsageError(
            f"kernel `{program.name}`: `{tensor.name}` has the axes `{axes}` and was given shape {array.shape}"
        )
    return array


def contiguous(array: Array) -> Array:
    """The array, or a copy without gaps."""
    return array if array.flags.c_contiguous else np.ascontiguousarray(array).reshape(array.shape)


def sizes(program: Program, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """The size of each symbol.

    Raises:
        UsageError: one axis with two sizes, a number that is not met, or more than 32 bits can count.
    """
    found: dict[str, tuple[int, str]] = {}
    for tensor, shape in zip(program.inputs, shapes, strict=True):
        for axis, size in zip(tensor.axes, shape, strict=True):
            if isinstance(axis, int):
                if size != axis:
                    raise UsageError(
                        f"kernel `{program.name}`: an axis of `{tensor.name}` is {size} and has to be {axis}"
                    )
                continue
            if size >= 2**31:
                raise UsageError(f"kernel `{program.name}`: the axis `{axis}` of {size} is more than 32 bits can count")
            before, other = found.setdefault(axis, (size, tensor.name))
            if before != size:
                raise UsageError(
                    f"kernel `{program.name}`: `{axis}` is {before} in `{other}` and {size} in `{tensor.name}`",
                    hint="axes of one name have one size: use another name in one of them, or cut the arrays to fit",
                )
    return {name: size for name, (size, _) in found.items()}


def size_of(extent: Extent, sizes: Mapping[str, int]) -> int:
    """An extent as a number."""
    return extent if isinstance(extent, int) else sizes[extent]


def result_shapes(program: Program, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
    """The shape of each result."""
    extents = extents_of(program)
    return [tuple(size_of(extents[str(a)], sizes) for a in o.axes) for o in program.outputs]


@dataclass(frozen=True)
class Results:
    """The results that arguments of some shapes lead to.

    Attributes:
        kernel: its name.
        shapes: one for each result.
        dtypes: what holds their elements.
    """

    kernel: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype[Any], ...]

    @classmethod
    def of(cls, program: Program, sizes: Mapping[str, int]) -> Results:
        """Those of a kernel for sizes."""
        dtypes = tuple(map(dtype_of, program.outputs))
        return cls(program.name, tuple(result_shapes(program, sizes)), dtypes)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute."""
        return any(0 in shape for shape in self.shapes)

    def made(self) -> list[Array]:
        """New arrays, each at the beginning of a cache line: NumPy's own are at any multiple of 16."""
        return [_at_a_line(shape, dtype) for shape, dtype in zip(self.shapes, self.dtypes, strict=True)]

    def checked(self, given: Any, arrays: Sequence[Array]) -> list[Array]:
        """Arrays that the caller gives for the results.

        Raises:
            UsageError: one that does not fit, or shares memory with an argument or another result.
        """
        outs = list(given) if isinstance(given, (tuple, list)) else [given]
        if len(outs) != len(self.shapes):
            raise UsageError(f"kernel `{self.kernel}` gives {len(self.shapes)} results, and `out` holds {len(outs)}")
        for number, (out, shape, dtype) in enumerate(zip(outs, self.shapes, self.dtypes, strict=True)):
            fits = isinstance(out, np.ndarray) and out.shape == shape and out.dtype == dtype
            if not fits or not out.flags.c_contiguous or not out.flags.writeable:
                raise UsageError(f"`out` has to be a contiguous array of shape {shape} and type {dtype}")
            for other in (*arrays, *outs[:number]):
                if np.shares_memory(out, other):
                    raise UsageError("`out` overlaps another array of the call", hint="give an array of its own")
        return outs


def _at_a_line(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    whole = np.empty(math.prod(shape) * dtype.itemsize + _LINE, np.uint8)
    begun = -address(whole) % _LINE
    return np.ndarray(shape, dtype, whole, begun)


def widened(tensor: Tensor, array: Array) -> Array:
    """An argument or result as numbers that NumPy computes with."""
    if tensor.dtype == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def narrowed(tensor: Tensor, array: Array) -> Array:
    """Numbers as an argument of the annotated type; to bf16 by rounding to even."""
    if tensor.dtype != "bf16":
        return array.astype(dtype_of(tensor))
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
