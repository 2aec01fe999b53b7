"""What `quantize` does in its modes `weights`, `float16` and `bfloat16`: fewer bits in the file, float arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from portolan.core.model import Model
from portolan.core.passes import Context, Need, Params
from portolan.errors import ModelError, UsageError
from portolan.passes._calibration import usable
from portolan.passes._floats import sixteen
from portolan.passes._graphs import quantized, save_graph
from portolan.passes._moments import hessians
from portolan.passes._round import Bits, Codes, rounded
from portolan.passes._surgery import opened
from portolan.passes._weights import Layer, check_finite, layers, store

if TYPE_CHECKING:
    import numpy as np
    import onnx

Asked = Literal["auto", "rtn", "hqq", "gptq"]
#: Modes that keep float arithmetic.
MODES = ("weights", "float16", "bfloat16")
#: Operators whose weights can be stored in few bits.
_KINDS = ("Conv", "ConvTranspose", "GRU", "Gather", "Gemm", "LSTM", "MatMul", "RNN")
#: The least group: below it, scales take as much room as weights.
LEAST_GROUP = 16
_HINT = "leave `quantize` out of the recipe"


def method_of(options: Params) -> str:
    """The method that `auto` stands for: 8 bits lose nothing that calibration could save."""
    asked = str(options.get("method", "auto"))
    if asked != "auto":
        return asked
    return "rtn" if options.get("bits", 8) == 8 else "gptq"


def needs(options: Params) -> Need:
    """Calibration data for GPTQ only."""
    return "calibration" if options.get("mode") == "weights" and method_of(options) == "gptq" else "nothing"


def produces(options: Params) -> tuple[str, ...]:
    """`weights:int4` and the like, or the 16-bit format."""
    mode = str(options["mode"])
    return (f"weights:int{options.get('bits', 8)}",) if mode == "weights" else (mode,)


def refuse(model: Model, options: Params) -> str | None:
    """Why the mode cannot help this model, or None."""
    if reason := reduced(model):
        return reason
    if options["mode"] == "weights":
        if not model.operators.keys() & set(_KINDS):
            return f"the model has no operator with weights to quantize ({', '.join(_KINDS)})"
        return None
    if options.get("bits", 8) != 8:
        return f"`bits` is for integers: `{options['mode']}` has 16 of its own"
    return None


def reduced(model: Model) -> str | None:
    """Why a model's precision must not be reduced again, or None."""
    if quantized(model):
        return "the model is quantized already"
    if short := next((f for f in model.features if f in ("float16", "bfloat16")), None):
        return f"its weights are {short} already"
    return None


def apply(model: Model, context: Context, options: Mapping[str, Any]) -> Model:
    """Applies one of these modes.

    Args:
        model: a float model.
        context: its folder gets the file; its calibration data serve GPTQ.
        options: those of `quantize`.

    Raises:
        UsageError: refused, nothing to quantize, or calibration data that are missing or unusable.
        ModelError: weights that are NaN or infinite, or a graph that cannot be handled.
    """
    if reason := refuse(model, options):
        raise UsageError(f"`{model.name}` cannot be quantized: {reason}", hint=_HINT)
    if options["mode"] != "weights":
        return sixteen(model, context.folder, options["mode"])
    if options["group"] < LEAST_GROUP:
        raise UsageError(f"`group` cannot be {options['group']}", hint=f"use {LEAST_GROUP} or more: 32, 64, 128")
    method = method_of(options)
    runs = usable(model, context.calibration, "GPTQ") if method == "gptq" else []
    original, graph = opened_for_layers(model)
    chosen = layers(graph, embeddings=options["embeddings"])
    if not chosen:
        raise UsageError(
            f"`{model.name}` cannot be quantized: no {', '.join(_KINDS)} in it has constant weights", hint=_HINT
        )
    plan: dict[Layer, Bits] = dict.fromkeys(chosen, options["bits"])
    result = store(graph, fitted(graph, plan, options["group"], method, runs, model.name), model.name)
    return save_graph(result, original, model, context.folder, produces(options))


def opened_for_layers(model: Model) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """`opened` with every weight an initializer, in an operator set whose DequantizeLinear has an axis."""
    return opened(model, opset=13, grow=True)


def arrays(graph: onnx.ModelProto, chosen: Sequence[Layer], name: str) -> dict[str, np.ndarray]:
    """The weights of layers, by the names of their initializers.

    Raises:
        ModelError: one is NaN or infinite.
    """
    import onnx

    wanted = {layer.name for layer in chosen}
    found = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer if t.name in wanted}
    for key, array in found.items():
        check_finite(array, key, name)
    return found


def fitted(
    graph: onnx.ModelProto,
    plan: Mapping[Layer, Bits],
    group: int,
    method: str,
    runs: Sequence[Mapping[str, np.ndarray]],
    name: str,
) -> list[tuple[Layer, Codes]]:
    """Each layer of `plan` quantized to its bits. GPTQ is for products; tables and convolutions are rounded.

    Raises:
        UsageError: an activation is NaN or infinite.
        ModelError: weights are NaN or infinite, or ONNX Runtime cannot run the graph.
    """
    weights = arrays(graph, list(plan), name)
    # 8 bits are a grid fine enough: what GPTQ could save there is below what the runtimes' own arithmetic loses.
    careful = [layer for layer, bits in plan.items() if method == "gptq" and bits < 8]
    known = hessians(graph, careful, runs, name) if any(x.role == "product" for x in careful) else {}
    found = []
    for layer, bits in plan.items():
        moments = known.get(layer.name) if layer.role == "product" and layer in careful else None
        used: Any = "hqq" if method == "hqq" else "rtn" if moments is None else "gptq"
        matrix = layer.matrix(weights[layer.name])
        try:
            codes = rounded(matrix, layer.bits(bits), layer.group(bits, group), used, moments)
        except MemoryError as error:
            raise ModelError(f"`{name}`: not enough memory to quantize `{layer.name}`", hint=_HINT) from error
        found.append((layer, codes))
    return found
