"""`fuse`: chains of operators and stacks of LSTM layers as kernels, where measuring shows that they are faster so.

Hand-tuned libraries stay where they win; generated code takes what they have no operator for. Each chain of element
functions, reductions and normalisations becomes a kernel of few passes over memory, compiled and checked as all kernels
are, and is raced against the same nodes in ONNX Runtime, which has fusions of its own. After: Jeon et al., Collage,
PACT 2022 (arXiv:2111.00655). LSTM layers that read each other become one kernel, see `portolan.kernels.recurrent`.
"""

from __future__ import annotations

from typing import Annotated

from portolan.core.extensions import FEATURE
from portolan.core.model import Model
from portolan.core.passes import Context, Params, compression
from portolan.core.schema import Knob
from portolan.core.target import Target
from portolan.errors import UsageError
from portolan.passes._graphs import quantized, save_graph
from portolan.passes._surgery import opened

_LEAST = 2


def _refuse(model: Model, options: Params, target: Target) -> str | None:
    del options
    if quantized(model):
        return "the model is quantized, and its chains are between codes: fuse the float model"
    from portolan.kernels.compiler import unready
    from portolan.kernels.fusion.elements import ALONG, DEAR

    gained = sum(model.operators.get(name, 0) for name in (*ALONG, *DEAR))
    if gained < _LEAST and not model.operators.get("LSTM"):
        return "it has no LSTM, and no two of the operators that kernels gain by: normalisations, exponentials and such"
    return unready(target)


@compression(
    produces=lambda options: (FEATURE,), refuse=_refuse, stage=lambda options: "kernels",
    folds=lambda options: True,
    distributions=("onnx", "onnxruntime", "onnxslim", "numpy"),
)  # fmt: skip
def fuse(
    model: Model,
    context: Context,
    *,
    gain: Annotated[float, Knob(search=False, help="how many times as fast a kernel has to be than its nodes")] = 1.1,
    most: Annotated[int, Knob(search=False, help="different chains and stacks that are tried")] = 8,
) -> Model:
    """Replaces chains of operators, and LSTM layers, by kernels where these are faster.

    Each becomes an operator of its own, whose body are the nodes it replaces: what has no library for it runs those.

    Args:
        model: a model that is not quantized.
        context: its folder gets the new file; kernels are compiled for its target, which is this machine.
        gain: the least ratio of times, chain by chain, at which one is replaced.
        most: how many different chains and stacks are compiled and raced, those that move most memory first.

    Raises:
        UsageError: no chain is found, or none is faster as a kernel.
        ModelError: the graph holds something that cannot be handled.
        NoBackend: there is no C compiler.
    """
    from portolan.kernels.fusion import race

    if reason := _refuse(model, {}, context.target):
        raise UsageError(f"`{model.name}` cannot be fused: {reason}", hint="leave `fuse` out of the recipe")
    original, graph = opened(model)
    pieces = race.found(graph)
    if not pieces:
        raise UsageError(f"`{model.name}` has no chain of operators to fuse", hint="leave `fuse` out of the recipe")
    if not race.put_in(graph, pieces, context.target, gain, most):
        raise UsageError(
            f"none of the {len(pieces)} chains of `{model.name}` is {gain:g} times as fast as a kernel",
            hint="leave `fuse` out of the recipe",
        )
    return save_graph(graph, original, model, context.folder, (FEATURE,))
