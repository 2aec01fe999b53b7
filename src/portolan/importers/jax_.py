"""JAX as a namespace for the operators: what XLA compiles is what tracing a program with it gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from portolan.core.silence import runtime
from portolan.errors import ModelError, UnsupportedOperator

if TYPE_CHECKING:
    import numpy as np

Pads = Sequence[tuple[int, int]]
#: A depthwise kernel of so many elements or fewer is written out as a sum of products.
_WRITTEN_OUT = 49


class Jax:
    """JAX's functions under the names that the operators use; those that it shares with NumPy are its own.

    Whole numbers of 64 bits need `jax_enable_x64`, which the caller sets.
    """

    def __init__(self) -> None:
        self._jax = runtime("jax")
        self._lax = runtime("jax.lax")
        self._numpy = runtime("jax.numpy")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._numpy, name)

    def asarray(self, value: Any) -> Any:
        """An array; NumPy's become constants of what is traced."""
        return self._numpy.asarray(value)

    def known(self, value: Any) -> None:
        """What a traced value holds: nobody knows."""
        del value

    def kind(self, x: Any) -> str:
        """`f` for floats, `b` for truth values, `i` for whole numbers."""
        if self._numpy.issubdtype(x.dtype, self._numpy.floating):
            return "f"
        return "b" if x.dtype == bool else "i"

    def dtype(self, x: Any) -> str:
        """The element type by NumPy's name."""
        return str(x.dtype)

    def astype(self, x: Any, dtype: str) -> Any:
        """Another element type; floats are cut towards zero and wrap around, as they do in C."""
        try:
            kind = self._numpy.dtype(dtype)
        except TypeError:
            raise ModelError(f"JAX has no element type `{dtype}`", hint="export the model in float32") from None
        if self.kind(x) == "f" and kind.kind in "iu" and kind.itemsize < 8:
            x = x.astype("int64")  # XLA would clamp
        return x.astype(kind)

    def bitcast(self, x: Any, dtype: str) -> Any:
        """The same bits as another element type of the same size."""
        return self._lax.bitcast_convert_type(x, dtype)

    def shift(self, x: Any, count: Any, left: bool) -> Any:
        """Bits moved."""
        return (self._numpy.left_shift if left else self._numpy.right_shift)(x, count)

    def transpose(self, x: Any, axes: Sequence[int]) -> Any:
        """The axes in another order."""
        return self._numpy.transpose(x, tuple(axes))

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        """Another shape."""
        return self._numpy.reshape(x, tuple(shape))

    def broadcast_to(self, x: Any, shape: Sequence[int]) -> Any:
        """An axis of one element repeated."""
        return self._numpy.broadcast_to(x, tuple(shape))

    def concat(self, parts: Sequence[Any], axis: int) -> Any:
        """Along an axis that exists."""
        return self._numpy.concatenate([self._numpy.asarray(part) for part in parts], axis)

    def take(self, x: Any, indices: Any, axis: int) -> Any:
        """Elements along an axis by an index array of any rank."""
        return self._numpy.take(x, indices, axis, mode="clip")

    def take_along(self, x: Any, indices: Any, axis: int) -> Any:
        """One element per index along an axis; other axes of the index array may be shorter."""
        cut = tuple(slice(None) if i == axis else slice(0, n) for i, n in enumerate(indices.shape))
        return self._numpy.take_along_axis(x[cut], indices, axis, mode="clip")

    def put(self, x: Any, where: tuple[Any, ...], values: Any, how: str) -> Any:
        """A copy with elements replaced, or with `add`, `mul`, `max`, `min` applied, at index arrays."""
        name = {"none": "set", "mul": "multiply"}.get(how, how)
        return getattr(self._numpy.asarray(x).at[where], name)(values)

    def full(self, shape: Sequence[int], value: np.ndarray) -> Any:
        """An array of one value."""
        return self._numpy.full(tuple(shape), value, value.dtype)

    def arange(self, start: Any, stop: Any, step: Any, dtype: str) -> Any:
        """Numbers from `start` on, before `stop`."""
        return self._numpy.arange(start, stop, step, dtype=dtype)

    def nonzero(self, x: Any) -> Any:
        """Refused: how many there are is known only as the model runs."""
        del x
        raise UnsupportedOperator(
            "the size of the result depends on what the input holds, and XLA compiles for fixed sizes",
            hint="`--backend onnxruntime` runs it",
        )

    def reduce(self, name: str, x: Any, axes: tuple[int, ...], keep: bool) -> Any:
        """`sum`, `prod`, `max`, `min` or `mean` over axes, of the same element type."""
        if not axes:
            return x
        if name == "mean":
            return self._numpy.mean(x, axes, keepdims=keep).astype(x.dtype)
        if name in ("sum", "prod"):
            return getattr(self._numpy, name)(x, axes, keepdims=keep, dtype=x.dtype)
        edge = None if math.prod(x.shape) else self._edge(x.dtype, name == "min")
        return getattr(self._numpy, name)(x, axes, keepdims=keep, initial=edge)

    def cumsum(self, x: Any, axis: int) -> Any:
        """Running sums of the same element type."""
        return self._numpy.cumsum(x, axis, dtype=x.dtype)

    def topk(self, x: Any, count: int, axis: int, largest: bool) -> tuple[Any, Any]:
        """The largest or smallest elements along an axis in order, and where they are; of equals the first."""
        order = self._numpy.argsort(x, axis, stable=True, descending=largest)
        cut = tuple(slice(0, count) if i == axis % len(x.shape) else slice(None) for i in range(len(x.shape)))
        places = order[cut]
        return self._numpy.take_along_axis(x, places, axis), places.astype("int64")

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """Elements of `x` or of `y`."""
        return self._numpy.where(condition, x, y)

    def erf(self, x: Any) -> Any:
        """The error function."""
        return self._lax.erf(x)

    def sigmoid(self, x: Any) -> Any:
        """The logistic function."""
        return self._jax.nn.sigmoid(x)

    def softmax(self, x: Any, axis: int) -> Any:
        """Exponentials over their sum."""
        return self._jax.nn.softmax(x, axis)

    def log_softmax(self, x: Any, axis: int) -> Any:
        """The logarithm of softmax."""
        return self._jax.nn.log_softmax(x, axis)

    def relu(self, x: Any) -> Any:
        """The positive part."""
        return self._numpy.maximum(x, self._numpy.zeros((), x.dtype))

    # Layers -----------------------------------------------------------------------------------------------------------

    def conv(
        self, x: Any, weight: Any, bias: Any, strides: list[int], pads: Pads, dilations: list[int], group: int
    ) -> Any:  # fmt: skip
        """A convolution over any number of axes."""
        if group == x.shape[1] == weight.shape[0] > 1 and math.prod(weight.shape[2:]) <= _WRITTEN_OUT:
            found = self._depthwise(x, weight, strides, pads, dilations)
        else:
            found = self._lax.conv_general_dilated(
                x, weight, strides, pads, rhs_dilation=dilations, feature_group_count=group
            )
        return found if bias is None else found + bias.reshape(-1, *(1 for _ in pads))

    def _depthwise(self, x: Any, weight: Any, strides: list[int], pads: Pads, dilations: list[int]) -> Any:
        """The sum over the kernel's elements, one loop for XLA: its own depthwise convolution is many times slower."""
        x = self._numpy.pad(x, [(0, 0), (0, 0), *pads])
        kernel = weight.shape[2:]
        spans = [
            (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
        ]
        total: Any = None
        for place in self._places(kernel):
            first = [p * d for p, d in zip(place, dilations, strict=True)]
            cut = [slice(f, f + (n - 1) * s + 1, s) for f, n, s in zip(first, spans, strides, strict=True)]
            factor = weight[(slice(None), 0, *place)].reshape(-1, *(1 for _ in kernel))
            term = x[(slice(None), slice(None), *cut)] * factor
            total = term if total is None else total + term
        return total

    @staticmethod
    def _places(kernel: Sequence[int]) -> list[tuple[int, ...]]:
        places: list[tuple[int, ...]] = [()]
        for size in kernel:
            places = [(*place, i) for place in places for i in range(size)]
        return places

    def conv_transpose(
        self, x: Any, weight: Any, bias: Any, strides: list[int], pads: Pads, extra: list[int],
        dilations: list[int], group: int,
    ) -> Any:  # fmt: skip
        """A transposed convolution, as a convolution of the input spread out with the kernel turned round."""
        inputs, outputs, *kernel = weight.shape
        grouped = weight.reshape(group, inputs // group, outputs, *kernel)
        turned = self._numpy.swapaxes(grouped, 1, 2).reshape(group * outputs, inputs // group, *kernel)
        turned = self._numpy.flip(turned, tuple(range(2, 2 + len(kernel))))
        around = [
            (d * (k - 1) - before, d * (k - 1) - after + more)
            for k, d, (before, after), more in zip(kernel, dilations, pads, extra, strict=True)
        ]
        found = self._lax.conv_general_dilated(
            x, turned, [1] * len(kernel), around, lhs_dilation=strides, rhs_dilation=dilations,
            feature_group_count=group,
        )  # fmt: skip
        return found if bias is None else found + bias.reshape(-1, *(1 for _ in pads))

    def max_pool(self, x: Any, kernel: list[int], strides: list[int], dilations: list[int], pads: Pads) -> Any:
        """Maxima of windows."""
        return self._windows(x, self._edge(x.dtype, False), self._lax.max, kernel, strides, dilations, pads)

    def average_pool(
        self, x: Any, kernel: list[int], strides: list[int], dilations: list[int], pads: Pads, counted: Any
    ) -> Any:
        """Sums of windows over `counted`, a number or how many elements each window holds."""
        zero = self._numpy.zeros((), x.dtype)
        return self._windows(x, zero, self._lax.add, kernel, strides, dilations, pads) / counted

    def _windows(
        self, x: Any, first: Any, function: Any, kernel: list[int], strides: list[int], dilations: list[int], pads: Pads
    ) -> Any:  # fmt: skip
        return self._lax.reduce_window(
            x, first, function, (1, 1, *kernel), (1, 1, *strides), ((0, 0), (0, 0), *pads),
            window_dilation=(1, 1, *dilations),
        )  # fmt: skip

    def _edge(self, dtype: Any, top: bool) -> Any:
        """The largest or smallest value of an element type."""
        if self._numpy.issubdtype(dtype, self._numpy.floating):
            return self._numpy.asarray(math.inf if top else -math.inf, dtype)
        if self._numpy.dtype(dtype).kind == "b":
            return self._numpy.asarray(top)
        limits = self._numpy.iinfo(dtype)
        return self._numpy.asarray(limits.max if top else limits.min, dtype)

    def batch_norm(self, x: Any, scale: Any, bias: Any, mean: Any, variance: Any, epsilon: float) -> Any:
        """Normalised by what was counted in training."""
        shape = (-1, *(1 for _ in x.shape[2:]))
        factor = scale * self._lax.rsqrt(variance + epsilon)
        return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)

    def layer_norm(self, x: Any, shape: list[int], scale: Any, bias: Any, epsilon: float) -> Any:
        """Normalised over the last axes."""
        axes = tuple(range(len(x.shape) - len(shape), len(x.shape)))
        centred = x - self._numpy.mean(x, axes, keepdims=True)
        found = centred * self._lax.rsqrt(self._numpy.mean(centred * centred, axes, keepdims=True) + epsilon) * scale
        return found if bias is None else found + bias
