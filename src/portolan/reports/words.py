"""What a report says in sentences: the verdict, each goal's judgement, what changed, how noisy it was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from portolan import units
from portolan.core.goal import Limit, Objective
from portolan.core.measurement import MARKS, METRICS, SAME, Measurement, mark, said, unloaded
from portolan.reports.reading import Noise, Reading, Trial, Untried

State = Literal["met", "missed", "not shown", "not measured", "ranked"]
#: (better, worse) by the first word of a metric's name.
_COMPARED = {
    "latency": ("faster", "slower"),
    "cold": ("faster", "slower"),
    "compile": ("faster", "slower"),
    "throughput": ("higher", "lower"),
    "size": ("smaller", "larger"),
}
_TIMED = ("latency", "throughput", "cold", "compile")
_LATENCIES = ("latency_p50", "latency_p95", "latency_p99")


@dataclass(frozen=True)
class Change:
    """How a metric moved, in words."""

    text: str
    direction: Literal["better", "worse", "same", "unknown"]


NOISY = Change("too noisy to claim", "same")


@dataclass(frozen=True)
class Judgement:
    """One goal, judged on one trial."""

    text: str
    state: State
    value: str
    why: str


@dataclass(frozen=True)
class Verdict:
    """The first sentence of a report, and the notes that qualify it. Names are in backticks."""

    state: Literal["met", "missed", "empty"]
    headline: str
    notes: tuple[str, ...]


def title(metric: str) -> str:
    """A metric's name as people read it."""
    return said(metric).replace("_", " ")


def _times(ratio: float, lo: float | None, hi: float | None) -> str:
    if lo is None or hi is None or not hi > lo:
        return f"{units.digits(ratio, ratio / 50)}x"
    half = (hi - lo) / 2
    return f"{units.digits(ratio, half)}x ({units.digits(lo, half)} to {units.digits(hi, half)})"


def _words(metric: str) -> tuple[str, str]:
    return _COMPARED.get(metric.split("_")[0], ("less", "more"))


def _names(trial: Trial, role: str) -> set[str]:
    return {str(trial.id), f"#{trial.id}", role}


def moved(reading: Reading, metric: str) -> Change:
    """How `metric` moved from the baseline to the shown trial: as raced, from separate runs, or unclaimed."""
    shown, baseline = reading.shown, reading.baseline
    if shown is None or baseline is None or shown.id == baseline.id:
        return Change("", "unknown")
    before, after = baseline.metrics.get(metric), shown.metrics.get(metric)
    if before is None or after is None:
        return Change("", "unknown")
    if _timed(metric) and reading.noise is not None and not reading.noise.ok:
        return NOISY
    return raced(reading, metric) or change(metric, before, after)


def _timed(metric: str) -> bool:
    return metric.split("_")[0] in _TIMED


def raced(reading: Reading, metric: str) -> Change | None:
    """What the interleaved race said about the shown trial against the baseline; None if they did not race.

    A race in the other direction counts, turned round.
    """
    shown, baseline = reading.shown, reading.baseline
    if shown is None or baseline is None:
        return None
    role = "best" if reading.best is not None else "closest"
    ours, theirs = _names(shown, role), _names(baseline, "baseline")
    for r in reading.ratios:
        if r.metric != metric or not min(r.ratio, r.lo, r.hi) > 0:
            continue
        if r.a in ours and r.b in theirs:
            return _race_change(1 / r.ratio, 1 / r.hi, 1 / r.lo, r.verdict == SAME)
        if r.b in ours and r.a in theirs:
            return _race_change(r.ratio, r.lo, r.hi, r.verdict == SAME)
    return None


def _race_change(speedup: float, lo: float, hi: float, same: bool) -> Change:
    if same or lo <= 1 <= hi:
        return Change(f"{SAME} ({_times(speedup, lo, hi)})", "same")
    if speedup > 1:
        return Change(f"{_times(speedup, lo, hi)} faster", "better")
    return Change(f"{_times(1 / speedup, 1 / hi, 1 / lo)} slower", "worse")


def change(metric: str, before: Measurement | None, after: Measurement | None) -> Change:
    """How `metric` moved, from two separate measurements: a ratio for costs, a difference for quality."""
    if before is None or after is None or not (math.isfinite(before.value) and math.isfinite(after.value)):
        return Change("", "unknown")
    known = METRICS.get(unloaded(metric))
    better = known.better if known else "lower"
    if known and known.quality:
        return _difference(before, after, better)
    if not (before.value > 0 and after.value > 0):
        return Change("", "unknown")
    gain = before.value / after.value if better == "lower" else after.value / before.value
    if abs(gain - 1) < 0.005 and before.lo is None and after.lo is None:
        return Change("the same", "same")
    if before.overlaps(after):
        return Change(SAME, "same")
    good, bad = _words(metric)
    # Times that were not raced against each other carry the drift of the machine: their ratio is an estimate.
    sign = mark(before, after) or (MARKS["estimated"] if _timed(metric) else "")
    if abs(gain - 1) < 0.005:
        return Change("the same", "same")
    if gain > 1:
        return Change(f"{sign}{_times(gain, None, None)} {good}", "better")
    return Change(f"{sign}{_times(1 / gain, None, None)} {bad}", "worse")


def _difference(before: Measurement, after: Measurement, better: str) -> Change:
    step = after.value - before.value
    if step == 0:
        return Change("the same", "same")
    if before.overlaps(after):
        return Change(SAME, "same")
    scaled, unit = (step * 100, " points") if after.unit == "share" else (step, "")
    rising_is_good = better == "higher"
    text = f"{mark(before, after)}{'+' if step > 0 else '−'}{units.digits(abs(scaled), None)}{unit}"
    return Change(text, "better" if (step > 0) == rising_is_good else "worse")


def speed(reading: Reading) -> Change:
    """The change in latency to name in the verdict: a raced percentile if there is one, else an estimate (`~`)."""
    changes = [found for metric in _LATENCIES if (found := moved(reading, metric)).direction != "unknown"]
    return next(
        (c for c in changes if not c.text.startswith(("~", "≈"))), changes[0] if changes else Change("", "unknown")
    )


def claims(reading: Reading) -> str:
    """What the shown trial gained over the baseline, as the end of a sentence; empty when there is nothing to say."""
    shown, baseline = reading.shown, reading.baseline
    if shown is None or baseline is None or shown.id == baseline.id:
        return ""
    fast, small = speed(reading), moved(reading, "size")
    size = small.text if small.direction in ("better", "worse") else ""
    if fast.direction == "same" and fast is not NOISY:
        return f", {size} than the baseline, with {fast.text} in latency" if size else f", with {fast.text} in latency"
    gains = " and ".join(c for c in (fast.text if fast.direction in ("better", "worse") else "", size) if c)
    return f" is {gains} than the baseline" if gains else ""


def verdict(reading: Reading) -> Verdict:
    """The sentence a reader takes away."""
    return Verdict(_state(reading), _headline(reading), _notes(reading))


def _state(reading: Reading) -> Literal["met", "missed", "empty"]:
    return "met" if reading.met else "empty" if reading.shown is None else "missed"


def _headline(reading: Reading) -> str:
    shown, baseline = reading.shown, reading.baseline
    if shown is None:
        return f"No valid result: none of {len(reading.trials):,} trials could be measured."
    if not reading.met:
        return (
            f"Goals not met. Closest: {shown.title}: {', '.join(_misses(reading, shown)) or 'not every limit holds'}."
        )
    if baseline is not None and shown.id == baseline.id:
        return f"Goals met by the baseline, {shown.title}: no other trial that meets them is better."
    return f"Goals met: {shown.title}{claims(reading)}."


def _misses(reading: Reading, trial: Trial) -> list[str]:
    """Why each limit is missed; with the number when there is only one to say."""
    misses = [(limit, why) for limit in reading.limits if (why := limit.reason(trial.metrics.get(limit.metric)))]
    if len(misses) == 1:
        limit, why = misses[0]
        got = trial.metrics.get(limit.metric)
        value = "" if got is None else f" ({title(limit.metric)} {got.short}, limit `{limit.text}`)"
        return [f"{title(why)}{value}"]
    return [title(why) for _, why in misses]


def _notes(reading: Reading) -> tuple[str, ...]:
    notes = []
    if reading.claims_met and not reading.met and reading.best is not None:
        notes.append("The study says that its goals are met, but its own numbers do not show it.")
    count = f" {reading.evaluation:,}" if reading.evaluation is not None else ""
    if reading.labels:
        notes.append(f"Quality is accuracy on{count} held-out labelled samples, never used for calibration.")
    else:
        notes.append(
            f"Quality is agreement with the original model on{count} samples. No labels were given, so it does not say "
            "how often the answers are right."
        )
    if reading.synthetic:
        notes.append("The inputs are synthetic: generated from the model's signature, not taken from real use.")
    if reading.noise is None:
        notes.append("No A/A arm was run, so the noise floor of this machine is not known.")
    elif not reading.noise.ok:
        notes.append(f"The run was noisy, so no speed is claimed. {noise_sentence(reading.noise)}")
    return (*notes, *_not_tried(reading.untried))


def _not_tried(recipes: Sequence[Untried]) -> Iterator[str]:
    """A note for each way in which the budget ended too early."""
    for reason in dict.fromkeys(one.reason for one in recipes):
        titles = ", ".join(one.title for one in recipes if one.reason == reason)
        yield f"Not tried, {reason}: {titles}. A larger `--budget` has time for more."


def judge(reading: Reading, trial: Trial) -> list[Judgement]:
    """Each goal, judged on `trial`."""
    return [
        _judge_limit(goal, trial.metrics.get(goal.metric))
        if isinstance(goal, Limit)
        else _judge_objective(goal, trial, reading)
        for goal in reading.goals
    ]


def _judge_limit(limit: Limit, got: Measurement | None) -> Judgement:
    if got is None:
        return Judgement(limit.text, "not measured", "", "a metric that was not measured never meets a limit")
    if math.isnan(got.value):
        return Judgement(limit.text, "missed", str(got), "the measured value is not a number")
    ends = got.interval
    whole = f"the whole interval, {ends}, is" if ends else "the value is"
    if limit.holds(got):
        return Judgement(limit.text, "met", str(got), f"{whole} inside the limit")
    point = replace(got, lo=None, hi=None)
    if limit.holds(point):
        return Judgement(limit.text, "not shown", str(got), f"the interval, {ends}, reaches past the limit")
    return Judgement(limit.text, "missed", str(got), _beyond(got, limit))


def _beyond(got: Measurement, limit: Limit) -> str:
    """How far a value is from its limit, to two digits."""
    gap = abs(got.value - limit.bound)
    if got.unit == "share":
        return f"{units.digits(gap * 100, gap * 10)} points beyond the limit"
    if limit.bound == 0 or gap / abs(limit.bound) >= 1:
        return f"far beyond the limit: {got.short}"
    return f"{units.digits(100 * gap / abs(limit.bound), 10 * gap / abs(limit.bound))}% beyond the limit"


def _judge_objective(goal: Objective, trial: Trial, reading: Reading) -> Judgement:
    got = trial.metrics.get(goal.metric)
    if got is None or math.isnan(got.value):
        return Judgement(goal.text, "not measured", "", "an objective ranks only what was measured")
    rivals = [t for t in reading.trials if t.status == "ok" and t.id != trial.id and not reading.unmet(t)]
    ahead = [t for t in rivals if goal.cost(t.metrics.get(goal.metric)) < goal.cost(got)]
    if reading.unmet(trial):
        why = "objectives rank only trials that meet every limit"
    elif not ahead:
        why = f"best value of the {len(rivals) + 1:,} trials that meet every limit" if rivals else "the only trial left"
    else:
        top = min(ahead, key=lambda t: goal.cost(t.metrics.get(goal.metric)))
        why = f"trial {top.id} reaches {top.metrics[goal.metric].short}; see the front"
    return Judgement(goal.text, "ranked", str(got), why)


def noise_sentence(noise: Noise) -> str:
    """What the A/A arm says, in words."""
    off = (noise.aa_ratio - 1) * 100
    ends = [(end - 1) * 100 for end in (noise.lo, noise.hi)]
    half = abs(ends[1] - ends[0]) / 20
    low, high = (_signed(end, half) for end in ends)
    seen = f"Two identical arms differed by {_signed(off, half)}% (interval {low}% to {high}%)"
    if noise.ok:
        return f"{seen}: ok. Differences inside that interval are called {SAME}."
    return f"{seen}: noisy. Close other programs, or repeat with a larger budget."


def _signed(value: float, noise: float) -> str:
    text = units.digits(abs(value), noise)
    return f"{'+' if value > 0 else '−'}{text}" if any(c in "123456789" for c in text) else text
