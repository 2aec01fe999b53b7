"""From trials to an answer: which meet the goals, which are on the Pareto front, which is best or closest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from portolan.core.goal import Goals
from portolan.core.measurement import METRICS, Metrics, load_of, unloaded
from portolan.measure.result import Race
from portolan.study.trial import Trial


def settle(trials: Sequence[Trial], goals: Goals) -> list[Trial]:
    """The trials with `met`, `pareto` and, where a limit is missed, the reason."""
    settled = []
    for trial in trials:
        if trial.status != "ok":
            settled.append(trial)
            continue
        unmet = goals.unmet(trial.metrics)
        settled.append(replace(trial, met=not unmet, reason=", ".join(unmet) or None))
    front = {t.recipe.key for t in _front([t for t in settled if t.status == "ok"], goals)}
    return [replace(t, pareto=t.status == "ok" and t.recipe.key in front) for t in settled]


def _front(trials: Sequence[Trial], goals: Goals) -> list[Trial]:
    """Trials that no other one beats in every metric that the goals name."""
    known = {t.recipe.key: _point(t.metrics, goals) for t in trials}
    points = {key: point for key, point in known.items() if all(map(math.isfinite, point))}

    def beaten(point: tuple[float, ...]) -> bool:
        return any(
            all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in points.values()
        )

    return [t for t in trials if t.recipe.key in points and not beaten(points[t.recipe.key])]


def _point(metrics: Metrics, goals: Goals) -> tuple[float, ...]:
    values = []
    for name in goals.metrics:
        value = metrics[name].value if name in metrics else math.nan
        values.append(value if METRICS[unloaded(name)].better == "lower" else -value)
    return tuple(values)


#: Stages whose numbers are claims.
FINAL = frozenset({"raced", "loaded"})
#: A ratio above this is not worth a change, however surely it is known.
_SAME = 0.98


def best_of(trials: Sequence[Trial], goals: Goals, baseline: Trial, race: Race | None) -> Trial | None:
    """The best trial that meets every limit; None when none does.

    Several objectives count equally, as ratios to the baseline. Among equals the faster wins. When only speed counts
    and the best one cannot be told from the untouched model, the untouched model is the answer. To choose takes less
    than to claim: on a noisy machine the best may be chosen, and still not be called faster.
    """
    raced = [t for t in trials if t.met and FINAL & set(t.stages)]
    met = raced or [t for t in trials if t.met]
    if not met:
        return None
    best = min(met, key=lambda t: (_score(t.metrics, goals, baseline.metrics), _latency(t)))
    if "loaded" in best.stages and _same_under_load(best, baseline, goals):
        return next((t for t in met if t.recipe.key == baseline.recipe.key), best)
    speed_only = all(o.metric.startswith("latency") for o in goals.objectives)
    if speed_only and race is not None and best.recipe.key != baseline.recipe.key:
        first = next((t for t in met if t.recipe.key == baseline.recipe.key), None)
        if first is not None and best.recipe.key in race.arms:
            return first if _alike(race, best, baseline) else best
    return best


def _same_under_load(best: Trial, baseline: Trial, goals: Goals) -> bool:
    """Whether only speed under load counts, and what `best` was measured to do overlaps with the untouched model."""
    names = [o.metric for o in goals.objectives]
    if not all(load_of(name) is not None or name in ("throughput", "cost") for name in names):
        return False
    return all(
        name in best.metrics and name in baseline.metrics and best.metrics[name].overlaps(baseline.metrics[name])
        for name in names
    )


def _alike(race: Race, best: Trial, baseline: Trial) -> bool:
    """Whether nothing speaks for `best`: its ratio's interval holds 1, and two equal arms differed by as much."""
    ratio, floor = race.ratio(best.recipe.key, baseline.recipe.key), race.noise.lo
    return ratio.lo > _SAME or (ratio.hi >= 1 and ratio.ratio >= min(_SAME if floor is None else floor, _SAME))


def closest_of(trials: Sequence[Trial], goals: Goals) -> Trial | None:
    """The trial that misses the limits by least."""
    valid = [t for t in trials if t.status == "ok"]
    return min(valid, key=lambda t: (goals.shortfall(t.metrics), _latency(t)), default=None)


def _score(metrics: Metrics, goals: Goals, baseline: Metrics) -> float:
    total = 0.0
    for objective in goals.objectives:
        mine, usual = objective.cost(metrics.get(objective.metric)), objective.cost(baseline.get(objective.metric))
        if not math.isfinite(mine):
            return math.inf
        if math.isfinite(usual) and mine * usual > 0:
            ratio = math.log(mine / usual) if mine > 0 else math.log(usual / mine)
        else:
            ratio = mine
        # Differences below a thousandth are not differences: sizes of one artefact, say, with other options.
        total += round(ratio, 3)
    return total


def _latency(trial: Trial) -> float:
    return trial.metrics["latency_p50"].value if "latency_p50" in trial.metrics else math.inf


def ratios(race: Race | None, baseline: Trial, numbers: Mapping[str, int]) -> list[dict[str, object]]:
    """Each raced trial against the baseline, named by trial number."""
    if race is None:
        return []
    found = []
    for key in race.arms:
        if key != baseline.recipe.key:
            ratio = race.ratio(key, baseline.recipe.key)
            found.append({**ratio.to_json(), "a": numbers.get(key), "b": baseline.id})
    return found
