"""`simplify`: the same arithmetic in fewer nodes.

Built on onnxslim. onnxscript's optimizer was tried beside it on 14 graphs (those of `benchmarks/models.py`, some also
exported without optimisation and with free sizes). Both are right there, once onnxslim's own shape inference is off:
it gave a free size the value of a static one. onnxscript's leaves an exported LSTM at 34 nodes (7 with onnxslim),
duplicate weights, and BatchNorm behind weights that the graph computes. ONNX Runtime was no faster for either, since
it simplifies as it loads: what the pass brings is size, and constants where other backends and passes look for them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

from portolan.core.graph import freeze_shapes
from portolan.core.model import Model
from portolan.core.passes import Context, Params, compression
from portolan.core.schema import Knob
from portolan.core.target import Target
from portolan.errors import UsageError
from portolan.passes._graphs import open_graph, quantized, save_graph
from portolan.passes._slimming import slim


def _refuse(model: Model, options: Params, target: Target) -> str | None:
    del options, target
    if quantized(model):
        return "the model is quantized, and folding its constants would undo that: simplify first, then quantize"
    return None


@compression(refuse=_refuse, folds=lambda options: True, distributions=("onnxslim", "onnx", "onnxruntime"))
def simplify(
    model: Model,
    context: Context,
    *,
    shapes: Annotated[str | None, Knob(search=False, help="sizes to fix, such as `image:1x3x224x224`")] = None,
) -> Model:
    """Folds constants, fixes free sizes where `shapes` gives them, and drops what no output needs.

    Trees behind a Scaler get the thresholds that its input is to be compared with.

    Args:
        model: any model that is not quantized.
        context: its folder gets the new file.
        shapes: a shape per input, separated by commas, as with `--shapes`; a name instead of a size stays free.

    Raises:
        UsageError: the model is quantized, or a shape does not fit.
        ModelError: the graph holds something that cannot be handled.
    """
    from portolan.passes._trees import without_scalers  # it needs NumPy

    if reason := _refuse(model, {}, context.target):
        raise UsageError(reason, hint="leave `simplify` out, or put it before `quantize`")
    with tempfile.TemporaryDirectory() as scratch:
        frozen = freeze_shapes(model, _parse(shapes), Path(scratch)) if shapes else model
        original = open_graph(frozen)
        slimmed = slim(original, model.name)
        without_scalers(slimmed)
        return save_graph(slimmed, original, frozen, context.folder)


def _parse(text: str) -> dict[str, tuple[int | str, ...]]:
    found: dict[str, tuple[int | str, ...]] = {}
    for item in text.split(","):
        name, colon, shape = item.strip().rpartition(":")
        if not colon or not name or not shape:
            raise UsageError(f"the shape `{item.strip()}` cannot be read", hint="write for example `image:1x3x224x224`")
        found[name] = tuple(int(size) if size.isdigit() else size for size in shape.split("x"))
    return found
