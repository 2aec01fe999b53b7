"""`quantize`: int8 arithmetic in place of float, or fewer bits for weights alone.

Dynamic: ONNX Runtime's own quantizer over products with constant weights, and embedding tables; a convolution would
become six times slower.

Static: QuantizeLinear and DequantizeLinear in front of every product, so that whoever runs the graph can put the two
and the product together. What is quantized follows measurements. Convolutional networks: products, and what flows
between them, additions included. Transformers: products with constant weights, and the scores of attention; not what
comes out of a softmax, masks, normalizations and the additions around blocks, which is where MiniLM's outputs were
destroyed and where nothing is won. Large channels migrate into weights (`_smooth`), and what that leaves too wrong on
samples kept apart goes back to float (`_static`).

Weights alone, in 8, 4 or 2 bits or in 16-bit floats: `_lowbits`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from portolan.core.model import Model
from portolan.core.passes import Context, Need, Params, compression
from portolan.core.schema import Knob
from portolan.core.target import Target
from portolan.errors import ModelError, UsageError
from portolan.passes import _lowbits
from portolan.passes._calibration import divided
from portolan.passes._dynamic import dynamic
from portolan.passes._graphs import header, open_graph, save_graph
from portolan.passes._nncf import nncf
from portolan.passes._products import PRODUCTS, WEIGHTED, weighted
from portolan.passes._slimming import slim
from portolan.passes._static import Options, static
from portolan.passes._steps import exact_kinds, kind_for

if TYPE_CHECKING:
    import onnx

Mode = Literal["dynamic", "static", "weights", "float16", "bfloat16"]
Method = Literal["auto", "rtn", "hqq", "gptq", "nncf"]
Calibrator = Literal["minmax", "mse", "percentile", "entropy"]
WeightType = Literal["auto", "s8", "s7", "u8"]
#: Options of the mode `static`, each with its default.
_STATIC = {"signed": False, "keep_cosine": 0.99, "weight_type": "auto"}
#: Per-channel QuantizeLinear and DequantizeLinear exist from here on.
_OPSET = 13


def _needs(options: Params) -> Need:
    if options.get("mode") in _lowbits.MODES:
        return _lowbits.needs(options)
    return "calibration" if options.get("mode") == "static" else "nothing"


def _produces(options: Params) -> tuple[str, ...]:
    if options.get("mode") in _lowbits.MODES:
        return _lowbits.produces(options)
    return (f"int8:{options.get('mode', 'dynamic')}",)


def _module(options: Params) -> str | None:
    return "nncf" if options.get("method") == "nncf" else None


def _unsigned(target: Target) -> tuple[str, ...]:
    return ("auto", *exact_kinds(target)[1:])


def _refuse(model: Model, options: Params, target: Target) -> str | None:
    if reason := _mismatched(options):
        return reason
    if options.get("mode") in _lowbits.MODES:
        return _lowbits.refuse(model, options)
    if reason := _lowbits.reduced(model):
        return reason
    if target.arch == "wasm32":
        return "int8 is 3 to 7 times slower than float in WebAssembly"
    if options.get("mode", "dynamic") == "dynamic":
        if not model.operators.keys() & set(PRODUCTS):
            return "dynamic int8 helps MatMul and Gemm only, and the model has neither"
    elif not model.operators.keys() & set(WEIGHTED):
        return "the model has no Conv, MatMul or Gemm to quantize"
    return None


def _mismatched(options: Params) -> str | None:
    """Options that say nothing in the mode that was asked for: somebody meant something else."""
    mode, method = options.get("mode", "dynamic"), options.get("method", "auto")
    if options.get("bits", 8) != 8 and mode in ("dynamic", "static"):
        return f"activations need 8 bits: `bits={options['bits']}` is for `mode=weights`"
    if method == "nncf" and mode != "static":
        return "`method=nncf` is for `mode=static`"
    if method in ("rtn", "hqq", "gptq") and mode != "weights":
        return f"`method={method}` is for `mode=weights`"
    for name, default in _STATIC.items():
        if mode != "static" and options.get(name, default) != default:
            return f"`{name}` is for `mode=static`"
    return None


@compression(
    needs=_needs, produces=_produces, lossy=lambda options: True, stage=lambda options: "precision",
    refuse=_refuse, folds=lambda options: options.get("method") != "nncf", module=_module,
    distributions=("onnxruntime", "onnxslim", "onnx"),
)  # fmt: skip
def quantize(
    model: Model,
    context: Context,
    *,
    bits: Annotated[
        Literal[8, 4, 2], Knob(when={"mode": ("weights",)}, help="bits per weight; activations of int8 modes have 8")
    ] = 8,
    mode: Annotated[
        Mode, Knob(help="int8 with ranges found at run time or from calibration data, or only the weights smaller")
    ] = "dynamic",
    method: Annotated[
        Method, Knob(search=False, help="of `weights`, how they are rounded; of `static`, `nncf` takes NNCF's recipe")
    ] = "auto",
    per_channel: Annotated[bool, Knob(search=False, help="a scale per output channel of a weight")] = True,
    calibrator: Annotated[Calibrator, Knob(search=False, help="how static ranges are chosen")] = "minmax",
    signed: Annotated[
        bool, Knob(search=False, help="static activations even around zero, instead of unsigned")
    ] = False,
    smooth: Annotated[
        float | None, Knob(search=False, help="how much of large channels goes to the weights, 0 to 1; chosen by data")
    ] = None,
    keep_cosine: Annotated[
        float,
        Knob(
            values=(0.99, 0.998),
            when={"mode": ("static",)},
            help="static products go back to float until the outputs are this near",
        ),
    ] = 0.99,
    weight_type: Annotated[
        WeightType,
        Knob(
            values=_unsigned,
            when={"mode": ("static",)},
            help="the whole numbers of static weights; `auto` never overflows here",
        ),
    ] = "auto",
    group: Annotated[int, Knob(search=False, help="weights under one scale at 4 and 2 bits")] = 128,
    embeddings: Annotated[bool, Knob(search=False, help="tables that are looked up get fewer bits too")] = True,
) -> Model:
    """Quantizes weights and activations to int8, or weights alone to 8, 4 or 2 bits or 16-bit floats.

    Args:
        model: a float model.
        context: its folder gets the new file; the mode `static` and GPTQ need its calibration data, at least 8 samples.
            Ranges come from three quarters of them, choices from the rest.
        bits: per weight; 4 and 2 in the mode `weights` only.
        mode: `dynamic` finds each activation's range as it runs; `static` (QuantizeLinear and DequantizeLinear around
            the operators) takes the ranges that the calibration data show. `weights` leaves activations float:
            ONNX Runtime and OpenVINO keep the codes of products in memory and compute with them; those of convolutions
            are unpacked when they are used. `float16` and `bfloat16` halve the file; in memory they are float32 again.
        method: of the mode `weights`: `rtn` rounds to the nearest on the grid with the least squared error, `hqq` lets
            outliers err (HQQ, 2023), `gptq` makes up for errors in later weights (arXiv 2210.17323); it is for MatMul
            and Gemm, the rest is rounded. `auto` is `rtn` at 8 bits and `gptq` below. Of the mode `static`: `nncf` is
            NNCF's own recipe with its defaults, for transformers where the graph attends; it takes no other option.
        per_channel: one scale per output channel of a weight; without it one per weight.
        calibrator: `minmax`; `percentile` (99.99) and `entropy`, which cut outliers off; `mse`, which cuts where the
            squared error is least, activation by activation.
        signed: int8 steps even around zero for activations with negative values, in place of uint8.
        smooth: SmoothQuant's alpha; 0 migrates nothing. Left alone, what keeps the outputs nearest is taken.
        keep_cosine: the mean cosine with the float model's outputs, less one standard error, on the calibration samples
            that no range was fitted on. Products whose activations lose most go back to float until it is reached;
            their weights stay 8-bit.
        weight_type: `s8`; `s7`, seven bits, whose sums fit 16 bits; `u8`, unsigned, which processors that add in 16
            bits widen first: exact there, and slower. `auto` is `s8`, on x86 without wide sums `s7`.
        group: of the mode `weights` at 4 and 2 bits: smaller is closer to the original and larger on disk. 8 bits have
            one scale per output channel.
        embeddings: of the mode `weights`: whether tables that Gather reads count.

    Raises:
        UsageError: nothing to quantize, quantized already, or calibration data that are missing or unusable.
        ModelError: the graph holds something that cannot be quantized, or `keep_cosine` cannot be kept.
    """
    asked = {
        "bits": bits, "mode": mode, "method": method, "group": group, "embeddings": embeddings, "signed": signed,
        "keep_cosine": keep_cosine, "weight_type": weight_type,
    }  # fmt: skip
    if reason := quantize.refuse(model, asked, context.target):
        raise UsageError(f"`{model.name}` cannot be quantized: {reason}", hint="leave `quantize` out of the recipe")
    if not 0 <= (smooth or 0) <= 1 or not 0 <= keep_cosine <= 1:
        raise UsageError("`smooth` and `keep_cosine` of `quantize` go from 0 to 1", hint="try `smooth=0.8`")
    if mode in _lowbits.MODES:
        return _lowbits.apply(model, context, asked)
    fit, select = divided(model, context.calibration) if mode == "static" else ([], [])
    graph = open_graph(model)
    original, graph = header(graph), _modern(graph, model.name)
    kind = kind_for(context.target) if weight_type == "auto" else weight_type
    if method == "nncf":
        _check_weights(graph, WEIGHTED, model.name)
        result = nncf(graph, fit, model.name)
    elif mode == "dynamic":
        graph = slim(graph, model.name, grow=True)
        _check_weights(graph, PRODUCTS, model.name)
        result = dynamic(graph, per_channel=per_channel, reduce_range=kind == "s7", name=model.name)
    else:
        graph = slim(graph, model.name, grow=True)
        _check_weights(graph, WEIGHTED, model.name)
        options = Options(per_channel, calibrator, signed, smooth, keep_cosine, kind)
        result = static(graph, fit, select, options, model.name)
    return save_graph(result, original, model, context.folder, _produces({"mode": mode}))


def _modern(graph: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The graph in an operator set that has per-channel quantization."""
    import onnx

    if all(entry.version >= _OPSET for entry in graph.opset_import if entry.domain in ("", "ai.onnx")):
        return graph
    try:
        return onnx.version_converter.convert_version(graph, _OPSET)
    except Exception as error:  # the converter throws whatever its C++ code throws
        raise ModelError(
            f"`{name}` cannot be converted to operator set {_OPSET}, which int8 needs: {error}",
            hint=f"export it again with `opset_version={_OPSET}` or later",
        ) from error


def _check_weights(graph: onnx.ModelProto, operators: Iterable[str], name: str) -> None:
    if not any(True for _ in weighted(graph, operators)):
        raise UsageError(
            f"`{name}` cannot be quantized: no {', '.join(sorted(operators))} in it has constant weights",
            hint="leave `quantize` out of the recipe",
        )
