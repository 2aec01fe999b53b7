"""`winograd`: convolutions of 3 by 3 with fewer products, where measuring shows that they are faster so.

Tiles of 4 by 4 results take a quarter of the products, for weights that are four times as large; tiles of 2 by 2 take
four ninths, for 16 numbers in place of 9. After: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks,
CVPR 2016 (arXiv:1509.09308).
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from portolan.backends._blocked import FEATURE
from portolan.core import protos
from portolan.core.model import Model
from portolan.core.passes import Context, Params, compression
from portolan.core.schema import Knob
from portolan.core.target import Target
from portolan.errors import UsageError
from portolan.passes._graphs import quantized, save_graph
from portolan.passes._surgery import opened

_OUT = "leave `winograd` out of the recipe"
#: Weights may become four times as large, and what is raced is in one piece, of which protobuf takes 2 GiB.
_MOST_BYTES = 1 << 29


def _refuse(model: Model, options: Params, target: Target) -> str | None:
    del options
    if not model.operators.get("Conv"):
        return "it has no convolution"
    if quantized(model):
        return "the model is quantized, and its convolutions are between codes: winograd takes floats"
    if FEATURE in model.features:
        return "its convolutions were measured already"
    from portolan.kernels.compiler import unready

    if why := unready(target):
        return why
    blocked = target.arch == "x86_64"
    return None if blocked else f"its kernels are for the form that ONNX Runtime has on x86_64, not on {target.arch}"


@compression(
    produces=lambda options: (FEATURE,), refuse=_refuse, stage=lambda options: "layers", folds=lambda options: True,
    distributions=("onnx", "onnxruntime", "onnxslim", "numpy"),
)  # fmt: skip
def winograd(
    model: Model,
    context: Context,
    *,
    gain: Annotated[float, Knob(search=False, help="how many times as fast a layer has to be")] = 1.1,
    most: Annotated[int, Knob(search=False, help="different forms of layers that are tried")] = 16,
) -> Model:
    """Computes convolutions of 3 by 3 with fewer products where that is faster.

    The graph stays as it is: which layers gain, and by what tiles, is noted in its metadata, and ONNX Runtime gets
    kernels in their place as it loads the model. Results differ by rounding; where an input is infinite, all of
    its tile is not a number.

    Args:
        model: a model that is not quantized.
        context: its folder gets the new file; kernels are compiled for its target, which is this machine.
        gain: the least ratio of times, form by form, at which layers are computed so.
        most: how many forms (channels and sizes) are raced, those with the most products first.

    Raises:
        UsageError: no layer is of 3 by 3 with steps of one, or none is faster so.
        ModelError: the graph holds something that cannot be handled.
        NoBackend: there is no C compiler.
    """
    from portolan.kernels.winograd import race

    if reason := _refuse(model, {}, context.target):
        raise UsageError(f"`{model.name}` gains nothing by `winograd`: {reason}", hint=_OUT)
    original, graph = opened(model)
    if protos.weight_bytes(graph) > _MOST_BYTES:
        raise UsageError(f"the weights of `{model.name}` are too many for `winograd`", hint=_OUT)
    with TemporaryDirectory(dir=context.folder, prefix=".winograd-") as scratch:
        path = save_graph(graph, original, model, Path(scratch)).path
        noted = race.best(path, model.signature, context.target, gain, most)
    if not noted.layers:
        raise UsageError(f"no convolution of `{model.name}` is {gain:g} times as fast with fewer products", hint=_OUT)
    noted.write(original)
    return save_graph(graph, original, model, context.folder, (FEATURE,))
