"""How close a candidate's outputs are to the original's, and how often they are right.

Closeness to the original (cosine, errors, agreement) needs no labels and is never called accuracy. Accuracy and its
drop need labels or a metric of the user; the drop is paired on the same samples. Outputs that are not numbers make a
value that is not a number, and no limit holds for such a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portolan.core.measurement import Measurement
from portolan.core.signature import TensorSpec
from portolan.errors import UsageError, VerificationFailed
from portolan.measure.stats import Floats, Interval, drop_interval, mean_interval, wilson

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Array]
Function = Callable[[Outputs, Array], float]

_DRAWS = 200


# Closeness to the original --------------------------------------------------------------------------------------------


def compare(
    outputs: Outputs, reference: Outputs, signature_outputs: Sequence[TensorSpec] | None = None
) -> dict[str, Measurement]:
    """How close `outputs` are to the original's.

    Args:
        outputs: name to array, first axis the samples.
        reference: the original's, for the same samples.
        signature_outputs: the model's outputs, in order; by default the reference's.

    Returns:
        `cosine` (mean over samples; of the worst float output), `max_abs_error` and `max_rel_error` (largest
        difference, and over the RMS of the original's output; of the worst output), and `agreement` (share of samples
        with the same largest entry along the last axis of the first output that looks like class scores), each where
        it has a meaning.

    Raises:
        VerificationFailed: an output is missing, or its shape differs.
    """
    names = list(reference) if signature_outputs is None else [spec.name for spec in signature_outputs]
    samples = _check(outputs, reference, names)
    pairs = [(np.asarray(outputs[name]), np.asarray(reference[name])) for name in names]
    found: dict[str, Measurement] = {}
    if cosines := [_cosines(got, want) for got, want in pairs if want.dtype.kind == "f"]:
        found["cosine"] = _mean("cosine", min(cosines, key=_mean_or_nan), -1.0, 1.0)
    errors = [_errors(got, want) for got, want in pairs]
    for column, metric in enumerate(("max_abs_error", "max_rel_error")):
        values = [error[column] for error in errors]
        worst = math.nan if any(map(math.isnan, values)) else max(values)
        found[metric] = Measurement.of(metric, worst, n=samples)
    if scores := next(((got, want) for got, want in pairs if _looks_like_scores(want)), None):
        got, want = scores
        same = (np.argmax(got, axis=-1) == np.argmax(want, axis=-1)) & ~np.isnan(got).any(axis=-1)
        found["agreement"] = _mean("agreement", _per_sample(same), 0.0, 1.0)
    return found


def _check(outputs: Outputs, reference: Outputs, names: Sequence[str]) -> int:
    if not names:
        raise VerificationFailed("there is no output to compare")
    for name in names:
        if name not in reference:
            raise VerificationFailed(f"the original has no output `{name}`")
        if name not in outputs:
            raise VerificationFailed(
                f"the output `{name}` is missing", hint="compare the model's signature before and after"
            )
        got, want = np.shape(outputs[name]), np.shape(reference[name])
        if got != want:
            raise VerificationFailed(f"output `{name}` has shape {_shape(got)}, the original's has {_shape(want)}")
        if not want or want[0] == 0:
            raise VerificationFailed(f"output `{name}` holds no sample")
    return int(np.shape(reference[names[0]])[0])


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"


def _mean_or_nan(values: Floats) -> float:
    mean = float(values.mean())
    return -math.inf if math.isnan(mean) else mean


def _aligned(got: Array, want: Array) -> tuple[Floats, Floats]:
    """Both as float64 [samples, values]; infinities that both have in the same place (masks) count as equal."""
    a = np.asarray(got, dtype=np.float64).reshape(len(got), -1)
    b = np.asarray(want, dtype=np.float64).reshape(len(want), -1)
    same = np.isinf(a) & (a == b)
    a, b = np.where(same, 0.0, a), np.where(same, 0.0, b)
    return a, b


def _cosines(got: Array, want: Array) -> Floats:
    """Cosine of each sample's flattened output; 1 where both are zero, 0 where one is, NaN where one is not finite."""
    a, b = _aligned(got, want)
    finite = np.asarray(np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1))
    a, b = _scaled(np.where(finite[:, None], a, 0.0)), _scaled(np.where(finite[:, None], b, 0.0))
    norms = np.sqrt((a * a).sum(axis=1)), np.sqrt((b * b).sum(axis=1))
    both = (norms[0] > 0) & (norms[1] > 0)
    product = np.where(both, norms[0] * norms[1], 1.0)
    cosine = np.where(both, (a * b).sum(axis=1) / product, (norms[0] == norms[1]).astype(np.float64))
    return np.where(finite, np.clip(cosine, -1.0, 1.0), np.nan)


def _scaled(rows: Floats) -> Floats:
    """Each row over its largest entry, so that neither huge nor tiny outputs leave the range of a float."""
    top = np.abs(rows).max(axis=1, initial=0.0, keepdims=True)
    return np.asarray(rows / np.where(top > 0, top, 1.0))


def _errors(got: Array, want: Array) -> tuple[float, float]:
    """Largest absolute difference, and that over the original's RMS. Text differs by 1 where it differs."""
    if want.dtype.kind not in "fiub" or got.dtype.kind not in "fiub":
        differ = float((got != want).any())
        return differ, differ
    a, b = _aligned(got, want)
    if np.isnan(a).any() or np.isnan(b).any():
        return math.nan, math.nan
    with np.errstate(over="ignore"):
        largest = float(np.abs(a - b).max(initial=0.0))
    if largest == 0 or math.isinf(largest):
        return largest, largest
    top = float(np.abs(b).max(initial=0.0))
    if top == 0:
        return largest, math.inf
    return largest, largest / top / math.sqrt(float(np.mean((b / top) ** 2)))


def _looks_like_scores(array: Array) -> bool:
    return array.dtype.kind == "f" and array.ndim in (2, 3) and array.shape[-1] >= 2


def _per_sample(hits: Array) -> Floats:
    """The share of hits of each sample."""
    flat: Floats = np.asarray(hits, dtype=np.float64).reshape(len(hits), -1)
    return np.asarray(flat.mean(axis=1))


def _mean(metric: str, values: Floats, low: float, high: float) -> Measurement:
    """The mean over samples, with Wilson's interval for yes-or-no values and Student's t (two samples) otherwise."""
    if metric != "cosine" and np.isin(values, (0.0, 1.0)).all():
        found = wilson(float(values.sum()), len(values))
    elif len(values) > 1:
        found = mean_interval(values, low, high)
    else:
        return Measurement.of(metric, float(values[0]), n=1)
    return Measurement.of(metric, found.value, found.lo, found.hi, len(values))


# Right and wrong ------------------------------------------------------------------------------------------------------


def accuracy(outputs: Outputs, labels: Array, metric: Function | None = None) -> Measurement:
    """Share of samples whose largest class score is their label, or the user's metric, with its interval.

    Args:
        outputs: name to array, first axis the samples.
        labels: whole numbers, one per sample (or per position); with a metric, whatever it takes.
        metric: `(outputs, labels) -> float`; by default classification by the first output that fits.

    Raises:
        UsageError: labels and outputs do not fit, or the metric failed.
    """
    labels = _labels(outputs, labels)
    if metric is None:
        return _mean("accuracy", _right(outputs, labels), 0.0, 1.0)
    value = metric(outputs, labels)
    draws = [metric(*_take(outputs, labels, rows)) for rows in _resamples(len(labels))]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Measurement.of("accuracy", value, min(value, float(low)), max(value, float(high)), len(labels))


def accuracy_drop(outputs: Outputs, reference: Outputs, labels: Array, metric: Function | None = None) -> Measurement:
    """The original's accuracy minus the candidate's on the same samples; each end is a one-sided 95 % bound.

    Too few samples give a wide bound, so that a limit is then not shown to hold: 299 samples without any change certify
    less than 1 %.

    Args:
        outputs: the candidate's, name to array, first axis the samples.
        reference: the original's, for the same samples.
        labels: as for `accuracy`.
        metric: as for `accuracy`.

    Raises:
        UsageError: labels and outputs do not fit, or the metric failed.
    """
    labels = _labels(outputs, labels)
    _labels(reference, labels)
    if metric is not None:
        found = _metric_drop(outputs, reference, labels, metric)
    else:
        new, old = _right(outputs, labels), _right(reference, labels)
        if np.isin(new, (0.0, 1.0)).all() and np.isin(old, (0.0, 1.0)).all():
            found = drop_interval(int((old > new).sum()), int((new > old).sum()), len(labels))
        else:
            found = _unchanged(mean_interval(old - new, -1.0, 1.0, conf=0.9), len(labels), 1.0)
    return Measurement.of("accuracy_drop", found.value, found.lo, found.hi, len(labels))


def _metric_drop(outputs: Outputs, reference: Outputs, labels: Array, metric: Function) -> Interval:
    before = metric(reference, labels)
    drop = before - metric(outputs, labels)
    draws = [
        metric(*_take(reference, labels, rows)) - metric(*_take(outputs, labels, rows))
        for rows in _resamples(len(labels))
    ]
    low, high = (float(q) for q in np.quantile(draws, [0.05, 0.95]))
    return _unchanged(Interval(drop, min(drop, low), max(drop, high)), len(labels), abs(before))


def _unchanged(found: Interval, n: int, whole: float) -> Interval:
    """Samples that show no change at all certify no more than the rule of three: 3/n of what there is to lose."""
    if found.hi > found.lo:
        return found
    rule = drop_interval(0, 0, n)
    return Interval(found.value, found.value + rule.lo * whole, found.value + rule.hi * whole)


def _resamples(n: int) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, n, n) for _ in range(_DRAWS)]


def _take(outputs: Outputs, labels: Array, rows: NDArray[np.int64]) -> tuple[dict[str, Array], Array]:
    return {name: array[rows] for name, array in outputs.items()}, labels[rows]


def _labels(outputs: Outputs, labels: Array) -> Array:
    labels = np.asarray(labels)
    if labels.ndim == 0 or len(labels) == 0:
        raise UsageError("there are no labels", hint="give `labels` with one entry for each sample")
    for name, array in outputs.items():
        if np.ndim(array) == 0 or len(array) != len(labels):
            rows = 0 if np.ndim(array) == 0 else len(array)
            raise UsageError(
                f"there are {len(labels)} labels for {rows} samples of `{name}`",
                hint="`labels` needs one entry for each sample",
            )
    return labels


def _right(outputs: Outputs, labels: Array) -> Floats:
    """Share of right answers of each sample, from the first output that holds class scores or class numbers."""
    if labels.dtype.kind == "f" and (labels == np.round(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iub":
        raise UsageError(
            f"labels of type {labels.dtype} are not class numbers",
            hint="give whole numbers, or `--metric file.py:function`",
        )
    labels = labels.reshape(labels.shape[:1] + tuple(size for size in labels.shape[1:] if size != 1))
    for output in outputs.values():
        array = np.asarray(output)
        if array.dtype.kind == "f" and array.ndim >= 2 and array.shape[-1] >= 2 and array.shape[:-1] == labels.shape:
            _in_range(labels, array.shape[-1])
            return _per_sample((np.argmax(array, axis=-1) == labels) & ~np.isnan(array).any(axis=-1))
        if array.dtype.kind in "iu" and array.size == labels.size:
            return _per_sample(array.reshape(labels.shape) == labels)
    shapes = ", ".join(f"`{name}` {_shape(np.shape(array))}" for name, array in outputs.items())
    raise UsageError(
        f"no output holds class scores for labels of shape {_shape(labels.shape)}: {shapes}",
        hint="say how answers are judged with `--metric file.py:function`",
    )


def _in_range(labels: Array, classes: int) -> None:
    if labels.min() < 0 or labels.max() >= classes:
        raise UsageError(
            f"labels run from {labels.min()} to {labels.max()}, the model has {classes} classes",
            hint=f"labels count from 0 to {classes - 1}",
        )
