"""From load tests to metrics: what was held, what was not and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from portolan.core.goal import Goals
from portolan.core.labels import label
from portolan.core.measurement import Measurement, Metrics, at_load, load_of, unloaded
from portolan.core.serving import Profile, Serving, largest_batch
from portolan.measure.load import QUANTILES, Loaded, percentiles
from portolan.search.candidate import Candidate
from portolan.search.serving import Choice
from portolan.serving.source import Limits, Source
from portolan.serving.trial import LoadResult
from portolan.study.builder import Compiled


def measured(tests: Sequence[LoadResult]) -> Metrics:
    """Latencies under each load, throughput of the Offline runs, memory of all replicas."""
    found: Metrics = {}
    servers = [run for test in tests for run in test.runs if run.scenario == "Server"]
    for rate in dict.fromkeys(run.asked for run in servers if run.asked is not None):
        same = [run for run in servers if run.asked == rate]
        found |= {at_load(name, rate): m for name, m in percentiles(same).items()}
    offline = [run.rate for test in tests for run in test.runs if run.scenario == "Offline" and not run.missing]
    if offline:
        found["throughput"] = Measurement.of(
            "throughput", float(np.median(offline)), min(offline), max(offline), len(offline)
        )
    peaks = [float(test.memory) for test in tests]
    lo, hi = (min(peaks), max(peaks)) if len(peaks) > 1 else (None, None)
    found["memory"] = Measurement.of("memory", float(np.median(peaks)), lo, hi, len(peaks))
    return found


def priced(metrics: Metrics, price: float | None) -> Metrics:
    """The metrics with what a million inferences cost at their throughput, where an hour of the target has a price."""
    found = metrics.get("throughput")
    if price is None or found is None or found.value <= 0:
        return metrics
    rates = (found.value, found.hi, found.lo)  # the fastest is the cheapest
    value, lo, hi = (None if rate is None or rate <= 0 else price / 3600 / rate * 1e6 for rate in rates)
    return {**metrics, "cost": Measurement(float(value or 0.0), "USD", lo, hi, found.n, found.kind)}


def unsustained(tests: Sequence[LoadResult], goals: Goals) -> str | None:
    """Why a load was not held: more calls without an answer than the goals' percentiles leave room for, or a crash."""
    if lost := sum(test.lost for test in tests):
        return f"crashed under load: {lost} replica{'s' if lost > 1 else ''} ended ({_reasons(tests)})"
    for rate in goals.loads:
        runs = [run for test in tests for run in test.runs if run.scenario == "Server" and run.asked == rate]
        room = min((1 - QUANTILES[unloaded(n)] for n in goals.metrics if load_of(n) == rate), default=0.0)
        missing = max((run.missing for run in runs), default=0.0)
        if missing >= room:
            answered = float(np.median([run.rate for run in runs]))
            return (
                f"cannot hold {rate:.10g} qps: {missing:.1%} of the calls got no answer ({_reasons(tests)}); "
                f"{answered:.3g} per second were answered"
            )
    offline = [run for test in tests for run in test.runs if run.scenario == "Offline" and run.missing]
    return f"failed under load: {_reasons(tests)}" if offline else None


def _reasons(tests: Sequence[LoadResult]) -> str:
    counts: dict[str, int] = {}
    for run in (run for test in tests for run in test.runs):
        for reason, count in run.failures.items():
            counts[reason] = counts.get(reason, 0) + count
    return max(counts, key=lambda reason: counts[reason]) if counts else "every call was answered"


def asked_of(goals: Goals, rate: float) -> tuple[float, float]:
    """What LoadGen's own verdict is to judge by at this load: seconds (0 for nothing) and the share of calls."""
    limits = [x for x in goals.limits if load_of(x.metric) == rate and x.op[0] == "<"]
    if not limits:
        return 0.0, 0.99
    strictest = max(limits, key=lambda x: QUANTILES[unloaded(x.metric)])
    return max(strictest.bound / 1e3, 1e-6), QUANTILES[unloaded(strictest.metric)]


def source_of(serving: Serving, profile: Profile, compiled: Compiled, name: str) -> Source:
    """What a server is given: the compiled model, served as chosen; what was not chosen is the server's default."""
    usual = Limits()
    limits = replace(
        usual,
        max_batch=largest_batch(serving.max_batch, profile, compiled.model.signature.batch),
        # The most replicas run from the start: a load test is over before scaling would have begun.
        replicas=((serving.replicas or usual.replicas)[1],) * 2,
        deadline=serving.deadline or usual.deadline,
    )
    return Source(
        name=name,
        folder=str(compiled.folder),
        signature=compiled.model.signature,
        platform=compiled.backend,
        python=None if compiled.python is None else tuple(compiled.python),
        limits=limits,
        profile=profile.seconds,
    )


def alone(candidate: Candidate) -> Candidate:
    """The same compiled model without a way to serve it."""
    return replace(candidate, recipe=replace(candidate.recipe, serving={}))


def family(candidate: Candidate) -> tuple[Any, ...]:
    """What candidates have in common that differ in their threads alone."""
    recipe = candidate.recipe
    rest = {name: value for name, value in recipe.options.items() if name != "threads"}
    return recipe.chain, recipe.backend, tuple(sorted((name, str(value)) for name, value in rest.items()))


def everywhere(metrics: Metrics) -> Metrics:
    """What holds of a compiled model whether or not it is served."""
    return {name: m for name, m in metrics.items() if name not in ("memory", "throughput")}


def words_of(choice: Choice) -> str:
    """What is served, and how."""
    words = label(choice.candidate.recipe)
    return f"{words['passes']} on {words['backend']}, {choice.serving}"


def shown_choice(choice: Choice, numbers: Mapping[str, int]) -> dict[str, Any]:
    """A prediction as the study keeps it, with the number of its trial if it was tried."""
    wanted = {n: m for n, m in choice.predicted.items() if m.kind == "predicted" and np.isfinite(m.value)}
    return {
        "trial": numbers.get(choice.candidate.key),
        "recipe": choice.candidate.recipe.to_json(),
        "predicted": {name: m.to_json() for name, m in wanted.items()},
    }


def shown_run(number: int, run: Loaded) -> dict[str, Any]:
    """One run as the study keeps it: counts, rates and a few quantiles in ms (null where calls were not answered)."""
    found = {f"{share:g}": run.quantile(share) * 1e3 for share in (*QUANTILES.values(), 0.999)}
    return {
        "trial": number,
        "scenario": run.scenario,
        "asked": run.asked,
        "calls": len(run.latencies),
        "answered": run.answered,
        "rate": run.rate,
        "seconds": run.seconds,
        "late": run.late * 1e3,
        "valid": run.valid,
        "why": list(run.why),
        "failures": dict(run.failures),
        "quantiles": {share: value if np.isfinite(value) else None for share, value in found.items()},
    }
