"""How each layer could be taken apart, and how far each is: ranks under one budget for all of them.

With `keep`, all layers get the same relative error, the least with which the parameters fit: layers that have a low
rank by themselves give more. With `error`, each layer gets that one.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portolan.passes import _tensor_train as tensor_train
from portolan.passes._factor import Budget, largest, spectrum, terms
from portolan.passes._layers import Builder, Layer
from portolan.passes._moments import Moment, whitener
from portolan.passes._polyadic import Polyadic, polyadic
from portolan.passes._surgery import attribute
from portolan.passes._tucker import spectra, tucker

if TYPE_CHECKING:
    import numpy as np
    import onnx

Nodes = Mapping[str, "list[onnx.NodeProto]"]
Ranks = tuple[int, ...]
#: How a convolution moves over its input; the rest of its attributes say what it sums.
_MOVES = ("auto_pad", "dilations", "pads", "strides")


@dataclass(frozen=True, eq=False)
class Plan:
    """One layer and one way to take it apart.

    Attributes:
        energies: for each rank, the squared singular values that it cuts.
        parameters: how many numbers the factors have.
        products: how many multiplications they need for one output position.
        nodes: what stands in for the layer.
    """

    layer: Layer
    energies: tuple[np.ndarray, ...]
    parameters: Callable[[Ranks], float]
    products: Callable[[Ranks], float]
    nodes: Callable[[Ranks], Nodes]

    def ranks(self, error: float, budget: Budget, *, up: bool) -> Ranks:
        """The smallest ranks with at most this error, each cut taking an equal part of its square."""
        share = error / math.sqrt(len(self.energies))
        return tuple(budget.rounded(terms(e, share), len(e), up=up) for e in self.energies)

    def smaller(self, ranks: Ranks) -> bool:
        """Whether the factors are less work and fewer numbers than the layer."""
        whole = self.layer.weight.size
        return self.products(ranks) < whole // self.layer.groups and self.parameters(ranks) < whole


def chosen(plans: Sequence[Plan], budget: Budget) -> list[tuple[Plan, Ranks]]:
    """The plans that make their layer smaller, each with its ranks."""
    error = budget.error if budget.error is not None else _common(plans, budget)
    up = budget.error is not None
    pairs = [(plan, plan.ranks(error, budget, up=up)) for plan in plans]
    return [(plan, ranks) for plan, ranks in pairs if plan.smaller(ranks)]


def _common(plans: Sequence[Plan], budget: Budget) -> float:
    limit = budget.keep * sum(plan.layer.weight.size for plan in plans)

    def fits(accuracy: float) -> bool:
        total = 0.0
        for plan in plans:
            ranks = plan.ranks(1 - accuracy, budget, up=False)
            total += plan.parameters(ranks) if plan.smaller(ranks) else plan.layer.weight.size
        return total <= limit

    return 1 - largest(fits)


def plan(layer: Layer, method: str, seen: Sequence[Moment], builder: Builder, cores: int) -> Plan:
    """How `method` (not cp) would take this layer apart."""
    if method == "tt":
        return _train(layer, builder, cores)
    roots = whiteners(layer, seen)
    if layer.product:
        return _dense(layer, roots[0], builder)
    pointwise = layer.weight[0, 0].size == 1
    return _pointwise(layer, roots, builder) if pointwise else _tucker(layer, roots, builder)


def whiteners(layer: Layer, seen: Sequence[Moment]) -> list[np.ndarray]:
    """One per group of a layer's inputs; the identity where nothing was seen of them."""
    size = layer.weight.shape[0] if layer.product else layer.weight.shape[1]
    return [whitener(moment, size) for moment in seen] or [whitener(None, size)] * layer.groups


def _dense(layer: Layer, root: np.ndarray, builder: Builder) -> Plan:
    cost = sum(layer.weight.shape)
    parts = spectrum(layer.weight, root)
    return Plan(
        layer,
        (parts.energies,),
        lambda ranks: ranks[0] * cost,
        lambda ranks: ranks[0] * cost,
        lambda ranks: builder.products(layer, *parts.factors(ranks[0])),
    )


def _pointwise(layer: Layer, roots: Sequence[np.ndarray], builder: Builder) -> Plan:
    """A 1x1 convolution as two: the first moves as the original did, so that padding comes before the bias."""
    import numpy as np

    kernels = _by_group(layer)
    outputs, inputs = kernels[0].shape[:2]
    parts = [spectrum(kernel.reshape(outputs, inputs).T, root) for kernel, root in zip(kernels, roots, strict=True)]
    ones = (1,) * (layer.weight.ndim - 2)
    group = {"group": layer.groups}

    def nodes(ranks: Ranks) -> Nodes:
        pairs = [part.factors(ranks[0]) for part in parts]
        first = np.concatenate([a.T.reshape(ranks[0], inputs, *ones) for a, _ in pairs])
        second = np.concatenate([b.T.reshape(outputs, ranks[0], *ones) for _, b in pairs])
        return builder.chain(layer, [("in", first, {**_moves(layer), **group}), ("out", second, group)])

    return Plan(
        layer,
        (np.sum([part.energies for part in parts], axis=0),),
        lambda ranks: layer.groups * ranks[0] * (inputs + outputs),
        lambda ranks: ranks[0] * (inputs + outputs),
        nodes,
    )


def _tucker(layer: Layer, roots: Sequence[np.ndarray], builder: Builder) -> Plan:
    import numpy as np

    kernels = _by_group(layer)
    outputs, inputs, *window = kernels[0].shape
    each = [spectra(kernel, root) for kernel, root in zip(kernels, roots, strict=True)]
    ones = (1,) * len(window)
    group = {"group": layer.groups}

    def cost(ranks: Ranks, positions: int) -> int:
        b, a = ranks
        return int(positions * inputs * a + a * b * math.prod(window) + b * outputs)

    def nodes(ranks: Ranks) -> Nodes:
        b, a = ranks
        forms = [tucker(kernel, root, (b, a)) for kernel, root in zip(kernels, roots, strict=True)]
        return builder.chain(
            layer,
            [
                ("in", np.concatenate([f.inputs.T.reshape(a, inputs, *ones) for f in forms]), group),
                ("core", np.concatenate([f.core for f in forms]), {**_moves(layer), **group}),
                ("out", np.concatenate([f.outputs.reshape(outputs, b, *ones) for f in forms]), group),
            ],
        )

    return Plan(
        layer,
        (np.sum([e[0] for e in each], axis=0), np.sum([e[1] for e in each], axis=0)),
        lambda ranks: layer.groups * cost(ranks, 1),
        lambda ranks: cost(ranks, _strides(layer)),
        nodes,
    )


def _train(layer: Layer, builder: Builder, cores: int) -> Plan:
    sizes = tensor_train.modes(layer.weight.shape[0], layer.weight.shape[1], cores) or ()
    return Plan(
        layer,
        tuple(tensor_train.spectra(layer.weight, sizes)),
        functools.partial(tensor_train.parameters, sizes),
        functools.partial(tensor_train.products, sizes),
        lambda ranks: builder.train(layer, tensor_train.train(layer.weight, sizes, ranks)),
    )


def canonical(
    found: Sequence[Layer],
    budget: Budget,
    seen: Mapping[str, Sequence[Moment]],
    builder: Builder,
    seconds: float,
) -> dict[str, list[onnx.NodeProto]]:
    """Convolutions in CP form: a 1x1, one along rows, one along columns, a 1x1; those that get smaller so.

    Errors are known only once a form is found, so `keep` holds for each layer by itself. Of the time, each layer has
    its part by size; when that is over, its best form so far is taken.
    """
    new: dict[str, list[onnx.NodeProto]] = {}
    end, left = time.monotonic() + seconds, float(sum(layer.weight.size for layer in found))
    for layer in found:
        now = time.monotonic()
        until = now + max(0.0, end - now) * layer.weight.size / left
        left -= layer.weight.size
        form = _form(layer, budget, whiteners(layer, seen.get(layer.name, []))[0], until)
        if form is not None:
            new |= _four(layer, form, builder)
    return new


def _form(layer: Layer, budget: Budget, root: np.ndarray, until: float) -> Polyadic | None:
    """The CP form that the budget asks for; None where that is not smaller than the layer."""
    w, align = layer.weight, budget.align
    outputs, inputs, height, width = w.shape
    strides = _strides(layer)
    most = 0
    while (most + align) * (strides * (inputs + height) + width + outputs) < w.size:
        most += align

    def over() -> bool:
        return time.monotonic() >= until

    if budget.error is None:
        rank = budget.rounded(budget.keep * w.size / (outputs + inputs + height + width), int(w.size))
        return polyadic(w, root, rank, over=over)[0] if rank <= most else None
    return _least(w, root, budget.error, align, most // align, over)


def _least(
    w: np.ndarray, root: np.ndarray, error: float, align: int, steps: int, over: Callable[[], bool]
) -> Polyadic | None:
    """The form of the fewest steps of `align` that was found to reach the error, by halving; None where none was."""
    low, high, best = 1, steps + 1, None
    while low < high and not over():
        middle = (low + high) // 2
        form, reached = polyadic(w, root, middle * align, enough=error, over=over)
        if reached <= error:
            best, high = form, middle
        else:
            low = middle + 1
    if best is None or over():
        return best
    return polyadic(w, root, high * align, over=over)[0]  # as near as these terms get


def _four(layer: Layer, form: Polyadic, builder: Builder) -> dict[str, list[onnx.NodeProto]]:
    outputs, inputs, height, width = layer.weight.shape
    rank = form.rows.shape[1]
    rows, columns = _axes(layer)
    return builder.chain(
        layer,
        [
            ("in", form.inputs.T.reshape(rank, inputs, 1, 1), {}),
            ("rows", form.rows.T.reshape(rank, 1, height, 1), {**rows, "group": rank}),
            ("columns", form.columns.T.reshape(rank, 1, 1, width), {**columns, "group": rank}),
            ("out", form.outputs.reshape(outputs, rank, 1, 1), {}),
        ],
    )


def _by_group(layer: Layer) -> list[np.ndarray]:
    import numpy as np

    return np.split(layer.weight, layer.groups)


def _moves(layer: Layer) -> dict[str, Any]:
    found = {name: attribute(layer.nodes[0], name) for name in _MOVES}
    return {name: value for name, value in found.items() if value is not None}


def _strides(layer: Layer) -> int:
    """How many input positions there are for one output position."""
    return math.prod(attribute(layer.nodes[0], "strides", [1]))


def _axes(layer: Layer) -> tuple[dict[str, Any], dict[str, Any]]:
    """How the convolution moves along rows and along columns, each for a window of one in the other."""
    moves = _moves(layer)
    pair: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for axis in (0, 1):
        for name in ("strides", "dilations"):
            if name in moves:
                pair[axis][name] = [moves[name][axis] if i == axis else 1 for i in (0, 1)]
        if "pads" in moves:
            pair[axis]["pads"] = [size if i % 2 == axis else 0 for i, size in enumerate(moves["pads"])]
        if "auto_pad" in moves:
            pair[axis]["auto_pad"] = moves["auto_pad"]
    return pair
