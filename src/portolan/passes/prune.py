"""`prune`: weights and channels that matter least are dropped.

Zeros (`unstructured`, `2:4`) leave shapes as they are: on their own they save stored bytes, and time only where a
backend has kernels for them. Dropped channels, neurons and attention heads leave smaller matrices that every backend
runs faster. What goes is judged by what calibration data show of its worth, and what stays is fitted anew to do what
the whole did; without data, by the size of the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from portolan.core.model import Model
from portolan.core.passes import Context, Need, Params, Stage, compression
from portolan.core.schema import Knob
from portolan.core.target import Target
from portolan.errors import UsageError
from portolan.passes import _zeros
from portolan.passes._calibration import usable
from portolan.passes._graphs import quantized, save_graph
from portolan.passes._layers import PRODUCTS, layers
from portolan.passes._moments import joined, moments
from portolan.passes._shrink import Cut, shrink
from portolan.passes._surgery import Constants, drop_unused, opened

if TYPE_CHECKING:
    import numpy as np
    import onnx

Kind = Literal["unstructured", "2:4", "channels", "neurons", "heads"]
Score = Literal["activation", "magnitude"]
Scope = Literal["layer", "global"]

_ZEROS = ("unstructured", "2:4")
#: What a kind needs one of each of: the model's operators say at once where it cannot help.
_OPERATORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "unstructured": ((*PRODUCTS, "Conv"),),
    "2:4": ((*PRODUCTS, "Conv"),),
    "channels": (("Conv", "ConvTranspose"),),
    "neurons": (PRODUCTS,),
    "heads": (("MatMul",), ("Softmax",)),
}
_SOUGHT = {
    "unstructured": "a MatMul, Gemm or Conv with at least 16 constant weights per output",
    "2:4": "a MatMul, Gemm or Conv with at least 16 constant weights per output that sums over a multiple of 4 inputs",
    "channels": "the outputs of a convolution, through to what sums over them, with nothing between that mixes them",
    "neurons": "the outputs of a MatMul or Gemm, through to the next one, with nothing between that mixes them",
    "heads": "products with constant weights split into heads by Reshape and Transpose, multiplied head by head, and "
    "summed by a product with constant weights",
}


def _needs(options: Params) -> Need:
    return "calibration" if options.get("score", "activation") == "activation" else "nothing"


def _produces(options: Params) -> tuple[str, ...]:
    kind = options.get("kind", "unstructured")
    return (f"sparsity:{kind}",) if kind in _ZEROS else ("shape:pruned",)


def _stage(options: Params) -> Stage:
    return "sparsity" if options.get("kind", "unstructured") in _ZEROS else "structure"


def _refuse(model: Model, options: Params, target: Target) -> str | None:
    del target
    if quantized(model):
        return "the model is quantized, and dropping weights would leave its grid: prune first"
    for names in _OPERATORS[options.get("kind", "unstructured")]:
        if not model.operators.keys() & set(names):
            return f"it has no {' or '.join(names)} to drop {_dropped(options)} from"
    return None


def _dropped(options: Params) -> str:
    kind = options.get("kind", "unstructured")
    return "weights" if kind in _ZEROS else str(kind)


@compression(
    needs=_needs, produces=_produces, lossy=lambda options: True, stage=_stage,
    refuse=_refuse, folds=lambda options: True,
    distributions=("numpy", "onnx", "onnxruntime", "onnxslim", "scipy"),
)  # fmt: skip
def prune(
    model: Model,
    context: Context,
    *,
    kind: Annotated[
        Kind,
        Knob(values=("unstructured", "channels", "neurons"), help="single weights, or what whole shapes shrink by"),
    ] = "unstructured",
    ratio: Annotated[float, Knob(values=(0.5, 0.25), help="share to drop")] = 0.5,
    score: Annotated[
        Score, Knob(search=False, help="judge by outputs on calibration data, or by weights")
    ] = "activation",
    scope: Annotated[
        Scope, Knob(search=False, help="`unstructured`: one threshold per layer, or one for all")
    ] = "layer",
    align: Annotated[int, Knob(search=False, help="channels and neurons are left in multiples of this")] = 8,
) -> Model:
    """Drops the weights, channels, neurons or attention heads that matter least.

    Args:
        model: a float model.
        context: its folder gets the new file; score `activation` needs its calibration data, at least 8 samples.
        kind: `unstructured`, zeros anywhere; `2:4`, two zeros in every four weights along the summed axis; `channels`
            of convolutions, `neurons` of feed-forward blocks and `heads` of attention, which make shapes smaller.
        ratio: the share to drop, above 0 and below 1; of each layer or group, rounded to `align`. 2:4 is always a half.
        score: `activation` judges by what is lost on calibration data and fits the rest anew; `magnitude` by weights.
        scope: whether layers share one threshold, so that some lose more than others; for `unstructured`.
        align: what is left of a group of channels or neurons is a multiple of this, which kernels like.

    Raises:
        UsageError: nothing to drop, quantized already, options out of range, calibration data that are missing or
            unusable.
        ModelError: the graph holds something that cannot be handled.
    """
    options = {"kind": kind, "score": score}
    if reason := _refuse(model, options, context.target):
        raise UsageError(f"`{model.name}` cannot be pruned: {reason}", hint="leave `prune` out of the recipe")
    _check(kind, ratio, align)
    runs = usable(model, context.calibration, "prune") if _needs(options) == "calibration" else None
    original, graph = opened(model)
    if kind in _ZEROS:
        _zeroed(model, graph, kind, ratio, scope, runs)
    else:
        cut = Cut(kind, ratio, align)
        found, smaller = shrink(model, graph, cut, runs)
        if not smaller:
            raise UsageError(
                _nothing(model, cut, found), hint="try another `kind`, `ratio` or `align`, or leave it out"
            )
    return save_graph(graph, original, model, context.folder, _produces(options))


def _check(kind: str, ratio: float, align: int) -> None:
    if not 0 < ratio < 1:
        raise UsageError(f"`ratio` of `prune` is a share of what is there, got {ratio:g}", hint="use for example 0.5")
    if kind == "2:4" and ratio != 0.5:
        raise UsageError(f"`2:4` drops half of the weights, not {ratio:g}", hint="leave `ratio` out, or at 0.5")
    if align < 1:
        raise UsageError(f"`align` of `prune` is at least 1, got {align}", hint="use 8, or 1 for any number")


def _zeroed(
    model: Model,
    graph: onnx.ModelProto,
    kind: str,
    ratio: float,
    scope: str,
    runs: list[dict[str, np.ndarray]] | None,
) -> None:
    constants = Constants(graph)
    found = [layer for layer in layers(graph, constants, (*PRODUCTS, "Conv")) if _zeros.dense(layer)]
    if kind == "2:4":
        found = [layer for layer in found if _zeros.summed(layer) % _zeros.FOUR == 0]
    if not found:
        raise UsageError(
            f"`{model.name}` has nothing for `{kind}`: looked for {_SOUGHT[kind]}",
            hint="leave `prune` out of the recipe",
        )
    seen = {}
    if runs is not None:
        axes = {name: -1 if layer.product else 1 for layer in found for name in layer.inputs}
        known = moments(graph, axes, joined(model, runs), model.name)
        for layer in found:
            first, *others = (known[name] for name in layer.inputs)
            seen[layer.name] = sum(others, first)
    _zeros.zero(constants, found, seen, ratio=None if kind == "2:4" else ratio, together=scope == "global")
    drop_unused(graph)


def _nothing(model: Model, cut: Cut, found: int) -> str:
    looked = f"looked for {_SOUGHT[cut.kind]}"
    if not found:
        return f"`{model.name}` has no {cut.kind} that can be dropped safely: {looked}"
    return f"none of the {found} groups of {cut.kind} of `{model.name}` gets smaller in steps of {cut.align}: {looked}"
