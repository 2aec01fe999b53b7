"""Who beats whom: dominance of points and of intervals, fronts, and the volume that a front dominates.

All costs are minimised. A metric that was not measured costs infinity, so that it never ranks first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from portolan.core.goal import Goals, Objective
from portolan.core.measurement import Measurement, Metrics

Point = Sequence[float]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """Costs with their intervals: `lo[i] <= value[i] <= hi[i]` for objective i."""

    lo: tuple[float, ...]
    value: tuple[float, ...]
    hi: tuple[float, ...]


def dominates(a: Point, b: Point) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def surely_dominates(a: Box, b: Box) -> bool:
    """Whether `a` at its worst is nowhere worse than `b` at its best, and somewhere better: noise cannot undo it."""
    return dominates(a.hi, b.lo)


def front(points: Sequence[Point]) -> list[int]:
    """Places of the points that no other dominates. Equal points are all kept."""
    return [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]


def front_within(boxes: Sequence[Box]) -> list[int]:
    """Places of the boxes that no other surely dominates: whatever may still turn out to be on the front."""
    return [i for i, p in enumerate(boxes) if not any(surely_dominates(q, p) for q in boxes)]


def box(goals: Goals, metrics: Metrics, slack: float = 0.0) -> Box:
    """The costs of one trial under `goals`.

    Args:
        goals: the objectives to cost.
        metrics: what was measured.
        slack: half-width, relative, to assume where a measurement has no interval.
    """
    rows = [_interval(o, metrics.get(o.metric), slack) for o in goals.objectives]
    return Box(tuple(r[0] for r in rows), tuple(r[1] for r in rows), tuple(r[2] for r in rows))


def _interval(objective: Objective, m: Measurement | None, slack: float) -> tuple[float, float, float]:
    value = objective.cost(m)
    if m is None or not math.isfinite(value):
        return math.inf, math.inf, math.inf
    if m.lo is None or m.hi is None:
        return value - slack * abs(value), value, value + slack * abs(value)
    ends = (m.lo, m.hi) if objective.direction == "min" else (-m.hi, -m.lo)
    return min(ends[0], value), value, max(ends[1], value)


def hypervolume(points: Sequence[Point], ref: Point) -> float:
    """Volume between `ref` and what `points` dominate of the space below it.

    Slices along the last cost; meant for fronts of up to about 50 points in up to 4 dimensions.
    """
    inside = sorted((tuple(p) for p in points if all(x < r for x, r in zip(p, ref, strict=True))), key=lambda p: p[-1])
    if not inside:
        return 0.0
    if len(ref) == 1:
        return ref[0] - inside[0][0]
    tops = [p[-1] for p in inside[1:]] + [ref[-1]]
    volume = 0.0
    for i, (point, top) in enumerate(zip(inside, tops, strict=True)):
        if top > point[-1]:
            volume += (top - point[-1]) * hypervolume([p[:-1] for p in inside[: i + 1]], ref[:-1])
    return volume


def gains(points: Floats, known: Sequence[Point], ref: Point) -> Floats:
    """What each point alone would add to the hypervolume of `known`.

    Args:
        points: shape (n, objectives).
        known: the points measured so far.
        ref: the reference point.

    Returns:
        Shape (n,), never negative.
    """
    if len(ref) == 1:
        best = min([ref[0], *(p[0] for p in known)])
        gained: Floats = np.maximum(0.0, best - points[:, 0])
        return gained
    kept = [known[i] for i in front(known)]
    before = hypervolume(kept, ref)
    return np.array([max(0.0, hypervolume([*kept, tuple(p)], ref) - before) for p in points])
