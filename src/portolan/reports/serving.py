"""How models were served: the profile of the shown trial, what was predicted beside what was measured, every load."""

from __future__ import annotations

import math
from collections.abc import Mapping

from portolan import units
from portolan.core.measurement import Measurement, load_of
from portolan.reports import words
from portolan.reports.html import esc, table, tag
from portolan.reports.reading import Reading, Trial
from portolan.reports.served import Batch, Run, Serving, key

#: Rows of the tables.
_MOST = 40


def section(serving: Serving, reading: Reading) -> str:
    """The part of the page about serving."""
    shown, numbered = reading.shown, {trial.id: trial for trial in reading.trials}
    return "".join([_said(shown), _profile(serving, shown), _choices(serving, numbered), _runs(serving)])


def _said(shown: Trial | None) -> str:
    how = "as the server does when nothing was chosen"
    if shown is not None and shown.recipe.serving:
        how = f"with {shown.recipe.served}"
    first = "" if shown is None else f"The shown result was served {how}. "
    return tag(
        "p",
        esc(
            f"{first}Loads come from MLPerf LoadGen, and a latency counts from when its call was due. "
            "Predictions rank; only what was measured is claimed."
        ),
    )


def _profile(serving: Serving, shown: Trial | None) -> str:
    batches = () if shown is None else serving.profiles.get(key(shown.recipe), ())
    top = max((b.size / b.seconds.value for b in batches if b.seconds.value > 0), default=0.0)
    if not top:
        return ""
    rows = [
        [str(b.size), esc(_ms(b.seconds)), esc(units.digits(b.size / b.seconds.value, None)), _bar(b, top)]
        for b in batches
        if b.seconds.value > 0
    ]
    return table(["Batch", "p95 in one replica", "Calls per second", ""], rows, class_="profile")


def _ms(seconds: Measurement) -> str:
    lo, hi = (None if end is None else end * 1e3 for end in (seconds.lo, seconds.hi))
    return str(Measurement(seconds.value * 1e3, "ms", lo, hi, seconds.n, seconds.kind))


def _bar(batch: Batch, top: float) -> str:
    width = 120 * batch.size / batch.seconds.value / top
    inner = f'<rect class="after" x="0" y="2" width="{width:.1f}" height="8"/>'
    return f'<svg class="bars" viewBox="0 0 120 12" width="120" height="12" aria-hidden="true">{inner}</svg>'


def _choices(serving: Serving, trials: Mapping[int, Trial]) -> str:
    names = [n for n in dict.fromkeys(n for c in serving.choices for n in c.predicted) if _worth(n)]
    if not names:
        return ""
    rows = []
    for choice in serving.choices[:_MOST]:
        trial = trials.get(choice.trial) if choice.trial is not None else None
        backend = esc(" ".join([choice.recipe.backend, *(f"{k}={v}" for k, v in choice.recipe.options.items())]))
        cells = [esc(choice.recipe.served), backend, f"#{choice.trial}" if trial is not None else ""]
        for name in names:
            found = None if trial is None else trial.metrics.get(name)
            guess = choice.predicted.get(name)
            cells += [esc("" if m is None else m.short) for m in (guess, found)]
        rows.append(cells)
    heads = [h for name in names for h in (f"{esc(words.title(name))}, predicted", "measured")]
    return table(["Serving", "Backend", "Trial", *heads], rows, class_="choices")


def _worth(name: str) -> bool:
    return name == "throughput" or (load_of(name) is not None and name.startswith("latency_p99"))


def _runs(serving: Serving) -> str:
    head = ["Trial", "Scenario", "Asked per s", "Answered per s", "Calls", "Unanswered", "p50", "p95", "p99"]
    rows = [
        [
            f"#{run.trial}",
            esc(run.scenario),
            "" if run.asked is None else esc(f"{run.asked:.10g}"),
            esc(units.digits(run.rate, None)),
            f"{run.calls:,}",
            f"{run.calls - run.answered:,}",
            *(esc(_quantile(run, share)) for share in ("0.5", "0.95", "0.99")),
            esc("valid" if run.valid else "; ".join(run.why) or "not valid"),
        ]
        for run in serving.runs[:_MOST]
    ]
    late = max((run.late for run in serving.runs if math.isfinite(run.late)), default=0.0)
    more = f" {len(serving.runs) - _MOST} more are in the raw data." if len(serving.runs) > _MOST else ""
    behind = units.write(late, "ms")
    note = f"The load generator itself was late by up to {behind} (p99), which is part of the latencies.{more}"
    return table([*head, "LoadGen says"], rows, class_="runs") + tag("p", esc(note)) if rows else ""


def _quantile(run: Run, share: str) -> str:
    value = run.quantiles.get(share)
    return "no answer" if value is None else units.write(value, "ms")
