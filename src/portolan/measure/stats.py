"""The statistics of timing and quality: intervals that hold with few starts, tail bounds, sample sizes.

Sources: Kalibera and Jones, "Rigorous benchmarking in reasonable time" (ISMM 2013) for repeating at every level where
variance arises; MLPerf Inference's early-stopping rule for tails; Wilson (1927) and Clopper-Pearson (1934) for shares.
Everything here is a pure function of its readings: the bootstrap's seed is fixed, so an interval can be recomputed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

START_SD = 0.03
"""Assumed log sd between process starts where there are too few starts to measure it (seen: 0.3 to 3 %)."""
FEW_STARTS = 4
"""Below this many starts their own spread is not trusted to be small."""
_THINNED = 2000
"""Readings the percentile bootstrap works on; more are aggregated, without changing the interval's meaning."""
_FEW_FLIPS = 10
"""Below this many changed answers the normal approximation of the drop's bound is too sure of itself."""


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval."""

    value: float
    lo: float
    hi: float


def _normal(tail: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(1 - tail))


def _student(tail: float, freedom: int) -> float:
    # scipy.stats takes most of a second to import; the quantile itself lives in scipy.special.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - tail))


def _half_width(starts: Floats, within: float, tail: float) -> float:
    """Half-width of the mean of one value per process start; `within` is the standard error inside a single start."""
    if len(starts) == 1:
        return _normal(tail) * math.hypot(START_SD, within)
    half = _student(tail, len(starts) - 1) * float(starts.std(ddof=1)) / math.sqrt(len(starts))
    # Two or three starts that agree do so by luck more often than Student's t allows for.
    return max(half, _normal(tail) * START_SD / math.sqrt(len(starts))) if len(starts) < FEW_STARTS else half


def ratio_interval(d: Floats, conf: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """The ratio behind log ratios of paired blocks: the wider of a hierarchical bootstrap and Student's t.

    Few process starts make the bootstrap too narrow and skewed blocks make Student's t too narrow, so neither is
    trusted alone. A single start says nothing about the next one: a spread of `START_SD` is assumed then.

    Args:
        d: log(median of a / median of b), shape [starts, blocks].
        conf: confidence, 0 to 1.
        draws: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        ValueError: `d` is not a table, is empty, or holds something that is not finite.
    """
    d = np.asarray(d, dtype=np.float64)
    if d.ndim != 2 or d.size == 0 or not np.isfinite(d).all():
        raise ValueError(f"need finite log ratios as [starts, blocks], got shape {d.shape}")
    (starts, blocks), tail = d.shape, (1 - conf) / 2
    rng = np.random.default_rng(seed)
    pick = d[rng.integers(0, starts, (draws, starts, 1)), rng.integers(0, blocks, (draws, starts, blocks))]
    low, high = np.quantile(np.median(pick.reshape(draws, -1), axis=1), [tail, 1 - tail])
    medians = np.median(d, axis=1)
    within = float(d.std(ddof=1)) / math.sqrt(blocks) if blocks > 1 else 0.0
    half, middle, centre = _half_width(medians, within, tail), float(medians.mean()), float(np.median(d))
    low, high = min(float(low), middle - half, centre), max(float(high), middle + half, centre)
    return Interval(math.exp(centre), math.exp(low), math.exp(high))


def p_value(d: Floats) -> float:
    """Two-sided p of "the ratio is 1" by Student's t on the medians of starts; 1 below two starts."""
    from scipy.special import stdtr

    medians = np.median(np.asarray(d, dtype=np.float64), axis=1)
    if len(medians) < 2:
        return 1.0
    error = float(medians.std(ddof=1)) / math.sqrt(len(medians))
    if error == 0:
        return 0.0 if medians.mean() else 1.0
    return float(2 * stdtr(len(medians) - 1, -abs(float(medians.mean())) / error))


def _weighted_quantiles(values: Floats, weights: NDArray[Any], ps: Sequence[float]) -> Floats:
    """Quantiles of sorted `values` [n] under each row of `weights` [draws, n]: shape [len(ps), draws]."""
    total = np.cumsum(weights, axis=1)
    out = np.empty((len(ps), len(weights)))
    for row, p in enumerate(ps):
        index = (total < p * total[:, -1:]).sum(axis=1)
        out[row] = values[np.minimum(index, len(values) - 1)]
    return out


def _interpolated(values: Floats, weights: Floats, ps: Sequence[float]) -> Floats:
    """Quantiles of sorted, weighted `values`; with equal weights, NumPy's linear interpolation."""
    before = np.cumsum(weights) - weights
    place = np.arange(len(values)) * weights + (len(values) - 1) * before
    return np.asarray(np.interp(np.asarray(ps) * place[-1], place, values))


def _flatten(starts: Sequence[Sequence[Floats]], most: int | None) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Sorted readings, the block each belongs to, and how many readings each stands for (`most` blocks' size kept)."""
    values, owners, stands = [], [], []
    for number, block in enumerate(block for start in starts for block in start):
        kept = np.sort(np.asarray(block, dtype=np.float64))
        if most is not None and len(kept) > most:
            stands.append(np.full(most, len(kept) / most))
            kept = np.quantile(kept, (np.arange(most) + 0.5) / most)
        else:
            stands.append(np.ones(len(kept)))
        values.append(kept)
        owners.append(np.full(len(kept), number))
    flat, owner, stand = np.concatenate(values), np.concatenate(owners), np.concatenate(stands)
    order = np.argsort(flat, kind="stable")
    return flat[order], owner[order], stand[order]


def _block_counts(shape: Sequence[int], draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """How often each block occurs, drawing starts and then blocks of each start drawn: [draws, blocks]."""
    picked = rng.multinomial(len(shape), np.full(len(shape), 1 / len(shape)), size=draws)
    columns = [rng.multinomial(picked[:, i] * blocks, np.full(blocks, 1 / blocks)) for i, blocks in enumerate(shape)]
    return np.concatenate(columns, axis=1)


def percentile_intervals(
    starts: Sequence[Sequence[Floats]], ps: Sequence[float], conf: float = 0.95, draws: int = 1000, seed: int = 0
) -> list[Interval]:
    """Percentiles of latencies from several process starts, with intervals that know about the starts.

    Every start counts the same, and so does every block of a start, however many readings fitted into it: otherwise a
    fast start would outvote a slow one. The interval is the wider of a hierarchical bootstrap (starts, then blocks,
    then readings by the Bayesian bootstrap) and Student's t on the starts' own percentiles.

    Args:
        starts: per start, per block, the readings (positive).
        ps: the percentiles, 0 to 1.
        conf: confidence, 0 to 1.
        draws: bootstrap draws.
        seed: of the bootstrap.
    """
    shape = [len(start) for start in starts]
    weight = np.concatenate([np.full(n, 1.0 / n) for n in shape])
    sizes = np.array([len(block) for start in starts for block in start])
    values, owner, _ = _flatten(starts, None)
    points = _interpolated(values, (weight / sizes)[owner], ps)
    lowest, highest = float(values.min()), float(values.max())

    rng = np.random.default_rng(seed)
    values, owner, stand = _flatten(starts, max(8, _THINNED // len(sizes)))
    counts = _block_counts(shape, draws, rng)
    mass = rng.standard_gamma(counts[:, owner] * stand) * (weight / sizes)[owner]
    drawn = _weighted_quantiles(values, mass, ps)
    tail = (1 - conf) / 2
    found = [
        _widest(float(point), drawn[row], _per_start(starts, p), tail)
        for row, (p, point) in enumerate(zip(ps, points, strict=True))
    ]
    # Student's t on two starts that differ says "anything"; no percentile is far outside of what was ever read.
    room = math.exp(_normal(tail) * START_SD)
    return [Interval(f.value, max(f.lo, lowest / room), min(f.hi, highest * room)) for f in found]


def _per_start(starts: Sequence[Sequence[Floats]], p: float) -> tuple[Floats, float]:
    """Log percentile of each start, and the standard error inside the first one."""
    logs = np.array([math.log(float(np.quantile(np.concatenate(start), p))) for start in starts])
    blocks = np.log([float(np.quantile(block, p)) for block in starts[0]])
    return logs, float(blocks.std(ddof=1)) / math.sqrt(len(blocks)) if len(blocks) > 1 else 0.0


def _widest(point: float, drawn: Floats, per_start: tuple[Floats, float], tail: float) -> Interval:
    logs, within = per_start
    low, high = np.quantile(drawn, [tail, 1 - tail])
    half, middle = _half_width(logs, within, tail), float(logs.mean())
    return Interval(
        point, min(float(low), math.exp(middle - half), point), max(float(high), math.exp(middle + half), point)
    )


def queries_needed(slow: int, p: float = 0.99, conf: float = 0.99) -> int:
    """The fewest queries that show, at `conf`, that the p-quantile meets its bound when `slow` of them were over it.

    MLPerf Inference's early-stopping rule: 459 queries without a slow one for p99, 4,603 for p99.9. It is itself a
    sequential test: the number of queries, or of looks, has to be fixed beforehand.
    """
    from scipy.special import bdtr

    low, high = slow, slow + 1
    while bdtr(slow, high, 1 - p) > 1 - conf:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if bdtr(slow, middle, 1 - p) <= 1 - conf else (middle, high)
    return high


def readings_needed(p: float) -> int:
    """The fewest readings from which a p-quantile is reported: 1 for the median, 20 for p95, 459 for p99."""
    if p >= 0.99:
        return queries_needed(0, p)
    return 1 if p <= 0.5 else math.ceil(1 / (1 - p) - 1e-9)


def queries_for_margin(p: float, conf: float = 0.99, margin: float | None = None) -> int:
    """Queries that pin the share below the p-quantile to ±`margin` (MLPerf: (1-p)/20), without early stopping."""
    width = (1 - p) / 20 if margin is None else margin
    return round(_normal((1 - conf) / 2) ** 2 * p * (1 - p) / width**2)


def percentile_bound(ms: Floats, p: float = 0.99, conf: float = 0.99) -> float | None:
    """Upper confidence bound of the p-quantile; None when there are too few readings to say (p99: below 459)."""
    from scipy.special import bdtr

    n = len(ms)
    if n == 0:
        return None
    spread = 10 * math.sqrt(n * p * (1 - p)) + 10
    ranks = np.arange(max(0, int(n * p - spread)), min(n, int(n * p + spread)) + 1)
    reached = np.asarray(bdtr(ranks.astype(np.float64), n, p)) >= conf
    rank = int(ranks[int(np.argmax(reached))]) if reached.any() else n
    return float(np.sort(np.asarray(ms))[rank]) if rank < n else None


def wilson(right: float, n: int, conf: float = 0.95) -> Interval:
    """A share `right / n` with Wilson's interval, which stays inside 0 to 1 and is honest at 0 and at n."""
    if n <= 0:
        raise ValueError("a share needs at least one sample")
    z, share = _normal((1 - conf) / 2), right / n
    middle, scale = (share + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n)
    half = scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))


def mean_interval(values: Floats, low: float, high: float, conf: float = 0.95) -> Interval:
    """A mean over samples with Student's t, kept inside `low` to `high`; without width below two samples."""
    mean = float(np.mean(values))
    half = 0.0
    if len(values) > 1:
        half = _student((1 - conf) / 2, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, min(mean, max(low, mean - half)), max(mean, min(high, mean + half)))


def _exact_upper(count: int, n: int, conf: float) -> float:
    """Clopper-Pearson upper bound of a share; 1 - (1-conf)^(1/n), about 3/n at 95 %, when the count is 0."""
    from scipy.special import betaincinv

    return 1.0 if count >= n else float(betaincinv(count + 1, n - count, conf))


def drop_interval(wrong: int, right: int, n: int, conf: float = 0.95) -> Interval:
    """The loss of accuracy between two models on the same `n` items, with a one-sided bound on either side.

    Args:
        wrong: items that the original answers right and the new model wrong.
        right: the other way round.
        n: items.
        conf: of each bound. Compare `hi` with the limit: below the needed n it stays above it ("not shown").
    """
    if n <= 0 or wrong < 0 or right < 0 or wrong + right > n:
        raise ValueError(f"{wrong} newly wrong and {right} newly right of {n} is not a paired comparison")
    drop = (wrong - right) / n
    half = _normal(1 - conf) * math.sqrt(max(0.0, wrong + right - (wrong - right) ** 2 / n)) / n
    low, high = drop - half, drop + half
    if wrong + right < _FEW_FLIPS:
        high = max(high, _exact_upper(wrong, n, conf) - right / n)
        low = min(low, wrong / n - _exact_upper(right, n, conf))
    return Interval(drop, max(-1.0, low), min(1.0, high))


def items_needed(limit: float, drop: float, flips: float, conf: float = 0.95, power: float = 0.8) -> int:
    """Items a paired test needs to show `accuracy_drop <= limit` with the given power.

    Args:
        limit: the limit, a share.
        drop: the true drop that is expected, below `limit`.
        flips: expected share of items whose answer changes, either way.
        conf: of the bound.
        power: probability of showing it.

    Raises:
        ValueError: the expected drop is not below the limit: no number of items can show it.
    """
    if drop >= limit:
        raise ValueError("the expected drop must be below the limit")
    needed = (_normal(1 - conf) + _normal(1 - power)) ** 2 * flips / (limit - drop) ** 2
    clean = math.log(1 - conf) / math.log1p(-limit) if limit < 1 else 1.0
    return max(math.ceil(needed), math.ceil(clean))
