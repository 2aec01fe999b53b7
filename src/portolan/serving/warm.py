"""The first runs of a loaded model: warmed up at every size that will be asked for, timed, and checked for batching."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
_RUNS, _SECONDS = 5, 0.5
#: How far rows may differ in other company, as a share of the largest value: arithmetic in another order.
_CLOSE = 1e-3
_FREE = 8  # what a free axis other than the batch is taken as


@dataclass(frozen=True)
class Warm:
    """What the first runs told.

    Attributes:
        profile: seconds of a batch by rows, the slowest of a few; None where nothing was measured.
        batches: whether every output has one row for each row of the inputs, so that calls can share a batch.
        fixed: the rows that every run has to have, where the model allows no other number and its rows do not depend on
            each other, so that smaller batches can be padded; 0 where there is no such thing.
    """

    profile: dict[int, float]
    batches: bool
    fixed: int = 0


def warm_up(run: Run, asked: Mapping[str, Any]) -> Warm:
    """Runs at one row, at two, and on through the powers of two up to the cap.

    Args:
        run: the model.
        asked: `cap`, `inputs`, `samples`, and `measure`: whether the sizes are to be timed.
    """
    one = _feeds(asked)
    fixed = _fixed(asked)
    if fixed and _rowwise(run, one, fixed):
        seconds = _timed(run, one)
        return Warm({1: seconds, fixed: seconds}, True, fixed)
    free = all(spec["shape"] and isinstance(spec["shape"][0], str) for spec in asked["inputs"])
    if not asked["inputs"] or not free or asked["cap"] == 1:
        return Warm({1: _timed(run, one)}, False)
    profile: dict[int, float] = {}
    batches, spent, rows = True, 0.0, 1
    while True:
        feeds = one if rows == 1 else {name: np.concatenate([array] * rows) for name, array in one.items()}
        if rows <= 2:
            batches = batches and all(np.ndim(v) and len(v) == rows for v in run(feeds).values())
            if not batches:
                return Warm({1: _timed(run, one)}, False)
        begin = time.perf_counter()
        profile[rows] = _timed(run, feeds)
        spent += time.perf_counter() - begin
        if rows == asked["cap"] or (not asked["measure"] and spent > 2.0):
            break
        if spent > 20.0:  # the rest is extrapolated and corrected as batches come
            break
        rows = min(rows * 2, asked["cap"])
    return Warm(profile, batches)


def padded(array: np.ndarray, rows: int) -> np.ndarray:
    """The array with its last row again and again, until it has so many."""
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])


def _fixed(asked: Mapping[str, Any]) -> int:
    """The first extent of all inputs and outputs, if it is the same number and more than one; else 0."""
    firsts = {spec["shape"][0] if spec["shape"] else None for spec in [*asked["inputs"], *asked["outputs"]]}
    only = firsts.pop() if len(firsts) == 1 else None
    return only if isinstance(only, int) and only > 1 else 0


def _rowwise(run: Run, feeds: Mapping[str, np.ndarray], rows: int) -> bool:
    """Whether each row of the outputs depends on its row of the inputs alone, tried on inputs whose rows differ: the
    rows in another order give the same in that order, and the first one gives the same in other company.
    """
    if all((array[1:] == array[:-1]).all() for array in feeds.values()):
        return False
    usual = {name: np.array(value) for name, value in run(feeds).items()}
    if any(value.ndim == 0 or len(value) != rows for value in usual.values()):
        return False
    rolled = run({name: np.roll(array, 1, axis=0) for name, array in feeds.items()})
    if not all(_same(np.roll(value, 1, axis=0), np.asarray(rolled[name])) for name, value in usual.items()):
        return False
    alone = run({name: padded(array[:1], rows) for name, array in feeds.items()})
    return all(_same(value[:1], np.asarray(alone[name])[:1]) for name, value in usual.items())


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype.kind not in "fc":
        return bool((one == other).all())
    scale = float(np.max(np.abs(one), initial=0.0))
    return bool(np.allclose(one, other, rtol=_CLOSE, atol=_CLOSE * scale, equal_nan=True))


def _timed(run: Run, feeds: Mapping[str, np.ndarray]) -> float:
    """Seconds of the slowest of a few runs, the first left out."""
    run(feeds)
    worst, end = 0.0, time.perf_counter() + _SECONDS
    for _ in range(_RUNS):
        begin = time.perf_counter()
        run(feeds)
        now = time.perf_counter()
        worst = max(worst, now - begin)
        if now > end:
            break
    return worst


def _feeds(asked: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Inputs of one row: the first golden one, else ones, which no model is known to refuse."""
    if asked["samples"]:
        with np.load(asked["samples"], allow_pickle=False) as archive:
            return {spec["name"]: _first(spec, archive[spec["name"]]) for spec in asked["inputs"]}
    return {spec["name"]: _some(spec) for spec in asked["inputs"]}


def _first(spec: Mapping[str, Any], array: np.ndarray) -> np.ndarray:
    """One row of a call's input, where the batch is free."""
    part = array[:1] if spec["shape"] and isinstance(spec["shape"][0], str) else array
    return part.astype(object) if spec["dtype"] == "string" else part


def _some(spec: Mapping[str, Any]) -> np.ndarray:
    shape = tuple((1 if i == 0 else _FREE) if isinstance(d, str) else d for i, d in enumerate(spec["shape"]))
    if spec["dtype"] == "string":
        return np.full(shape, "a", object)
    return np.ones(shape, spec["dtype"])
