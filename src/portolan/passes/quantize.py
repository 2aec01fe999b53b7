"""`quantize`: int8 arithmetic in place of float, by ONNX Runtime's own quantizer.

What is quantized follows measurements. Weights per channel always: as fast as per tensor, and much closer to the
original. Dynamic: products with constant weights, and embedding tables; a convolution becomes six times slower.
Static: everything in a convolutional network. In a transformer that destroys the outputs (MiniLM keeps a cosine of 0.37
with its own), so there only products with constant weights, convolutions and embedding tables, and of these not the
product behind the activation function of a feed-forward block, whose few huge values leave no steps for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from portolan.core.model import Model
from portolan.core.passes import Context, Need, Params, compression
from portolan.core.schema import Knob
from portolan.core.silence import runtime
from portolan.core.target import Target
from portolan.errors import ModelError, UsageError
from portolan.passes import _lowbits
from portolan.passes._calibration import Reader, usable
from portolan.passes._graphs import hushed, open_graph, save_graph
from portolan.passes._slimming import slim

if TYPE_CHECKING:
    import onnx

Mode = Literal["dynamic", "static", "weights", "float16", "bfloat16"]
Calibrator = Literal["minmax", "percentile", "entropy"]

_PRODUCTS = ("Gemm", "MatMul")
_WEIGHTED = ("Conv", "ConvTranspose", *_PRODUCTS)
#: Everything that a convolutional network can do in int8 without leaving it.
_CONVOLUTIONAL = (
    *_WEIGHTED, "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul",
    "Pad", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
#: The smooth activation functions of feed-forward blocks, and what stands between one and the product behind it.
_ACTIVATIONS = frozenset({"BiasGelu", "Erf", "FastGelu", "Gelu", "QuickGelu", "Sigmoid", "Swish", "Tanh"})
_BETWEEN = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Pow", "Reshape", "Sub"})
#: Any of these adds products of 8-bit numbers in 32 bits. Other x86 processors do it in 16 and overflow.
_WIDE_SUMS = ("amx_int8", "avx512_vnni", "avx_vnni")
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


def _refuse(model: Model, options: Params, target: Target) -> str | None:
    if options.get("mode") in _lowbits.MODES:
        return _lowbits.refuse(model, options)
    if options.get("bits", 8) != 8:
        return f"activations need 8 bits: `bits={options['bits']}` is for `mode=weights`"
    if reason := _lowbits.reduced(model):
        return reason
    if target.arch == "wasm32":
        return "int8 is 3 to 7 times slower than float in WebAssembly"
    if options.get("mode", "dynamic") == "dynamic":
        if not model.operators.keys() & set(_PRODUCTS):
            return "dynamic int8 helps MatMul and Gemm only, and the model has neither"
    elif not model.operators.keys() & set(_WEIGHTED):
        return "the model has no Conv, MatMul or Gemm to quantize"
    return None


@compression(
    needs=_needs, produces=_produces, lossy=lambda options: True, stage=lambda options: "precision",
    refuse=_refuse, distributions=("onnxruntime", "onnxslim", "onnx"),
)  # fmt: skip
def quantize(
    model: Model,
    context: Context,
    *,
    bits: Annotated[Literal[8, 4, 2], Knob(help="bits per weight; activations of int8 modes have 8")] = 8,
    mode: Annotated[
        Mode, Knob(help="int8 with ranges found at run time or from calibration data, or only the weights smaller")
    ] = "dynamic",
    per_channel: Annotated[bool, Knob(search=False, help="a scale per output channel of a weight")] = True,
    calibrator: Annotated[Calibrator, Knob(search=False, help="how static ranges are chosen")] = "minmax",
    method: Annotated[
        _lowbits.Asked, Knob(search=False, help="how weights are rounded: auto is rtn at 8 bits, gptq below")
    ] = "auto",
    group: Annotated[int, Knob(search=False, help="weights under one scale at 4 and 2 bits")] = 128,
    embeddings: Annotated[bool, Knob(search=False, help="tables that are looked up get fewer bits too")] = True,
) -> Model:
    """Quantizes weights and activations to int8, or weights alone to 8, 4 or 2 bits or 16-bit floats.

    Args:
        model: a float model.
        context: its folder gets the new file; static mode needs its calibration data, at least 8 samples.
        bits: per weight; 4 and 2 in the mode `weights` only.
        mode: `dynamic` finds each activation's range as it runs; `static` (QuantizeLinear and DequantizeLinear around
            the operators) takes the ranges that the calibration data show. `weights` leaves activations float:
            ONNX Runtime and OpenVINO keep the codes of products in memory and compute with them; those of convolutions
            are unpacked when they are used. `float16` and `bfloat16` halve the file; in memory they are float32 again.
        per_channel: one scale per output channel of a weight; without it one per weight.
        calibrator: `minmax`, or `percentile` (99.99) or `entropy`, which cut outliers off.
        method: of the mode `weights`. `rtn` rounds to the nearest on the grid with the least squared error, `hqq` lets
            outliers err (HQQ, 2023), `gptq` makes up for errors in later weights (arXiv 2210.17323) and needs
            calibration data, at least 8 samples; it is for MatMul and Gemm, the rest is rounded.
        group: of the mode `weights` at 4 and 2 bits: smaller is closer to the original and larger on disk. 8 bits have
            one scale per output channel.
        embeddings: of the mode `weights`: whether tables that Gather reads count.

    Raises:
        UsageError: nothing to quantize, quantized already, or calibration data that are missing or unusable.
        ModelError: the graph holds something that the quantizer cannot handle.
    """
    if mode in _lowbits.MODES:
        asked = {"bits": bits, "mode": mode, "method": method, "group": group, "embeddings": embeddings}
        return _lowbits.apply(model, context, asked)
    if reason := _refuse(model, {"bits": bits, "mode": mode}, context.target):
        raise UsageError(f"`{model.name}` cannot be quantized: {reason}", hint="leave `quantize` out of the recipe")
    feeds = usable(model, context.calibration) if mode == "static" else []
    original = open_graph(model)
    graph = slim(_modern(original, model.name), model.name, grow=True)
    reduced = context.target.arch == "x86_64" and not context.target.has(*_WIDE_SUMS)
    common = {"per_channel": per_channel, "reduce_range": reduced}
    if mode == "dynamic":
        _check_weights(graph, _PRODUCTS, model.name)
        result = _run(model, _dynamic, graph, common)
    else:
        _check_weights(graph, _WEIGHTED, model.name)
        result = _run(model, _static, graph, {**common, "feeds": feeds, "calibrator": calibrator})
    return save_graph(result, original, model, context.folder, _produces({"mode": mode}))


def _run(model: Model, function: Callable[..., onnx.ModelProto], graph: onnx.ModelProto, options: Any) -> Any:
    runtime("onnxruntime")
    try:
        with hushed():
            return function(graph, **options)
    except Exception as error:  # third-party code over any graph: whatever it raises is the reason
        raise ModelError(
            f"ONNX Runtime cannot quantize `{model.name}`: {type(error).__name__}: {error}",
            hint="leave `quantize` out of the recipe",
        ) from error


def _dynamic(graph: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    return _through_a_file(
        lambda path: quantize_dynamic(
            graph, path, op_types_to_quantize=[*_PRODUCTS, "Gather"], weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True}, **options,
        )
    )  # fmt: skip


def _static(
    graph: onnx.ModelProto, *, feeds: list[dict[str, Any]], calibrator: Calibrator, **options: Any
) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    method = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}[calibrator]
    transformer = attends(graph)
    return _through_a_file(
        lambda path: quantize_static(
            graph, path, Reader(feeds), quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            op_types_to_quantize=[*_WEIGHTED, "Gather"] if transformer else list(_CONVOLUTIONAL),
            nodes_to_exclude=after_activations(graph) if transformer else [],
            calibrate_method=CalibrationMethod[method],
            # One sample at a time: a histogram would hold every activation of all of them.
            extra_options={"MatMulConstBOnly": True, "CalibStridedMinMax": 1, "CalibPercentile": 99.99},
            **options,
        )
    )  # fmt: skip


def _through_a_file(quantizer: Callable[[str], None]) -> onnx.ModelProto:
    import tempfile
    from pathlib import Path

    import onnx

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "quantized.onnx"
        quantizer(str(path))
        proto: onnx.ModelProto = onnx.load(path)
    return proto


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


def weighted(graph: onnx.ModelProto, operators: Iterable[str] = _PRODUCTS) -> Iterator[onnx.NodeProto]:
    """The nodes of these kinds whose second input is a constant."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    wanted = set(operators)
    return (n for n in graph.graph.node if n.op_type in wanted and len(n.input) > 1 and n.input[1] in constants)


def attends(graph: onnx.ModelProto) -> bool:
    """Whether activations are multiplied with activations, which is what attention is."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    fused = {"Attention", "GroupQueryAttention", "MultiHeadAttention"}
    return any(n.op_type in fused or (n.op_type == "MatMul" and not constants & set(n.input)) for n in graph.graph.node)


def after_activations(graph: onnx.ModelProto) -> list[str]:
    """Names of the products with constant weights whose input comes out of a smooth activation function."""
    producers = {output: node for node in graph.graph.node for output in node.output}

    def behind(tensor: str, steps: int) -> bool:
        node = producers.get(tensor)
        if node is None or steps == 0:
            return False
        if node.op_type in _ACTIVATIONS:
            return True
        return node.op_type in _BETWEEN and any(behind(name, steps - 1) for name in node.input)

    return [node.name for node in weighted(graph) if behind(node.input[0], 8)]
