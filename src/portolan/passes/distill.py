"""`distill`: a compressed model taught by the original: by its outputs, its hidden states, and labels if there are any.

The recipe before it makes the student: `prune(kind=neurons) + distill + quantize`. What counts how much follows the
survey of Gou et al. (2021, arXiv:2006.05525).
"""

from __future__ import annotations

from typing import Annotated

from portolan.core.model import Model
from portolan.core.passes import Context, compression
from portolan.core.schema import Knob
from portolan.errors import UsageError
from portolan.passes._teaching import Weights
from portolan.passes._training import Settings, recover, refuse


@compression(
    needs=lambda options: "training", lossy=lambda options: True, stage=lambda options: "recovery",
    refuse=refuse, distributions=("torch", "onnxruntime", "onnx"),
)  # fmt: skip
def distill(
    model: Model,
    context: Context,
    *,
    alpha: Annotated[float, Knob(search=False, help="the labels' share of the loss")] = 0.3,
    temperature: Annotated[float, Knob(search=False, help="divides class scores before they are compared")] = 2.0,
    hidden: Annotated[float, Knob(search=False, help="weight of hidden states of equal name and shape")] = 1.0,
    steps: Annotated[int, Knob(search=False, help="updates of the weights, at most")] = 1000,
    learning_rate: Annotated[float, Knob(search=False, help="the largest step of Adam; falls along a cosine")] = 1e-3,
    batch: Annotated[int, Knob(search=False, help="samples per step")] = 32,
    seconds: Annotated[float, Knob(search=False, help="stop then with the best weights so far")] = 300.0,
    seed: Annotated[int, Knob(search=False, help="of the order of the samples")] = 0,
    threads: Annotated[int, Knob(search=False, help="threads to train on; 0 goes by the model's size")] = 0,
) -> Model:
    """Trains the weights to say what the original says, also inside, and what the labels say.

    Args:
        model: the student: a float model made from the original by earlier passes.
        context: samples to train on, of which a fifth only chooses; the original model; labels if there are any.
        alpha: 0 (the teacher alone) to 1 (the labels alone, and hidden states); without labels it is 0.
        temperature: of class scores (outputs called logits, those that labels are about, and probabilities).
        hidden: 0 leaves hidden states out.
        steps: it stops earlier where the samples for choosing show no gain any more.
        learning_rate: of Adam.
        batch: samples per step.
        seconds: a limit on the time. Where it allows fewer steps, results depend on the machine's speed.
        seed: equal seeds and thread counts give equal bytes on a CPU.
        threads: of PyTorch; by default one, and one more for every four million weights, up to the target's cores.

    Returns:
        The best weights that the samples for choosing saw; with a warning, the ones that came in if none were better.

    Raises:
        UsageError: the model has nothing to train, the data do not fit, or the loss is not a number.
        UnsupportedOperator: an operator that the importer lacks.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"`alpha` of `distill` cannot be {alpha:g}", hint="it runs from 0 to 1, such as `alpha=0.3`")
    if temperature <= 0 or hidden < 0:
        key, value = ("temperature", temperature) if temperature <= 0 else ("hidden", hidden)
        raise UsageError(f"`{key}` of `distill` cannot be {value:g}", hint="leave it out for the default")
    share = alpha if context.labels is not None else 0.0
    weights = Weights(labels=share, outputs=1 - share, hidden=hidden, temperature=temperature)
    settings = Settings(steps, learning_rate, batch, seconds, seed, threads)
    return recover(model, context, settings, weights, "distill")
