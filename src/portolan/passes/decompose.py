"""`decompose`: a layer as a chain of smaller ones, by matrix and tensor factorization.

What can be taken apart: dense layers and 1x1 convolutions into two (svd), convolutions with a window into three
(tucker) or four (cp), large dense layers into a train of small products (tt). Every backend gains from it, since what
comes out are plain products and convolutions, only smaller. Without fine-tuning behind it the price is high where the
weights are not of low rank by themselves: an SVD that keeps half of MiniLM's parameters leaves a cosine of 0.35 with
the original, one that looks at activations 0.73. Hence activations are looked at unless told otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from portolan.core.model import Model
from portolan.core.passes import Context, Need, Params, compression
from portolan.core.schema import Knob
from portolan.core.target import Target
from portolan.errors import UsageError
from portolan.passes import _tensor_train as tensor_train
from portolan.passes._calibration import usable
from portolan.passes._factor import Budget, spectrum
from portolan.passes._graphs import quantized, save_graph
from portolan.passes._layers import PRODUCTS, Builder, Layer, layers
from portolan.passes._moments import Moment, moments, whitener
from portolan.passes._surgery import Constants, attribute, drop_unused, opened, shapes
from portolan.passes._tucker import polyadic, tucker, tucker_ranks

if TYPE_CHECKING:
    import numpy as np
    import onnx

Method = Literal["svd", "tucker", "cp", "tt"]
Score = Literal["activation", "magnitude"]
Nodes = Mapping[str, "list[onnx.NodeProto]"]

_OPERATORS: Mapping[str, tuple[str, ...]] = {
    "svd": (*PRODUCTS, "Conv"), "tucker": ("Conv",), "cp": ("Conv",), "tt": PRODUCTS,
}  # fmt: skip
_FEATURES = {"svd": "shape:lowrank", "tucker": "shape:tucker", "cp": "shape:cp", "tt": "shape:tt"}
#: What each method looks for, in the words of an error.
_SOUGHT = {
    "svd": "a MatMul, Gemm or 1x1 Conv with constant weights",
    "tucker": "a Conv with constant weights",
    "cp": "a 2-D Conv without groups and with constant weights",
    "tt": "a MatMul or Gemm with constant weights whose sizes have factors",
}
#: How a convolution moves over its input; the rest of its attributes say what it sums.
_MOVES = ("auto_pad", "dilations", "pads", "strides")


def _needs(options: Params) -> Need:
    aware = options.get("score", "activation") == "activation" and options.get("method", "svd") != "tt"
    return "calibration" if aware else "nothing"


def _produces(options: Params) -> tuple[str, ...]:
    return (_FEATURES[options.get("method", "svd")],)


def _refuse(model: Model, options: Params, target: Target) -> str | None:
    del target
    method = options.get("method", "svd")
    if quantized(model):
        return "the model is quantized, and its weights are on a grid that no factors keep: decompose first"
    if not model.operators.keys() & set(_OPERATORS[method]):
        return f"{method} takes {_listed(_OPERATORS[method])} apart, and the model has none"
    return None


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


@compression(
    needs=_needs, produces=_produces, lossy=lambda options: True, stage=lambda options: "structure",
    refuse=_refuse, distributions=("numpy", "onnx", "onnxruntime", "onnxslim", "scipy"),
)  # fmt: skip
def decompose(
    model: Model,
    context: Context,
    *,
    method: Annotated[Method, Knob(values=("svd", "tucker"), help="into what form a layer is taken apart")] = "svd",
    keep: Annotated[
        float, Knob(values=(0.5, 0.75), help="share of each layer's parameters that its factors have")
    ] = 0.5,
    error: Annotated[
        float | None, Knob(search=False, help="relative error allowed in each layer, in place of `keep`")
    ] = None,
    align: Annotated[int, Knob(search=False, help="ranks are multiples of this")] = 16,
    score: Annotated[Score, Knob(search=False, help="count errors in outputs, or in weights")] = "activation",
    cores: Annotated[int, Knob(search=False, help="products per layer of a tensor train")] = 2,
) -> Model:
    """Replaces large layers by chains of smaller ones.

    Args:
        model: a float model.
        context: its folder gets the new file; score `activation` needs its calibration data, at least 8 samples.
        method: `svd` for dense layers and 1x1 convolutions; `tucker` (Tucker-2) and `cp` for convolutions; `tt`, a
            tensor train, for large dense layers.
        keep: share of a layer's parameters, above 0 and below 1. Ranks are rounded to `align` after that.
        error: ranks are chosen so that each layer's error, as a share of its size, stays below this.
        align: what kernels like; 1 to choose ranks freely.
        score: `activation` weighs errors by what calibration data show of a layer's inputs; `magnitude` takes all
            inputs as equal and needs no data. A tensor train is always chosen by the weights alone.
        cores: 2 or 3.

    Raises:
        UsageError: nothing to take apart, or nothing that gets smaller; quantized already; options out of range;
            calibration data that are missing or unusable.
        ModelError: the graph holds something that cannot be handled.
    """
    options = {"method": method, "score": score}
    if reason := _refuse(model, options, context.target):
        raise UsageError(f"`{model.name}` cannot be decomposed: {reason}", hint="leave `decompose` out of the recipe")
    _check(keep, error, align, cores)
    aware = _needs(options) == "calibration"
    runs = usable(model, context.calibration, "decompose") if aware else []
    original, graph = opened(model)
    constants = Constants(graph)
    found = [layer for layer in layers(graph, constants, _OPERATORS[method]) if _fits(layer, method, cores)]
    seen = _inputs(model, graph, found, runs) if aware and found else {}
    budget = Budget(keep, error, align)
    taken = {name for node in graph.graph.node for name in (*node.input, *node.output)}
    builder = Builder(constants, taken, shapes(graph))
    new: dict[str, list[onnx.NodeProto]] = {}
    for layer in found:
        new |= _apart(layer, method, budget, seen.get(layer.name, []), builder, cores) or {}
    if not new:
        raise UsageError(
            _nothing(model, method, len(found)), hint="try another `method`, `keep` or `align`, or leave it out"
        )
    _replace(graph, new)
    return save_graph(graph, original, model, context.folder, _produces(options))


def _check(keep: float, error: float | None, align: int, cores: int) -> None:
    if not 0 < keep < 1:
        raise UsageError(
            f"`keep` of `decompose` is a share of the parameters, got {keep:g}", hint="use for example 0.5"
        )
    if error is not None and not 0 <= error < 1:
        raise UsageError(f"`error` of `decompose` is a share from 0 to 1, got {error:g}", hint="use for example 0.1")
    if align < 1:
        raise UsageError(f"`align` of `decompose` is at least 1, got {align}", hint="use 16, or 1 for any rank")
    if cores not in (2, 3):
        raise UsageError(f"`cores` of `decompose` is 2 or 3, got {cores}", hint="use 2")


def _nothing(model: Model, method: str, count: int) -> str:
    looked = f"looked for {_SOUGHT[method]}"
    if not count:
        return f"`{model.name}` has no layer for `{method}`: {looked}"
    return f"`{model.name}` has no layer that `{method}` makes smaller: {looked}, and found {count}"


def _fits(layer: Layer, method: str, cores: int) -> bool:
    w = layer.weight
    if method == "svd":
        return layer.product or w[0, 0].size == 1
    if method == "cp":
        return w.ndim == 4 and layer.groups == 1
    return method == "tucker" or tensor_train.modes(w.shape[0], w.shape[1], cores) is not None


def _inputs(
    model: Model, graph: onnx.ModelProto, found: list[Layer], runs: list[dict[str, np.ndarray]]
) -> dict[str, list[Moment]]:
    """The moments of each layer's inputs, one per group of channels; those of all its users together."""
    axes = {name: -1 if layer.product else 1 for layer in found for name in layer.inputs}
    known = moments(model, graph, axes, runs)
    result = {}
    for layer in found:
        total = known[layer.inputs[0]]
        for name in layer.inputs[1:]:
            total = total + known[name]
        size = len(total.gram) // layer.groups
        result[layer.name] = [
            Moment(total.gram[i : i + size, i : i + size], total.rows) for i in range(0, len(total.gram), size)
        ]
    return result


def _apart(layer: Layer, method: str, budget: Budget, seen: list[Moment], builder: Builder, cores: int) -> Nodes | None:
    """The nodes in place of the layer's; None where they would cost no less."""
    if method == "tt":
        return _train(layer, budget, builder, cores)
    size = layer.weight.shape[0] if layer.product else layer.weight.shape[1]
    roots = [whitener(moment, size) for moment in seen] or [whitener(None, size)] * layer.groups
    if layer.product:
        return _dense(layer, budget, roots[0], builder)
    if layer.weight[0, 0].size == 1 and method != "cp":
        return _pointwise(layer, budget, roots, builder)
    return _tucker(layer, budget, roots, builder) if method == "tucker" else _polyadic(layer, budget, roots[0], builder)


def _dense(layer: Layer, budget: Budget, root: np.ndarray, builder: Builder) -> Nodes | None:
    k, n = layer.weight.shape
    parts = spectrum(layer.weight, root)
    rank = budget.rank(parts.energies, k + n, k * n)
    return builder.products(layer, *parts.factors(rank)) if rank * (k + n) < k * n else None


def _pointwise(layer: Layer, budget: Budget, roots: list[np.ndarray], builder: Builder) -> Nodes | None:
    """A 1x1 convolution as two: the first moves as the original did, so that padding comes before the bias."""
    import numpy as np

    kernels = _by_group(layer)
    outputs, inputs = kernels[0].shape[:2]
    parts = [spectrum(kernel.reshape(outputs, inputs).T, root) for kernel, root in zip(kernels, roots, strict=True)]
    rank = max(budget.rank(part.energies, inputs + outputs, inputs * outputs) for part in parts)
    if rank * (inputs + outputs) >= inputs * outputs:
        return None
    pairs = [part.factors(rank) for part in parts]
    ones = (1,) * (layer.weight.ndim - 2)
    first = np.concatenate([a.T.reshape(rank, inputs, *ones) for a, _ in pairs])
    second = np.concatenate([b.T.reshape(outputs, rank, *ones) for _, b in pairs])
    group = {"group": layer.groups}
    return builder.chain(layer, [("in", first, {**_moves(layer), **group}), ("out", second, group)])


def _tucker(layer: Layer, budget: Budget, roots: list[np.ndarray], builder: Builder) -> Nodes | None:
    import numpy as np

    kernels = _by_group(layer)
    outputs, inputs, *window = kernels[0].shape
    each = [tucker_ranks(kernel, root, budget) for kernel, root in zip(kernels, roots, strict=True)]
    b, a = (max(ranks[side] for ranks in each) for side in (0, 1))
    cost = _strides(layer) * inputs * a + a * b * math.prod(window) + b * outputs
    if cost >= kernels[0].size:
        return None
    forms = [tucker(kernel, root, (b, a)) for kernel, root in zip(kernels, roots, strict=True)]
    ones = (1,) * len(window)
    group = {"group": layer.groups}
    return builder.chain(
        layer,
        [
            ("in", np.concatenate([f.inputs.T.reshape(a, inputs, *ones) for f in forms]), group),
            ("core", np.concatenate([f.core for f in forms]), {**_moves(layer), **group}),
            ("out", np.concatenate([f.outputs.reshape(outputs, b, *ones) for f in forms]), group),
        ],
    )


def _polyadic(layer: Layer, budget: Budget, root: np.ndarray, builder: Builder) -> Nodes | None:
    outputs, inputs, height, width = layer.weight.shape
    strides = _strides(layer)

    def smaller(rank: int) -> bool:
        return rank * (strides * (inputs + height) + width + outputs) < layer.weight.size

    rank = budget.rounded(budget.keep * layer.weight.size / (outputs + inputs + height + width), layer.weight.size)
    form = None
    if budget.error is None:
        form = polyadic(layer.weight, root, rank)[0] if smaller(rank) else None
    else:
        # The error falls with the rank, so the fewest steps of `align` that reach it are found by halving.
        low, high = 0, 0
        while smaller((high + 1) * budget.align):
            high = max(1, 2 * high) if smaller(max(1, 2 * high) * budget.align) else high + 1
            if polyadic(layer.weight, root, high * budget.align)[1] <= budget.error:
                break
            low = high
        while high - low > 1:
            middle = (low + high) // 2
            enough = polyadic(layer.weight, root, middle * budget.align)[1] <= budget.error
            low, high = (low, middle) if enough else (middle, high)
        if high > low:
            form, rank = polyadic(layer.weight, root, high * budget.align)[0], high * budget.align
    if form is None:
        return None
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


def _train(layer: Layer, budget: Budget, builder: Builder, cores: int) -> Nodes | None:
    w = layer.weight
    sizes = tensor_train.modes(w.shape[0], w.shape[1], cores)
    if sizes is None:
        return None
    ranks = tensor_train.train_ranks(w, sizes, budget)
    if tensor_train.products(sizes, ranks) >= w.size or tensor_train.parameters(sizes, ranks) >= w.size:
        return None
    return builder.train(layer, tensor_train.train(w, sizes, ranks))


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


def _replace(graph: onnx.ModelProto, new: Nodes) -> None:
    kept: list[onnx.NodeProto] = []
    for node in graph.graph.node:
        kept.extend(new.get(node.output[0], [node]))
    del graph.graph.node[:]
    graph.graph.node.extend(kept)
    drop_unused(graph)
