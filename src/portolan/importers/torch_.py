"""PyTorch as a namespace for the operators, and a program as a `torch.nn.Module`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from portolan.core.silence import runtime
from portolan.errors import ModelError
from portolan.importers.program import Program

if TYPE_CHECKING:
    import numpy as np

Pads = Sequence[tuple[int, int]]


class Torch:
    """PyTorch's functions under the names that the operators use; those that it shares with NumPy are its own.

    Args:
        device: where arrays that the program makes are put.
    """

    def __init__(self, device: Any = "cpu") -> None:
        self._torch = runtime("torch")
        self._device = device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def asarray(self, value: Any) -> Any:
        """A tensor; NumPy's arrays share their memory with it, and sizes that only a tracer knows become numbers."""
        if isinstance(value, self._torch.Tensor):
            return value
        if value.dtype.kind == "O":
            parts = [self._torch.scalar_tensor(part, dtype=self._torch.int64) for part in value.reshape(-1).tolist()]
            return self._torch.stack(parts).reshape(value.shape)
        return self._torch.as_tensor(value, device=self._device)

    def known(self, value: Any) -> np.ndarray | None:
        """What a tensor holds; None where the program is only being traced."""
        if self._torch.compiler.is_exporting() or isinstance(value, self._torch._subclasses.FakeTensor):
            return None
        found: np.ndarray = value.detach().cpu().numpy()
        return found

    def kind(self, x: Any) -> str:
        """`f` for floats, `b` for truth values, `i` for whole numbers."""
        return "f" if x.dtype.is_floating_point else "b" if x.dtype is self._torch.bool else "i"

    def dtype(self, x: Any) -> str:
        """The element type by NumPy's name."""
        return str(x.dtype).removeprefix("torch.")

    def astype(self, x: Any, dtype: str) -> Any:
        """Another element type."""
        kind = getattr(self._torch, dtype, None)
        if kind is None:
            raise ModelError(f"PyTorch has no element type `{dtype}`", hint="export the model in float32")
        return x.to(kind)

    def bitcast(self, x: Any, dtype: str) -> Any:
        """The same bits as another element type of the same size."""
        return x.view(getattr(self._torch, dtype))

    def shift(self, x: Any, count: Any, left: bool) -> Any:
        """Bits moved."""
        return x << count if left else x >> count

    def transpose(self, x: Any, axes: Sequence[int]) -> Any:
        """The axes in another order."""
        return x.permute(*axes)

    def broadcast_to(self, x: Any, shape: Sequence[Any]) -> Any:
        """A view with axes repeated."""
        return x.expand(*shape)

    def take(self, x: Any, indices: Any, axis: int) -> Any:
        """Elements along an axis by an index array of any rank."""
        if axis == 0 and x.dtype.is_floating_point and len(x.shape) == 2:
            return self._torch.nn.functional.embedding(indices, x)
        picked = self._torch.index_select(x, axis, indices.reshape(-1))
        return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])

    def take_along(self, x: Any, indices: Any, axis: int) -> Any:
        """One element per index along an axis."""
        return self._torch.gather(x, axis, indices)

    def put(self, x: Any, where: tuple[Any, ...], values: Any, how: str) -> Any:
        """A copy with elements replaced, or with `add`, `mul`, `max`, `min` applied, at index arrays."""
        if how in ("none", "add"):
            return x.index_put(where, values, accumulate=how == "add")
        flat = sum(at * math.prod(x.shape[i + 1 : len(where)]) for i, at in enumerate(where))
        rest = list(x.shape[len(where) :])
        at = flat.reshape(-1, *(1 for _ in rest)).expand(-1, *rest)
        name = {"mul": "prod", "max": "amax", "min": "amin"}[how]
        found = x.reshape(-1, *rest).scatter_reduce(0, at, values.reshape(at.shape), name)
        return found.reshape(x.shape)

    def full(self, shape: Sequence[Any], value: np.ndarray) -> Any:
        """An array of one value."""
        return self.asarray(value).expand(*shape) if len(shape) else self.asarray(value)

    def arange(self, start: Any, stop: Any, step: Any, dtype: str) -> Any:
        """Numbers from `start` on, before `stop`."""
        return self._torch.arange(start, stop, step, dtype=getattr(self._torch, dtype), device=self._device)

    def nonzero(self, x: Any) -> Any:
        """Indices [axes, count]."""
        return self._torch.nonzero(x).T

    def reduce(self, name: str, x: Any, axes: tuple[int, ...], keep: bool) -> Any:
        """`sum`, `prod`, `max`, `min` or `mean` over axes, of the same element type."""
        if not axes:
            return x
        if name in ("max", "min"):
            return (self._torch.amax if name == "max" else self._torch.amin)(x, axes, keep)
        if name == "prod":
            for axis in sorted(axes, reverse=True):
                x = self._torch.prod(x, axis, keep, dtype=x.dtype)
            return x
        if name == "mean" and not x.dtype.is_floating_point:
            return self._torch.mean(x.double(), axes, keep).to(x.dtype)
        if name == "mean":  # without a type of its own, which LiteRT's converter does not take
            return self._torch.mean(x, axes, keep)
        return getattr(self._torch, name)(x, axes, keep, dtype=x.dtype)

    def cumsum(self, x: Any, axis: int) -> Any:
        """Running sums of the same element type."""
        return self._torch.cumsum(x, axis, dtype=x.dtype)

    def topk(self, x: Any, count: int, axis: int, largest: bool) -> tuple[Any, Any]:
        """The largest or smallest elements along an axis in order, and where they are; of equals the first."""
        values, places = self._torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, count), places.narrow(axis, 0, count)

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """Elements of `x` or of `y`."""
        return self._torch.where(condition, x, y)

    # Layers -----------------------------------------------------------------------------------------------------------

    def conv(
        self, x: Any, weight: Any, bias: Any, strides: list[int], pads: Pads, dilations: list[int], group: int
    ) -> Any:  # fmt: skip
        """A convolution over one, two or three axes."""
        x, rest = self._even(x, pads, 0.0)
        function = self._of_rank("conv", len(strides))
        return function(x, weight, bias, stride=strides, padding=rest, dilation=dilations, groups=group)

    def conv_transpose(
        self, x: Any, weight: Any, bias: Any, strides: list[int], pads: Pads, extra: list[int],
        dilations: list[int], group: int,
    ) -> Any:  # fmt: skip
        """A transposed convolution: the whole of it first, cut by the pads."""
        function = self._of_rank("conv_transpose", len(strides))
        whole = self._padded(function(x, weight, None, strides, 0, 0, group, dilations), [(0, e) for e in extra], 0.0)
        for axis, (before, after) in enumerate(pads):
            whole = whole.narrow(2 + axis, before, whole.shape[2 + axis] - before - after)
        return whole if bias is None else whole + bias.reshape(-1, *(1 for _ in pads))

    def max_pool(self, x: Any, kernel: list[int], strides: list[int], dilations: list[int], pads: Pads) -> Any:
        """Maxima of windows."""
        if any(before != after or 2 * before > k for (before, after), k in zip(pads, kernel, strict=True)):
            x, rest = self._padded(x, pads, float("-inf")), [0] * len(pads)
        else:
            rest = [before for before, _ in pads]
        return self._of_rank("max_pool", len(kernel))(x, kernel, strides, rest, dilations)

    def average_pool(
        self, x: Any, kernel: list[int], strides: list[int], dilations: list[int], pads: Pads, counted: Any
    ) -> Any:
        """Sums of windows over `counted`, a number or how many elements each window holds."""
        x, whole = self._padded(x, pads, 0.0), math.prod(kernel)
        if max(dilations) > 1 or len(kernel) > 3:
            return self._sums(x, kernel, strides, dilations) / counted
        means = self._of_rank("avg_pool", len(kernel))(x, kernel, strides)
        return means if type(counted) is int and counted == whole else means * whole / counted

    @staticmethod
    def _sums(x: Any, kernel: list[int], strides: list[int], dilations: list[int]) -> Any:
        """Sums of windows, whose elements lie apart, one axis after the other."""
        for axis, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True), 2):
            windows = x.unfold(axis, d * (k - 1) + 1, s)
            x = windows[..., ::d].sum(-1)
        return x

    def batch_norm(self, x: Any, scale: Any, bias: Any, mean: Any, variance: Any, epsilon: float) -> Any:
        """Normalised by what was counted in training."""
        return self._torch.nn.functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)

    def layer_norm(self, x: Any, shape: list[Any], scale: Any, bias: Any, epsilon: float) -> Any:
        """Normalised over the last axes."""
        if list(scale.shape) != list(shape):
            found = self._torch.nn.functional.layer_norm(x, shape, None, None, epsilon) * scale
            return found if bias is None else found + bias
        return self._torch.nn.functional.layer_norm(x, shape, scale, bias, epsilon)

    def equal(self, x: Any, y: Any) -> Any:
        """Where both agree; torch's own `equal` is one answer for all."""
        return self._torch.eq(x, y)

    def relu(self, x: Any) -> Any:
        """The positive part."""
        return self._torch.relu(x)

    def _of_rank(self, name: str, rank: int) -> Any:
        found = getattr(self._torch.nn.functional, f"{name}{rank}d", None)
        if found is None:
            raise ModelError(f"PyTorch has no {name} over {rank} axes", hint="export the model with one, two or three")
        return found

    def _even(self, x: Any, pads: Pads, fill: float) -> tuple[Any, list[int]]:
        """Padding that the layer does itself, after that which it cannot do since an axis' two ends differ."""
        rest = [min(pair) for pair in pads]
        if min(rest, default=0) >= 0 and all(a == b for a, b in pads):
            return x, rest
        return self._padded(x, pads, fill), [0] * len(rest)

    def _padded(self, x: Any, pads: Pads, fill: float) -> Any:
        flat = [width for pair in reversed(pads) for width in pair]
        return self._torch.nn.functional.pad(x, flat, value=fill) if any(flat) else x


def module(program: Program, outputs: Sequence[str] = ()) -> Any:
    """The program as a `torch.nn.Module` whose weights are parameters.

    Args:
        program: from `read`.
        outputs: the names of the values that a call gives; the program's outputs without.

    Returns:
        A module. `module(*inputs)` takes and gives tuples of tensors in the program's order; `module.named()` are the
        parameters by the graph's names; `module.arrays()` the same as NumPy arrays. Constants that training must not
        change are no parameters.
    """
    torch = runtime("torch")
    base: Any = torch.nn.Module

    class Imported(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            # Names of a graph may hold dots, which torch forbids.
            arrays = (program.constants[name].copy() for name in program.weights)
            self.weights = torch.nn.ParameterList(map(torch.from_numpy, arrays))

        def forward(self, *inputs: Any) -> tuple[Any, ...]:
            xp = Torch(inputs[0].device if inputs else "cpu")
            values = dict(zip(program.weights, self.weights, strict=True))
            values.update(zip(program.inputs, inputs, strict=True))
            return tuple(program.run(xp, values, outputs).values())

        def named(self) -> dict[str, Any]:
            return dict(zip(program.weights, self.weights, strict=True))

        def arrays(self) -> dict[str, np.ndarray]:
            return {name: weight.detach().cpu().numpy().copy() for name, weight in self.named().items()}

    return Imported()
