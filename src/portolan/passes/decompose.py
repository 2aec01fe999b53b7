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
from typing import TYPE_CHECKING, Annotated, Literal

from portolan.core.model import Model
from portolan.core.passes import Context, Need, Params, compression
from portolan.core.schema import Knob
from portolan.core.target import Target
from portolan.errors import UsageError
from portolan.passes import _tensor_train as tensor_train
from portolan.passes._calibration import usable
from portolan.passes._factor import Budget
from portolan.passes._graphs import quantized, save_graph
from portolan.passes._layers import PRODUCTS, Builder, Layer, layers
from portolan.passes._moments import Moment, joined, moments
from portolan.passes._plans import Nodes, canonical, chosen, plan
from portolan.passes._surgery import Constants, drop_unused, opened, shapes

if TYPE_CHECKING:
    import numpy as np
    import onnx

Method = Literal["svd", "tucker", "cp", "tt"]
Score = Literal["activation", "magnitude"]

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
    refuse=_refuse, folds=lambda options: True,
    distributions=("numpy", "onnx", "onnxruntime", "onnxslim", "scipy"),
)  # fmt: skip
def decompose(
    model: Model,
    context: Context,
    *,
    method: Annotated[Method, Knob(values=("svd", "tucker"), help="into what form a layer is taken apart")] = "svd",
    keep: Annotated[
        float, Knob(values=(0.5, 0.75), help="share of the layers' parameters that their factors have")
    ] = 0.5,
    error: Annotated[
        float | None, Knob(search=False, help="relative error allowed in each layer, in place of `keep`")
    ] = None,
    align: Annotated[int, Knob(search=False, help="ranks are multiples of this")] = 16,
    score: Annotated[Score, Knob(search=False, help="count errors in outputs, or in weights")] = "activation",
    cores: Annotated[int, Knob(search=False, help="products per layer of a tensor train")] = 2,
    seconds: Annotated[float, Knob(search=False, help="`cp`: take the best forms so far then")] = 300.0,
) -> Model:
    """Replaces large layers by chains of smaller ones.

    Args:
        model: a float model.
        context: its folder gets the new file; score `activation` needs its calibration data, at least 8 samples.
        method: `svd` for dense layers and 1x1 convolutions; `tucker` (Tucker-2) and `cp` for convolutions; `tt`, a
            tensor train, for large dense layers.
        keep: share of the parameters of all layers that can be taken apart, above 0 and below 1. All get the same
            relative error, so those of low rank give more; with `cp` each keeps this share by itself.
        error: ranks are chosen so that each layer's error, as a share of its size, stays below this.
        align: what kernels like; 1 to choose ranks freely.
        score: `activation` weighs errors by what calibration data show of a layer's inputs; `magnitude` takes all
            inputs as equal and needs no data. A tensor train is always chosen by the weights alone.
        cores: 2 or 3.
        seconds: a limit on the time of `cp`, which goes by steps. Where it cuts, results depend on the machine's speed,
            and with `error` a layer that had no form with it yet stays whole.

    Raises:
        UsageError: nothing to take apart, or nothing that gets smaller; quantized already; options out of range;
            calibration data that are missing or unusable.
        ModelError: the graph holds something that cannot be handled.
    """
    options = {"method": method, "score": score}
    if reason := _refuse(model, options, context.target):
        raise UsageError(f"`{model.name}` cannot be decomposed: {reason}", hint="leave `decompose` out of the recipe")
    _check(keep, error, align, cores, seconds)
    aware = _needs(options) == "calibration"
    runs = usable(model, context.calibration, "decompose") if aware else []
    original, graph = opened(model)
    constants = Constants(graph)
    found = [layer for layer in layers(graph, constants, _OPERATORS[method]) if _fits(layer, method, cores)]
    seen = _inputs(model, graph, found, runs) if aware and found else {}
    taken = {name for node in graph.graph.node for name in (*node.input, *node.output)}
    builder = Builder(constants, taken, shapes(graph))
    budget = Budget(keep, error, align)
    new: dict[str, list[onnx.NodeProto]] = {}
    if method == "cp":
        new = canonical(found, budget, seen, builder, seconds)
    else:
        plans = [plan(layer, method, seen.get(layer.name, []), builder, cores) for layer in found]
        for one, ranks in chosen(plans, budget):
            new |= one.nodes(ranks)
    if not new:
        raise UsageError(
            _nothing(model, method, len(found)), hint="try another `method`, `keep` or `align`, or leave it out"
        )
    _replace(graph, new)
    return save_graph(graph, original, model, context.folder, _produces(options))


def _check(keep: float, error: float | None, align: int, cores: int, seconds: float) -> None:
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
    if not 0 < seconds < math.inf:
        raise UsageError(f"`seconds` of `decompose` is above 0, got {seconds:g}", hint="use for example 300")


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
    known = moments(graph, axes, joined(model, runs), model.name)
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


def _replace(graph: onnx.ModelProto, new: Nodes) -> None:
    kept: list[onnx.NodeProto] = []
    for node in graph.graph.node:
        kept.extend(new.get(node.output[0], [node]))
    del graph.graph.node[:]
    graph.graph.node.extend(kept)
    drop_unused(graph)
