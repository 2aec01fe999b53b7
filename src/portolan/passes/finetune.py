"""`finetune`: a compressed model's own weights trained on, so that they make up for what compression took.

Zeros of matrices and kernels stay where they are, so a pruned model stays as sparse as it was. The digits network with
90 % zeros came back from 11 to 99 % of accuracy this way (`benchmarks/compression/recover.py`).
"""

from __future__ import annotations

from typing import Annotated

from portolan.core.model import Model
from portolan.core.passes import Context, compression
from portolan.core.schema import Knob
from portolan.passes._teaching import Weights
from portolan.passes._training import Settings, recover, refuse


@compression(
    needs=lambda options: "training", lossy=lambda options: True, stage=lambda options: "recovery",
    refuse=refuse, distributions=("torch", "onnxruntime", "onnx"),
)  # fmt: skip
def finetune(
    model: Model,
    context: Context,
    *,
    steps: Annotated[int, Knob(search=False, help="updates of the weights, at most")] = 1000,
    learning_rate: Annotated[float, Knob(search=False, help="the largest step of Adam; falls along a cosine")] = 1e-3,
    batch: Annotated[int, Knob(search=False, help="samples per step")] = 32,
    seconds: Annotated[float, Knob(search=False, help="stop then with the best weights so far")] = 300.0,
    seed: Annotated[int, Knob(search=False, help="of the order of the samples")] = 0,
    threads: Annotated[int, Knob(search=False, help="threads to train on; 0 goes by the model's size")] = 0,
) -> Model:
    """Trains the weights on the data's labels, or without them on the original's outputs.

    Args:
        model: a float model; what earlier passes removed stays removed.
        context: samples to train on, of which a fifth only chooses; labels (class numbers for class scores, or values
            of an output's own shape) or the original model.
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
    weights = Weights(labels=1.0) if context.labels is not None else Weights(outputs=1.0)
    settings = Settings(steps, learning_rate, batch, seconds, seed, threads)
    return recover(model, context, settings, weights, "finetune")
