"""What a training pass learns from: labels, the original's outputs, and hidden states of equal name and shape.

The parts of the loss are those of knowledge distillation (Gou et al. 2021, arXiv:2006.05525): cross entropy with the
labels, the softened scores of the teacher (Hinton et al. 2015, with its factor T²), and mean squared error between
hidden states, each over the teacher's variance so that tensors of any size count alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portolan.core.data import Data, feeds
from portolan.core.model import Model
from portolan.core.silence import runtime
from portolan.errors import ModelError, UsageError
from portolan.importers.program import Program
from portolan.passes._graphs import open_graph
from portolan.passes._observe import explained, session

if TYPE_CHECKING:
    import numpy as np

#: Hidden states that are compared at most, and the bytes that all of the teacher's may take.
_MOST, _BYTES = 16, 2**29
_PRODUCTS = ("Conv", "Gemm", "MatMul")
#: Samples per run of the teacher.
_AT_ONCE = 32
_TINY = 1e-8


@dataclass(frozen=True)
class Weights:
    """How much each part of the loss counts, and the temperature of softened scores."""

    labels: float = 0.0
    outputs: float = 0.0
    hidden: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True, eq=False)
class Lessons:
    """What the student should say on each sample.

    Attributes:
        weights: of the parts.
        outputs: the teacher's float outputs [samples, ...], by name.
        hidden: the teacher's hidden states [samples, ...], by name.
        labels: int64 class numbers or float values; None without.
        graded: the name of the output that the labels are about.
        scores: the outputs that hold class scores.
        shares: those of them that hold probabilities, not logits.
    """

    weights: Weights
    outputs: dict[str, Any]
    hidden: dict[str, Any]
    labels: Any
    graded: str | None
    scores: frozenset[str]
    shares: frozenset[str]

    @property
    def names(self) -> tuple[str, ...]:
        """What the student has to compute."""
        return tuple(dict.fromkeys((*filter(None, [self.graded]), *self.outputs, *self.hidden)))


def per_sample(
    run: Callable[[dict[str, Any]], Mapping[str, Any]], data: Data, rows: Sequence[int], model: Model, join: Any
) -> dict[str, Any]:
    """Results of runs that cover `rows`, first axis the samples; those without such an axis are left out.

    Args:
        run: one run: inputs to named results.
        data: the samples.
        rows: which of them, in order.
        model: its signature says how many samples one run takes.
        join: concatenates a list of results along the first axis.
    """
    specs = model.signature.inputs
    whole = model.signature.batch is None or any(data.inputs[s.name].ndim == len(s.shape) + 1 for s in specs)
    parts: dict[str, list[Any]] = {}
    runs = 0
    for feed, count in feeds(data, rows, model.signature, len(rows)):
        size, runs = len(feed[specs[0].name]) if not whole else 0, runs + 1
        for name, value in run(feed).items():
            if whole:
                parts.setdefault(name, []).append(value[None])
            elif len(value.shape) and value.shape[0] == size:
                parts.setdefault(name, []).append(value[:count])
    return {name: join(values) for name, values in parts.items() if len(values) == runs}


def lessons(model: Model, teacher: Model, data: Data, weights: Weights, student: Program, threads: int) -> Lessons:
    """Asks the teacher about every sample.

    Raises:
        UsageError: labels that do not fit, or no output to compare.
        ModelError: the teacher's outputs are not numbers.
    """
    hidden = _shared(model, teacher, data, student, threads) if weights.hidden else ()
    answers = _answers(teacher, data, [*(s.name for s in teacher.signature.outputs), *hidden], threads)
    floats = {s.name: answers[s.name] for s in teacher.signature.outputs if _is_float(answers.get(s.name))}
    _check_finite(floats, teacher)
    labels, graded = (None, None) if data.labels is None else _graded(data.labels, floats)
    if graded is None and not floats:
        raise UsageError(
            f"`{teacher.name}` has no float output with an axis of samples, so there is nothing to learn from",
            hint="give labels, or leave the passes that train out of the recipe",
        )
    shares = frozenset(name for name, value in floats.items() if _sums_to_one(value))
    classes = {graded} if labels is not None and labels.dtype.kind == "i" else set()
    scores = shares | {name for name in floats if "logit" in name.lower() or name in classes}
    outputs = floats if weights.outputs else {}
    return Lessons(weights, outputs, {n: answers[n] for n in hidden}, labels, graded, scores, shares)


def loss(lessons: Lessons, said: Mapping[str, Any], rows: Any) -> Any:
    """The loss of what the student said about the samples `rows`, as a tensor of one number."""
    parts = [weight * value for weight, value in _parts(lessons, said, rows)]
    return sum(parts[1:], parts[0])


def wrong(lessons: Lessons, said: Mapping[str, Any], rows: Any) -> int:
    """How many class labels the student misses; 0 where the labels are no classes."""
    if lessons.labels is None or lessons.labels.dtype.kind != "i" or lessons.graded is None:
        return 0
    found = said[lessons.graded].argmax(-1).cpu().numpy()
    return int((found != lessons.labels[rows]).sum())


def _parts(lessons: Lessons, said: Mapping[str, Any], rows: Any) -> Iterator[tuple[float, Any]]:
    torch = runtime("torch")
    functional, weights = torch.nn.functional, lessons.weights
    if lessons.labels is not None and lessons.graded is not None and weights.labels:
        found, right = said[lessons.graded], torch.from_numpy(lessons.labels[rows])
        if lessons.labels.dtype.kind == "f":
            yield weights.labels, functional.mse_loss(found, right.to(found.dtype))
        else:
            found = _logits(lessons, lessons.graded, found)
            yield weights.labels, functional.cross_entropy(found.reshape(-1, found.shape[-1]), right.reshape(-1))
    for name, values in lessons.outputs.items():
        found, right = said[name], torch.from_numpy(values[rows])
        share = weights.outputs / len(lessons.outputs)
        if name in lessons.scores:
            yield share, _softened(lessons, name, found, right)
        else:
            yield share, _distance(found, right) + _angle(found, right)
    for name, values in lessons.hidden.items():
        yield weights.hidden / len(lessons.hidden), _distance(said[name], torch.from_numpy(values[rows]))


def _logits(lessons: Lessons, name: str, values: Any) -> Any:
    """Class scores as logits."""
    return values.clamp_min(_TINY).log() if name in lessons.shares else values


def _softened(lessons: Lessons, name: str, found: Any, right: Any) -> Any:
    functional, t = runtime("torch").nn.functional, lessons.weights.temperature
    student, teacher = (functional.log_softmax(_logits(lessons, name, v) / t, -1) for v in (found, right))
    classes = student.shape[-1]
    flat = student.reshape(-1, classes), teacher.reshape(-1, classes)
    return functional.kl_div(*flat, reduction="batchmean", log_target=True) * t * t


def _distance(found: Any, right: Any) -> Any:
    return ((found - right) ** 2).mean() / (right.var(correction=0) + _TINY)


def _angle(found: Any, right: Any) -> Any:
    if found.dim() < 2 or found.shape[-1] < 2:
        return 0.0
    return 1 - runtime("torch").nn.functional.cosine_similarity(found, right, dim=-1).mean()


# The teacher ----------------------------------------------------------------------------------------------------------


def _answers(teacher: Model, data: Data, names: Sequence[str], threads: int) -> dict[str, np.ndarray]:
    import numpy as np

    parts: dict[str, list[np.ndarray]] = {}
    with explained(teacher.name), session(open_graph(teacher), names, threads) as running:
        for start in range(0, data.rows, _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, data.rows))
            found = per_sample(
                lambda feed: dict(zip(names, running.run(list(names), feed), strict=True)), data, rows, teacher,
                np.concatenate,
            )  # fmt: skip
            for name, value in found.items():
                parts.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in parts.items()}


def _shared(model: Model, teacher: Model, data: Data, student: Program, threads: int) -> tuple[str, ...]:
    """Hidden states of equal name and shape: where the teacher's graph branches, else what its products give."""
    import torch

    from portolan.importers.torch_ import module

    proto = open_graph(teacher)
    ends = {*student.outputs, *(value.name for value in proto.graph.output)}
    own = {name for step in student.steps for name in step.outputs if name} - ends
    reads = Counter(name for node in proto.graph.node if node.op_type != "Shape" for name in set(node.input))
    made = {name: node.op_type for node in proto.graph.node for name in node.output}
    known = [name for name in made if name in own]
    branching = [name for name in known if reads[name] > 1]
    candidates = branching or [name for name in known if made[name] in _PRODUCTS]
    if not candidates:
        return ()
    first = Data({name: array[:1] for name, array in data.inputs.items()}, None, "")
    network = module(student, candidates)

    def run(feed: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            return dict(zip(candidates, network(*(torch.from_numpy(feed[n]) for n in student.inputs)), strict=True))

    mine = per_sample(run, first, [0], model, torch.cat)
    floats = {n: tuple(v.shape) for n, v in mine.items() if v.dtype is torch.float32 and v.dim() > 1}
    theirs = _answers(teacher, first, list(floats), threads) if floats else {}
    equal = [name for name, shape in floats.items() if name in theirs and theirs[name].shape == shape]
    return _spread(equal, {name: theirs[name].nbytes * data.rows for name in equal})


def _spread(names: Sequence[str], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """As many names as may be held, evenly over all of them."""
    largest = max(sizes.values(), default=1)
    count = min(len(names), _MOST, max(1, _BYTES // max(largest, 1)))
    return tuple(names[(i * len(names)) // count] for i in range(count)) if names else ()


# Checks ---------------------------------------------------------------------------------------------------------------


def _is_float(value: np.ndarray | None) -> bool:
    return value is not None and value.dtype.kind == "f" and value.dtype.itemsize >= 4


def _check_finite(floats: Mapping[str, np.ndarray], teacher: Model) -> None:
    import numpy as np

    for name, value in floats.items():
        if not np.isfinite(value).all():
            raise ModelError(
                f"the output `{name}` of `{teacher.name}` holds NaN or infinite values, which nothing can learn from",
                hint="remove the samples that cause them, or leave the passes that train out of the recipe",
            )


def _sums_to_one(value: np.ndarray) -> bool:
    return bool(value.ndim >= 2 and value.shape[-1] > 1 and value.min() >= 0 and abs(value.sum(-1) - 1).max() < 1e-3)


def _graded(labels: np.ndarray, floats: Mapping[str, np.ndarray]) -> tuple[np.ndarray, str]:
    """The labels as int64 classes or as floats, and the output that they are about."""
    import numpy as np

    if labels.dtype.kind not in "iubf":
        raise UsageError(f"labels of type {labels.dtype} cannot be trained on", hint="give class numbers or values")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise UsageError("the labels hold NaN or infinite values", hint="remove those samples from the data")
    if labels.dtype.kind == "f":
        for name, value in floats.items():
            if value.shape == labels.shape:
                return labels, name
    flat = labels.reshape(labels.shape[:1] + tuple(size for size in labels.shape[1:] if size != 1))
    if labels.dtype.kind != "f" or (labels == np.round(labels)).all():
        for name, value in floats.items():
            if value.ndim >= 2 and value.shape[-1] >= 2 and value.shape[:-1] == flat.shape:
                return _classes(flat.astype(np.int64), value.shape[-1]), name
    shapes = ", ".join(f"`{name}` {'x'.join(map(str, v.shape))}" for name, v in floats.items()) or "none"
    raise UsageError(
        f"no float output fits labels of shape {'x'.join(map(str, labels.shape))}: {shapes}",
        hint="labels are class numbers [samples], or values of an output's own shape",
    )


def _classes(labels: np.ndarray, count: int) -> np.ndarray:
    if labels.min() < 0 or labels.max() >= count:
        raise UsageError(
            f"labels run from {labels.min()} to {labels.max()}, the model has {count} classes",
            hint=f"labels count from 0 to {count - 1}",
        )
    return labels
