"""Dynamic int8, by ONNX Runtime's own quantizer: its operators find each activation's range as they run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from portolan.core.silence import runtime
from portolan.errors import ModelError
from portolan.passes._graphs import hushed
from portolan.passes._products import PRODUCTS

if TYPE_CHECKING:
    import onnx


def dynamic(graph: onnx.ModelProto, *, per_channel: bool, reduce_range: bool, name: str) -> onnx.ModelProto:
    """The graph with products of integers; `reduce_range` leaves weights seven bits.

    Raises:
        ModelError: the graph holds something that the quantizer cannot handle.
    """
    import onnx

    runtime("onnxruntime")
    try:
        with hushed(), tempfile.TemporaryDirectory() as scratch:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            path = Path(scratch) / "quantized.onnx"
            quantize_dynamic(
                graph, str(path), op_types_to_quantize=[*PRODUCTS, "Gather"], weight_type=QuantType.QInt8,
                per_channel=per_channel, reduce_range=reduce_range, extra_options={"MatMulConstBOnly": True},
            )  # fmt: skip
            proto: onnx.ModelProto = onnx.load(path)
            return proto
    except Exception as error:  # third-party code over any graph: whatever it raises is the reason
        raise ModelError(
            f"ONNX Runtime cannot quantize `{name}`: {type(error).__name__}: {error}",
            hint="leave `quantize` out of the recipe",
        ) from error
