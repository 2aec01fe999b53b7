"""The first runs of a loaded model: warmed up at every size that will be asked for, timed, and checked for batching."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
_RUNS, _SECONDS = 5, 0.5
_FREE = 8  # what a free axis other than the batch is taken as


@dataclass(frozen=True)
class Warm:
    """What the first runs told.

    Attributes:
        profile: seconds of a batch by rows, the slowest of a few; None where nothing was measured.
        batches: whether every output has one row for each row of the inputs, so that calls can share a batch.
    """

    profile: dict[int, float]
    batches: bool


def warm_up(run: Run, asked: Mapping[str, Any]) -> Warm:
    """Runs at one row, at two, and on through the powers of two up to the cap.

    Args:
        run: the model.
        asked: `cap`, `inputs`, `samples`, and `measure`: whether the sizes are to be timed.
    """
    one = _feeds(asked)
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
