"""Weights on a grid: the arithmetic of weight-only quantization, in NumPy.

A weight is a matrix of `K` rows, which a product sums over, and `N` columns. Along `K` it is cut into groups; each
group of each column has a scale and a zero point of its own, and `weight = (code - zero) * scale`. Scales are chosen so
that 16 bits hold them, where their size allows it; zero points are codes, as ONNX's DequantizeLinear has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

Bits = Literal[8, 4, 2]
Method = Literal["rtn", "hqq", "gptq"]

#: Shares of a group's range that are tried as the range of its grid: fewer outliers, finer steps.
_RATIOS = {8: (1.0, 0.95), 4: tuple(1 - 0.04 * i for i in range(12)), 2: tuple(1 - 0.05 * i for i in range(16))}
#: Elements that are searched at once: what is in the cache is quicker to go over many times.
_CHUNK = 2**18
#: Kernels pack groups of these sizes and larger powers of two.
SMALLEST_GROUP = 16


@dataclass(frozen=True)
class Codes:
    """A quantized matrix.

    Attributes:
        bits: per code.
        codes: uint8, K x N, each below `2**bits`.
        scale: float32, groups x N; every one a float16 where `half` says so.
        zero: uint8, groups x N.
    """

    bits: Bits
    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray

    @property
    def group(self) -> int:
        """Rows that share a scale."""
        return int(self.codes.shape[0] // self.scale.shape[0])

    @property
    def half(self) -> bool:
        """Whether float16 holds every scale as it is."""
        import numpy as np

        with np.errstate(over="ignore"):
            return bool((self.scale.astype(np.float16).astype(np.float32) == self.scale).all())

    @property
    def stored(self) -> int:
        """Bytes on disk: codes, scales and zero points."""
        each = (16 if self.half else 32) + self.bits
        return (self.codes.size * self.bits + self.scale.size * each + 7) // 8

    def matrix(self) -> np.ndarray:
        """The weights that the codes stand for, float32, K x N."""
        import numpy as np

        parts = self.codes.reshape(self.scale.shape[0], -1, self.codes.shape[1]).astype(np.float32)
        parts = (parts - self.zero[:, None, :]) * self.scale[:, None, :]
        found: np.ndarray = parts.reshape(self.codes.shape)
        return found


def group_of(rows: int, asked: int, bits: Bits) -> int:
    """The group size for `rows` summed rows: the largest power of two up to `asked` that divides them.

    8 bits need no groups: one scale per column costs less and loses nothing. Rows that no power of two from 16 on
    divides are one group as well.
    """
    size = 1 << (asked.bit_length() - 1)
    while bits < 8 and size >= SMALLEST_GROUP:
        if rows % size == 0:
            return size
        size //= 2
    return rows


def rounded(
    weight: np.ndarray, bits: Bits, group: int, method: Method = "rtn", moments: np.ndarray | None = None
) -> Codes:
    """A matrix quantized by one of the methods.

    Args:
        weight: float32, K x N.
        bits: per weight.
        group: rows that share a scale; divides K.
        method: `rtn` rounds to the nearest code of the grid with the least squared error; `hqq` lets outliers err;
            `gptq` makes up for each row's error in the rows behind it, and needs `moments`.
        moments: X'X of what the weight is multiplied with, K x K. With `rtn` its diagonal says which rows matter.
    """
    import numpy as np

    importance = None if moments is None else np.maximum(np.diag(moments), 0).astype(np.float32)
    if method == "gptq" and moments is not None:
        return _gptq(weight, moments, bits, group)
    scale, zero = _grid(weight, bits, group, importance)
    if method == "hqq":
        scale, zero = _half_quadratic(weight, bits, scale, zero)
    return Codes(bits, _encode(weight, bits, scale, zero), scale, zero.astype(np.uint8))


def _encode(weight: np.ndarray, bits: Bits, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    import numpy as np

    parts = weight.reshape(scale.shape[0], -1, weight.shape[1])
    codes = np.clip(np.rint(parts / scale[:, None, :]) + zero[:, None, :], 0, 2**bits - 1)
    found: np.ndarray = codes.astype(np.uint8).reshape(weight.shape)
    return found


def _grid(weight: np.ndarray, bits: Bits, group: int, importance: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The scale and zero point of each group, groups x N, by a search over clipping ratios for the least error."""
    import numpy as np

    parts = weight.reshape(-1, group, weight.shape[1])
    count, _, columns = parts.shape
    weights = np.ones((count, group, 1), np.float32)
    if importance is not None and importance.max() > 0:
        # A row that the samples never touch may matter to others: it keeps a little weight.
        weights = (importance / importance.max() + 1e-3).reshape(count, group, 1).astype(np.float32)
    scale = np.empty((count, columns), np.float32)
    zero = np.empty((count, columns), np.float32)
    step = max(1, _CHUNK // group // columns)
    for i in range(0, count, step):
        for j in range(0, columns, width := max(1, _CHUNK // group)):
            block = (slice(i, i + step), slice(j, j + width))
            v = parts[i : i + step, :, j : j + width]
            scale[block], zero[block] = _search(v, weights[i : i + step], bits)
    return scale, zero


def _search(v: np.ndarray, weights: np.ndarray, bits: Bits) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    top = np.float32(2**bits - 1)
    low, high = np.minimum(v.min(1), 0), np.maximum(v.max(1), 0)
    best = np.full(low.shape, np.inf, np.float32)
    scale, zero = np.ones_like(low), np.zeros_like(low)
    for ratio in _RATIOS[bits]:
        s = representable(np.maximum((high - low) * np.float32(ratio) / top, np.float32(1e-30)))
        exact = np.clip(-low * np.float32(ratio) / s, 0, top)
        for z in (np.rint(exact),) if bits > 2 else (np.floor(exact), np.ceil(exact)):
            levels = np.clip(np.rint(v / s[:, None]), -z[:, None], (top - z)[:, None])
            t = _fitted(v, levels, weights, s)
            levels = np.clip(np.rint(v / t[:, None]), -z[:, None], (top - z)[:, None])
            error = (weights * (levels * t[:, None] - v) ** 2).sum(1)
            better = error < best
            best, scale, zero = np.where(better, error, best), np.where(better, t, scale), np.where(better, z, zero)
    return scale, zero


def _fitted(v: np.ndarray, levels: np.ndarray, weights: np.ndarray | float, otherwise: np.ndarray) -> np.ndarray:
    """The scale with the least squared error for given levels, where they are not all zero."""
    import numpy as np

    above, below = (weights * levels * v).sum(1), (weights * levels * levels).sum(1)
    fit = np.where(below > 0, above / np.maximum(below, np.float32(1e-30)), 0)
    return representable(np.where(fit > 0, fit, otherwise).astype(np.float32))


def representable(scale: np.ndarray) -> np.ndarray:
    """Scales as float16 would hold them; as they are where one of them is too large or too small for that."""
    import numpy as np

    limits = np.finfo(np.float16)
    inside = (scale >= limits.smallest_normal) & (scale <= limits.max)
    # A group of zeros may have any scale, so it must not decide for the others.
    short = np.where(inside, np.clip(scale, limits.smallest_normal, limits.max).astype(np.float16), scale)
    found: np.ndarray = np.where(scale <= np.float32(1e-29), np.float32(1), short).astype(np.float32)
    return found


def _half_quadratic(
    weight: np.ndarray, bits: Bits, scale: np.ndarray, zero: np.ndarray, steps: int = 20, norm: float = 0.7
) -> tuple[np.ndarray, np.ndarray]:
    """HQQ (Badri and Shaji, 2023): the grid that leaves the error with the least p-norm, p below 1.

    The error is split into a sparse part, found by a shrinkage, and a rest that a new scale and a new zero point
    reduce by least squares. The original moves a zero point with fractions; here it is a whole number, so the scale
    moves too. A group keeps a step only where it lowers the norm.
    """
    import numpy as np

    parts = weight.reshape(scale.shape[0], -1, weight.shape[1])
    top = np.float32(2**bits - 1)

    def levels(s: np.ndarray, z: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.clip(np.rint(parts / s[:, None]), -z[:, None], (top - z)[:, None])
        return found

    def cost(s: np.ndarray, q: np.ndarray) -> np.ndarray:
        total: np.ndarray = (np.abs(parts - q * s[:, None]) ** norm).sum(1)
        return total

    q = levels(scale, zero)
    least, beta = cost(scale, q), 1.0
    spread = np.maximum(np.abs(parts).mean(1, keepdims=True), np.float32(1e-30))
    for _ in range(steps):
        error = (parts - q * scale[:, None]) / spread
        shrunk = np.maximum(np.abs(error) - np.maximum(np.abs(error), 1e-8) ** (norm - 1) / beta, 0)
        target = parts - np.sign(error) * shrunk * spread
        new_zero = np.clip(np.rint((q + zero[:, None] - target / scale[:, None]).mean(1)), 0, top)
        new_scale = _fitted(target, q, 1.0, scale)
        new_q = levels(new_scale, new_zero)
        new = cost(new_scale, new_q)
        better = new < least
        if not better.any():
            break
        scale, zero = np.where(better, new_scale, scale), np.where(better, new_zero, zero)
        q, least = np.where(better[:, None], new_q, q), np.where(better, new, least)
        beta *= 1.01
    return scale, zero


def _gptq(
    weight: np.ndarray, moments: np.ndarray, bits: Bits, group: int, damp: float = 0.01, block: int = 128
) -> Codes:
    """GPTQ (Frantar et al., 2210.17323): rows one after the other, each error taken up by the rows to come.

    Grids are fixed beforehand, so that rows may come in the order of their importance whatever their group is.
    """
    import numpy as np

    rows = weight.shape[0]
    diagonal = np.diag(moments).copy()
    mean = float(diagonal.mean())
    if mean <= 0:  # the samples never reach this weight
        return rounded(weight, bits, group)
    scale, zero = _grid(weight, bits, group, diagonal.astype(np.float32))
    order = np.argsort(-diagonal, kind="stable")
    upper = _inverse_root(moments[np.ix_(order, order)], damp * mean)
    w = weight[order].astype(np.float32)
    place = order // group
    codes = np.empty(weight.shape, np.uint8)
    top = 2**bits - 1
    for first in range(0, rows, block):
        last = min(first + block, rows)
        errors = np.empty((last - first, weight.shape[1]), np.float32)
        for i in range(first, last):
            s, z = scale[place[i]], zero[place[i]]
            code = np.clip(np.rint(w[i] / s) + z, 0, top)
            codes[order[i]] = code
            errors[i - first] = (w[i] - (code - z) * s) / upper[i, i]
            w[i + 1 : last] -= np.outer(upper[i, i + 1 : last], errors[i - first])
        w[last:] -= upper[first:last, last:].T @ errors
    return Codes(bits, codes, scale, zero.astype(np.uint8))


def _inverse_root(moments: np.ndarray, damp: float) -> Any:
    """The upper factor of the inverse of damped moments, float32; more damping where they are nearly singular."""
    import numpy as np

    eye = np.eye(len(moments))
    for factor in (1, 10, 100):
        try:
            inverse = np.linalg.inv(moments + eye * damp * factor)
            return np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
        except np.linalg.LinAlgError:
            continue
    return np.diag(1 / np.sqrt(np.diag(moments) + damp)).astype(np.float32)
