"""The training loop that `finetune` and `distill` share: they differ in what is learned only.

The graph is trained as it stands: normalisation keeps its statistics, dropout stays off.
What comes out is the best that was seen on samples which no step was made on, and never less than what came in.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portolan.core.data import Data
from portolan.core.model import Model
from portolan.core.passes import Context, Params
from portolan.core.silence import runtime
from portolan.core.target import Target
from portolan.errors import UsageError
from portolan.importers.program import Program
from portolan.importers.reading import read, store, unsupported
from portolan.passes._graphs import open_graph, quantized, save_graph
from portolan.passes._teaching import Lessons, Weights, lessons, loss, per_sample, wrong

if TYPE_CHECKING:
    import numpy as np

#: Fewer distinct samples than this cannot be divided into some to train on and some to choose with.
FEWEST = 8
#: One in this many samples is for choosing.
_SHARE = 5
#: Nothing is left to recover below this loss.
_NOTHING = 1e-9
_STEEPEST = 1.0
#: How often a run looks at the samples for choosing, and after how many looks without a gain it ends.
_LOOKS, _PATIENCE = 20, 10
#: Steps after which a run first knows its speed.
_FIRST, _TICK = 3, 1e-9
#: Operators whose constant inputs are what training usually changes; a model without any has nothing to train.
_WEIGHTED = {
    "Add", "BatchNormalization", "Conv", "ConvTranspose", "Einsum", "GRU", "Gather", "Gemm", "GroupNormalization",
    "InstanceNormalization", "LSTM", "LayerNormalization", "MatMul", "Mul", "RMSNormalization",
    "com.microsoft.FusedMatMul", "com.microsoft.SkipLayerNormalization",
}  # fmt: skip

Score = tuple[float, float]


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train: what `finetune` and `distill` both take."""

    steps: int
    learning_rate: float
    batch: int
    seconds: float
    seed: int
    threads: int


def refuse(model: Model, options: Params, target: Target) -> str | None:
    """Why a pass that trains cannot help `model`."""
    del options, target
    if importlib.util.find_spec("torch") is None:
        return 'training needs the package `torch`, which is not installed: `pip install "portolan[torch]"`'
    reduced = [f for f in model.features if f.startswith(("weights:", "float16", "bfloat16"))]
    if quantized(model) or reduced:
        return "its weights are quantized or rounded, and training needs float32 ones: train first, then quantize"
    if lacking := unsupported(model.operators):
        return f"training does not know the operator `{lacking[0]}`"
    if not _WEIGHTED & model.operators.keys():
        return "the model has no operator with weights to train"
    return None


def recover(model: Model, context: Context, settings: Settings, weights: Weights, name: str) -> Model:
    """Trains a model's own weights and writes the best ones that were seen.

    Args:
        model: any float model that the importer reads.
        context: the samples, labels, the original, and a folder for the new file.
        settings: how long and how fast.
        weights: what counts how much.
        name: of the pass, for its words.

    Raises:
        UsageError: the model, the data or the settings do not allow it, or the loss was not a number.
        UnsupportedOperator: an operator that the importer lacks.
    """
    if reason := refuse(model, {}, context.target):
        raise UsageError(f"`{model.name}` cannot be trained: {reason}", hint=f"leave `{name}` out of the recipe")
    _check_settings(settings, name)
    data = _samples(model, context, name)
    if context.original is None and (weights.outputs or weights.hidden):
        raise UsageError(
            f"`{name}` needs the original model to learn from",
            hint="apply it in a recipe, or give its model as `original`",
        )
    original = open_graph(model)
    program = read(original, model.name)
    teacher = model if context.original is None else context.original
    with _settled(settings.threads or _threads(program, context.target), settings.seed) as threads:
        taught = lessons(model, teacher, data, weights, program, threads)
        trained = _Run(model, program, data, taught, settings).best()
    if trained is None:
        warnings.warn(
            f"`{name}` found no better weights for `{model.name}` on the samples it chose with: they stay as they were",
            stacklevel=3,
        )
    proto = type(original)()
    proto.CopyFrom(original)
    store(proto, trained or {})
    return save_graph(proto, original, model, context.folder)


class _Run:
    """One training run."""

    def __init__(self, model: Model, program: Program, data: Data, taught: Lessons, settings: Settings) -> None:
        import numpy as np

        from portolan.importers.torch_ import module

        self._torch = runtime("torch")
        self._model, self._program, self._data, self._taught, self._settings = model, program, data, taught, settings
        self._network = module(program, taught.names)
        self._weights = {k: w for k, w in self._network.named().items() if w.dtype is self._torch.float32}
        if not self._weights:
            raise UsageError(f"`{model.name}` has no float32 weights to train", hint="leave it out of the recipe")
        # Zeros of a matrix or a kernel are somebody's pattern: pruning's, or that of an unused row of a table.
        self._masks = {k: w != 0 for k, w in self._weights.items() if w.dim() > 1 and bool((w == 0).any())}
        self._train, self._select = divide(data)
        self._random = np.random.default_rng(settings.seed)

    def best(self) -> dict[str, np.ndarray] | None:
        """The best weights by the samples kept for choosing; None if those that came in are."""
        settings, best = self._settings, self._score()
        if best[1] < _NOTHING:
            return None
        found: dict[str, np.ndarray] | None = None
        optimizer = self._torch.optim.Adam(list(self._weights.values()), settings.learning_rate)
        begin, steps, stale = time.monotonic(), settings.steps, 0
        for step, rows in enumerate(self._batches(), 1):
            self._step(optimizer, rows, _pace(step, steps) * settings.learning_rate)
            if step <= _FIRST or step >= steps or step % max(1, steps // _LOOKS) == 0:
                # A run that its time would cut short is planned anew, so that it too ends in small steps.
                steps = min(steps, max(step, int(step * settings.seconds / (time.monotonic() - begin + _TICK))))
            if step < steps and step % max(1, steps // _LOOKS):
                continue
            score, stale = self._score(), stale + 1
            if score < best:
                best, found, stale = score, self._copy(), 0
            if step >= steps or stale >= _PATIENCE:
                break
        return found

    def _copy(self) -> dict[str, np.ndarray]:
        return {name: weight.detach().numpy().copy() for name, weight in self._weights.items()}

    def _batches(self) -> Iterator[np.ndarray]:
        import numpy as np

        while True:
            order = self._random.permutation(np.array(self._train))
            yield from (order[i : i + self._settings.batch] for i in range(0, len(order), self._settings.batch))

    def _said(self, rows: np.ndarray) -> dict[str, Any]:
        def run(feed: Mapping[str, Any]) -> dict[str, Any]:
            inputs = (self._torch.from_numpy(feed[name]) for name in self._program.inputs)
            return dict(zip(self._taught.names, self._network(*inputs), strict=True))

        return per_sample(run, self._data, rows.tolist(), self._model, self._torch.cat)

    def _step(self, optimizer: Any, rows: np.ndarray, rate: float) -> None:
        optimizer.zero_grad(set_to_none=True)
        value = loss(self._taught, self._said(rows), rows)
        if not math.isfinite(value.item()):
            raise self._diverged()
        value.backward()
        self._torch.nn.utils.clip_grad_norm_(list(self._weights.values()), _STEEPEST)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        with self._torch.no_grad():
            for name, mask in self._masks.items():
                self._weights[name].mul_(mask)

    def _score(self) -> Score:
        """Mistakes, then the loss, each per sample kept for choosing: the less the better."""
        import numpy as np

        errors, total = 0, 0.0
        with self._torch.no_grad():
            for start in range(0, len(self._select), self._settings.batch):
                rows = np.array(self._select[start : start + self._settings.batch])
                said = self._said(rows)
                errors += wrong(self._taught, said, rows)
                total += loss(self._taught, said, rows).item() * len(rows)
        if not math.isfinite(total):
            raise self._diverged()
        return errors / len(self._select), total / len(self._select)

    def _diverged(self) -> UsageError:
        return UsageError(
            f"training `{self._model.name}` stopped: the loss is not a number",
            hint=f"lower the learning rate: `learning_rate={self._settings.learning_rate / 10:g}`",
        )


def divide(data: Data) -> tuple[list[int], list[int]]:
    """Rows to train on, and about a fifth to choose with; equal samples are always together, whatever their order."""
    digests = _digests(data)
    ordered = sorted(set(digests))
    chosen = set(ordered[: max(1, len(ordered) // _SHARE)])
    rows = range(data.rows)
    return [r for r in rows if digests[r] not in chosen], [r for r in rows if digests[r] in chosen]


def _digests(data: Data) -> list[bytes]:
    found = []
    for row in range(data.rows):
        # Another hash than that which divides calibration from evaluation: of those, the lowest are all here.
        digest = hashlib.sha256(b"portolan.training")
        for name in sorted(data.inputs):
            digest.update(data.inputs[name][row].tobytes())
        found.append(digest.digest())
    return found


def _threads(program: Program, target: Target) -> int:
    """Small layers gain nothing from more threads, and beside other work they lose a hundredfold."""
    return min(target.cores, 1 + sum(program.constants[name].size for name in program.weights) // 2**22)


def _pace(step: int, total: int) -> float:
    """The learning rate's share in a step counted from 1: up over the first twentieth, then down along a cosine."""
    warm = max(1, total // 20)
    return min(1.0, step / warm) * 0.5 * (1 + math.cos(math.pi * (step - 1) / max(total, 1)))


@contextlib.contextmanager
def _settled(threads: int, seed: int) -> Iterator[int]:
    """PyTorch on so many threads and with repeatable algorithms; afterwards as it was."""
    torch = runtime("torch")
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    try:
        with torch.enable_grad():
            yield threads
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.set_rng_state(before[2])


# Checks ---------------------------------------------------------------------------------------------------------------


def _check_settings(settings: Settings, name: str) -> None:
    for key, least in (("steps", 1), ("batch", 1), ("threads", 0), ("seed", 0)):
        if getattr(settings, key) < least:
            raise UsageError(f"`{key}` of `{name}` cannot be below {least}", hint=f"for example `{key}={least}`")
    for key in ("learning_rate", "seconds"):
        if getattr(settings, key) <= 0:
            raise UsageError(f"`{key}` of `{name}` must be above 0", hint="leave it out for the default")


def _samples(model: Model, context: Context, name: str) -> Data:
    import numpy as np

    given = context.calibration
    if given is None:
        raise UsageError(f"`{name}` needs training data", hint="give samples with `--data`")
    missing = [spec.name for spec in model.signature.inputs if spec.name not in given]
    if missing:
        raise UsageError(f"the training data lack `{missing[0]}`", hint="name the arrays as the model's inputs")
    inputs = {spec.name: np.asarray(given[spec.name]) for spec in model.signature.inputs}
    data = Data(inputs, context.labels, "")
    if data.labels is not None and (data.labels.ndim == 0 or len(data.labels) != data.rows):
        count = 1 if data.labels.ndim == 0 else len(data.labels)
        raise UsageError(f"there are {count} labels for {data.rows} training samples", hint="give one for each sample")
    distinct = len(set(_digests(data)))
    if distinct < FEWEST:
        raise UsageError(
            f"`{name}` needs at least {FEWEST} different samples, got {distinct}", hint="give more with `--data`"
        )
    for key, array in inputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            row = next(r for r in range(data.rows) if not np.isfinite(array[r]).all())
            raise UsageError(
                f"the training data of `{key}` hold NaN or infinite values, first in sample {row}",
                hint="remove those samples from the data",
            )
    return data
