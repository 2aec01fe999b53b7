"""Weights as whole numbers: the scale of each output channel, and the numbers themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from portolan.core.target import Target

if TYPE_CHECKING:
    import numpy as np

#: s8: -127 to 127. s7: -63 to 63. u8: s8 and 128.
Kind = Literal["s8", "s7", "u8"]
_LARGEST = {"s8": 127, "s7": 63, "u8": 127}
#: Any of these adds products of 8-bit numbers in 32 bits. Other x86 processors do it in 16 and overflow.
WIDE_SUMS = ("amx_int8", "avx512_vnni", "avx_vnni")


@dataclass(frozen=True)
class Stored:
    """A weight in 8 bits: `(values - zero) * scale` along `axis`; [1] scales without channels."""

    values: np.ndarray
    scale: np.ndarray
    zero: int
    axis: int | None


def kind_for(target: Target) -> Kind:
    """The numbers that no product of an unsigned activation with a weight overflows with on `target`.

    x86 without wide sums adds pairs of products in 16 bits (vpmaddubsw): 2 * 255 * 127 does not fit, with 7-bit weights
    it does.
    """
    return "s7" if target.arch == "x86_64" and not target.has(*WIDE_SUMS) else "s8"


def exact_kinds(target: Target) -> tuple[Kind, ...]:
    """What may be tried on `target`, the default first.

    Where sums are narrow, unsigned weights are a second way: both factors are then widened to 16 bits first, which is
    slower than 7-bit weights and keeps the eighth bit.
    """
    first = kind_for(target)
    return (first, "u8") if first == "s7" else (first,)


def store(weight: np.ndarray, axis: int | None, kind: Kind, least: np.ndarray | None = None) -> Stored:
    """A weight in 8 bits, symmetric around zero.

    Args:
        weight: float32.
        axis: of the output channels; None for one scale.
        kind: which whole numbers.
        least: the smallest scale of each channel, for biases that must fit the products' sums.
    """
    import numpy as np

    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True).astype("f4")
    top = np.float32(_LARGEST[kind])
    scale = largest / top
    if least is not None:
        scale = np.maximum(scale, least.astype("f4").reshape(scale.shape))
    # A channel of zeros, or of numbers too small for a normal scale, is zeros at any scale.
    scale = np.where(scale >= np.finfo("f4").tiny, scale, np.float32(1)).astype("f4")
    values = np.clip(np.round(weight / scale), -top, top).astype("i4")
    if kind == "u8":
        return Stored((values + 128).astype("u1"), scale.ravel(), 128, axis)
    return Stored(values.astype("i1"), scale.ravel(), 0, axis)
