"""What `bench` says to people, made from its JSON object alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from portolan.cli.console import Answer, Line
from portolan.cli.table import LABELS, columns, metric_columns, plain
from portolan.core.measurement import METRICS, SAME

Json = Mapping[str, Any]
#: Process starts below which a race claims nothing; see `portolan.measure.result`, which is too heavy to import here.
STARTS = 5
#: An interval that reaches from x to more than this many times x says nothing, and its ends only look like numbers.
SPAN = 10


def comparison(data: Json, *, arms: Sequence[str] = ()) -> Answer:
    """The answer of `bench`; `arms` is what the user typed."""
    measured = [arm for arm in data["arms"] if arm["metrics"]]
    lines = [*_table(measured), *_failures(data["arms"])]
    ratios = data["ratios"]
    if len(ratios) > 1:
        lines += [Line(""), *plain([ratio_text(r) for r in ratios])]
    lines += plain([noise_text(data["noise"])], "dim") if data.get("noise") and not data.get("target") else []
    notes = [*data.get("notes", ()), *environment_notes(data.get("environment", {}))]
    if data.get("target"):
        return _elsewhere(data, lines, notes)
    if not ratios:
        again = [f"portolan optimize {shlex.quote(arms[0])}"] if arms else []
        code = 0 if measured else 7
        return Answer(lines, _counted(data["arms"]), next=again, notes=notes, code=code)
    return Answer(lines, verdict(ratios), notes=notes)


def _elsewhere(data: Json, lines: Sequence[Line], notes: Sequence[str]) -> Answer:
    """Where nothing was timed: which arms answer as they do here."""
    name, arms = data["target"]["id"], data["arms"]
    ran = [arm for arm in arms if arm["metrics"]]
    changed = [arm["name"] for arm in ran if not arm["same"]]
    notes = [*notes, *(f"{arm} answers otherwise on `{name}` than here" for arm in changed)]
    if not ran:
        return Answer(lines, f"none of {len(arms)} arms runs on `{name}`", notes=notes, code=7)
    count = f"{len(ran) - len(changed)} of {len(arms)} arms"
    return Answer(
        lines, f"{count} answer on `{name}` as {'it does' if len(arms) == 1 else 'they do'} here", notes=notes
    )


def _counted(arms: Sequence[Json]) -> str:
    """How many arms were measured; those with simulated hardware were not, and are counted apart."""
    known = [arm["metrics"] for arm in arms if arm["metrics"]]
    estimated = sum(any(m.get("kind") == "estimated" for m in metrics.values()) for metrics in known)
    text = f"measured {len(known) - estimated} of {len(arms)} arms"
    return f"{text}, estimated {estimated}" if estimated else text


def _table(arms: Sequence[Json]) -> list[Line]:
    if not arms:
        return []
    present = [name for name in METRICS if any(name in arm["metrics"] for arm in arms)]
    heads, cells = metric_columns(present, [arm["metrics"] for arm in arms])
    counts = [_readings(arm["metrics"]) for arm in arms]
    rows = [["arm", *heads, "n"]]
    rows += [[arm["name"], *cell, n] for arm, cell, n in zip(arms, cells, counts, strict=True)]
    return plain(columns(rows, right=frozenset(range(1, len(heads) + 2))))


def _readings(metrics: Json) -> str:
    ns = [m["n"] for name, m in metrics.items() if name.startswith("latency") and m.get("n")]
    return f"{max(ns):,}" if ns else "-"


def _failures(arms: Sequence[Json]) -> list[Line]:
    failed = [arm for arm in arms if not arm["metrics"]]
    return plain([f"{arm['name']} failed: {arm.get('reason') or 'no reason was recorded'}" for arm in failed])


def ratio_text(ratio: Json) -> str:
    """One comparison: `b is 2.81x faster than a (2.78 to 2.84, p95)`; the interval is that of the ratio as measured."""
    metric = LABELS.get(ratio["metric"], ratio["metric"].replace("_", " "))
    span = f"{metric} ratio {ratio['ratio']:.3f}"
    if interval := _interval(ratio):
        span += f", {interval}"
    if ratio["verdict"] == SAME:
        return f"{ratio['a']} and {ratio['b']}: {SAME} ({span}){_unclaimed(ratio)}"
    return f"{ratio['a']} is {factor(ratio['ratio'])}x {ratio['verdict']} than {ratio['b']} ({span})"


def _interval(ratio: Json) -> str | None:
    lo, hi = ratio.get("lo"), ratio.get("hi")
    if lo is None or hi is None:
        return None
    return f"{lo:.3f} to {hi:.3f}" if hi <= SPAN * lo else "the interval is too wide to say anything"


def _unclaimed(ratio: Json) -> str:
    """Why a ratio could not become a claim, whatever its interval: too few processes were started in the budget."""
    starts = ratio.get("starts")
    if starts is None or starts >= STARTS:
        return ""
    return f"; {starts} process starts are too few for a claim, {STARTS} are needed: give a larger `--budget`"


def factor(ratio: float) -> str:
    """A ratio as a factor above 1, whichever way it was formed: 0.36 and 2.8 are both `2.8`."""
    times = ratio if ratio >= 1 else 1 / ratio if ratio > 0 else float("inf")
    return f"{times:.2f}" if times < 2 else f"{times:.1f}"


def noise_text(noise: Json) -> str:
    """The noise floor: what two identical arms looked like."""
    if noise.get("aa_ratio") is None:
        return "noise: not measured"
    text = f"noise: two identical arms differ by a factor of {noise['aa_ratio']:.3f}"
    if interval := _interval(noise):
        text += f" ({interval})"
    return text if noise.get("ok", True) else f"{text}: this machine is too restless to trust small differences"


def environment_notes(environment: Json) -> list[str]:
    """What disturbed the measurement: other load, or time stolen by other virtual machines."""
    steal = environment.get("steal")
    return [f"other machines on this host took {steal:.0%} of the processor"] if steal and steal >= 0.02 else []


def verdict(ratios: Sequence[Json]) -> str:
    """The line that sums the comparisons up: the first one, and how many of all were significant."""
    first = ratios[0]
    if len(ratios) == 1:
        return ratio_text(first)
    decided = [r for r in ratios if r["verdict"] != SAME]
    if not decided:
        return f"{SAME} in any of {len(ratios)} comparisons"
    return f"{len(decided)} of {len(ratios)} comparisons are significant"
