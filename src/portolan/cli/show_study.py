"""What `optimize` says to people, made from its JSON object alone."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from portolan.cli.console import Answer, Line
from portolan.cli.show import options_text, step_text
from portolan.cli.show_bench import environment_notes, factor
from portolan.cli.table import columns, measurement, metric_columns, number, plain
from portolan.core.goal import Goals, Limit, Objective, parse_goals
from portolan.core.measurement import METRICS, SAME, Measurement, mark, said
from portolan.core.plain import value_text

Json = Mapping[str, Any]
#: Rows of the table and reasons below it; `-v` shows all.
ROWS, REASONS = 8, 4
#: Stages of a trial that was served, and how a profile's seconds are shown.
SERVED = frozenset({"tried", "loaded"})
_MS = {"unit": "ms", "lo": None, "hi": None, "n": None}
#: Kinds of targets on which nothing is timed.
UNTIMED = ("emulated", "simulated")
#: Last lines of a failed worker that `-v` shows.
LOG_LINES = 5
QUALITY = ("accuracy_drop", "agreement", "cosine", "max_rel_error")


def study(data: Json, *, dry_run: bool = False, verbose: bool = False) -> Answer:
    """The answer of `optimize`: baseline, the best trials, what was refused, the next command and the verdict."""
    if dry_run:
        return _plan(data, verbose)
    goals = parse_goals(data["goals"])
    names = _columns(goals, data)
    shown = _ranked(data, goals)
    rows = shown if verbose else shown[:ROWS]
    lines = [*_baseline(data), *_table(rows, names, data, goals), *_served(data)]
    if len(shown) > len(rows):
        lines.append(Line(f"    {len(shown) - len(rows)} more measured", "dim"))
    left_out = [*_skipped(data.get("skipped") or {}), *_untried(data.get("untried") or ())]
    lines += plain([*_reasons(data["trials"], verbose), *left_out], "dim")
    notes = [*data.get("notes", ()), *environment_notes(data.get("environment") or {}), *_quality_notes(data)]
    return Answer(
        lines,
        verdict(data, goals),
        next=_next(data),
        notes=notes,
        code=0 if data["met"] else 3 if data.get("closest") else 7,
    )


def _next(data: Json) -> list[str]:
    """The report, and the bundle: of the closest trial where none meets the goals, since that has to be named."""
    path, closest = Path(data["study"]), data.get("closest")
    folder = shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
    if data["met"]:
        return [f"portolan report {folder}", f"portolan pack {folder}"]
    return [f"portolan report {folder}", *([f"portolan pack {folder} --trial {closest['id']}"] if closest else [])]


def recipe_text(trial: Json) -> str:
    """The passes of a trial's recipe: `simplify + quantize(bits=8)`, or `-` for the untouched model."""
    if label := trial.get("label"):
        return str(label["passes"])
    return " + ".join(map(step_text, trial["recipe"]["passes"])) or "-"


def backend_text(trial: Json) -> str:
    """The backend of a trial's recipe with its options."""
    if label := trial.get("label"):
        return str(label["backend"])
    return options_text(trial["recipe"]["backend"], trial["recipe"].get("options") or {})


def serving_text(trial: Json) -> str:
    """How a trial was served: `batch 8, 2 replicas`, `defaults`, or `-` where it was not."""
    if label := (trial.get("label") or {}).get("serving"):
        return str(label)
    return "defaults" if SERVED & set(trial.get("stages") or ()) else "-"


def _served(data: Json) -> list[Line]:
    """What a batch takes in the best or closest trial."""
    shown, serving = data.get("best") or data.get("closest"), data.get("serving")
    if not shown or not serving or serving_text(shown) == "-":
        return []
    recipe = {**shown["recipe"], "serving": {}}
    batches = next((p["profile"]["batches"] for p in serving["profiles"] if p["recipe"] == recipe), None)
    if not batches:
        return []
    times = [f"{size}: {number({**batches[size], 'value': batches[size]['value'] * 1e3, **_MS})}" for size in batches]
    return [Line(f"    served with {serving_text(shown)}; p95 of a batch of {', '.join(times)}", "dim")]


def _columns(goals: Goals, data: Json) -> list[str]:
    """The metrics worth a column: those the goals name, a latency, the size and one for quality."""
    asked = [name for name in goals.metrics if name not in QUALITY]
    if not any(name.startswith("latency") for name in asked):
        asked.insert(0, "latency_p50")
    first = [name for name in asked if name.startswith("latency")]
    names = [*first, *(name for name in asked if name not in first), "size"]
    found = {name for trial in data["trials"] for name in trial["metrics"]}
    quality = [name for name in goals.metrics if name in QUALITY and name in found]
    quality = quality or [name for name in QUALITY if name in found][:1]
    return list(dict.fromkeys([*names, *quality]))


def _baseline(data: Json) -> list[Line]:
    base = data.get("baseline")
    if not base:
        return []
    metrics = base["metrics"]
    latency = next((m for m in ("latency_p50", "latency_p95") if m in metrics), None)
    cells = [number(metrics[latency])] if latency else []
    cells += [number(metrics["size"])] if "size" in metrics else []
    cells += [f"accuracy {number(metrics['accuracy'], n=True)}"] if "accuracy" in metrics else []
    return [Line("   ".join([f"baseline  {backend_text(base)}", *cells]))]


def _ranked(data: Json, goals: Goals) -> list[Json]:
    """Measured trials: the best first, then those that meet the goals, each group by the objectives."""
    first = (data.get("best") or data.get("closest") or {}).get("id")

    def rank(trial: Json) -> tuple[Any, ...]:
        metrics = read(trial)
        short = 0.0 if trial["met"] else goals.shortfall(metrics)
        return (trial["id"] != first, not trial["met"], short, *goals.costs(metrics), trial["id"])

    return sorted((t for t in data["trials"] if t["status"] == "ok"), key=rank)


def read(trial: Json) -> dict[str, Measurement]:
    """A trial's metrics as Measurements; what is missing stays missing."""
    found = {name: measurement(metric) for name, metric in trial["metrics"].items()}
    return {name: m for name, m in found.items() if m is not None}


def _table(rows: Sequence[Json], names: Sequence[str], data: Json, goals: Goals) -> list[Line]:
    if not rows:
        return []
    best = (data.get("best") or {}).get("id")
    heads, cells = metric_columns(names, [row["metrics"] for row in rows])
    words = ["recipe", "backend", *(["serving"] if data.get("serving") else [])]
    table = [["#", *words, *heads, "goals"]]
    for row, cell in zip(rows, cells, strict=True):
        star = "★" if row["id"] == best else " "
        said = [recipe_text(row), backend_text(row), serving_text(row)][: len(words)]
        table.append([f"{star}{row['id']:>2}", *said, *cell, _met(row, goals)])
    lines = columns(table, right=frozenset({0, *range(1 + len(words), 1 + len(words) + len(heads))}))
    styles = ["dim", *("bold" if row["id"] == best else "" for row in rows)]
    return [Line(text, style) for text, style in zip(lines, styles, strict=True)]


def _met(trial: Json, goals: Goals) -> str:
    if trial["met"]:
        return "met"
    return ", ".join(goals.unmet(read(trial))) or trial.get("reason") or "not met"


def _reasons(trials: Iterable[Json], verbose: bool) -> list[str]:
    """One line for each reason that trials were refused or failed for, the most frequent first."""
    groups: dict[tuple[str, str], int] = {}
    logs: dict[tuple[str, str], str] = {}
    for trial in trials:
        if trial["status"] in ("refused", "failed"):
            key = (trial["status"], _one_line(trial.get("reason") or "no reason was recorded"))
            groups[key] = groups.get(key, 0) + 1
            logs.setdefault(key, trial.get("log") or "")
    # Failures first: they are news, refusals are rules.
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] != "failed", -item[1], item[0][1]))
    lines = [f"  - {count} {status}: {reason}" for (status, reason), count in ordered]
    if verbose:  # with the end of what the first such worker printed
        tails = [[f"      {line}" for line in logs[key].splitlines()[-LOG_LINES:]] for key, _ in ordered]
        return [text for line, tail in zip(lines, tails, strict=True) for text in (line, *tail)]
    if len(lines) <= REASONS:
        return lines
    rest = sum(count for _, count in ordered[REASONS:])
    return [*lines[:REASONS], f"  - {rest} more refused or failed (`-v` lists them)"]


def _skipped(counts: Mapping[str, int]) -> list[str]:
    """One line on recipes that were not tried, with the most frequent reason."""
    if not counts:
        return []
    reason = max(counts, key=lambda text: (counts[text], text))
    more = len(counts) - 1
    others = f" (and {more} other reason{'s' * (more > 1)})" if more else ""
    return [f"  - {sum(counts.values())} not tried: {_one_line(reason)}{others}"]


def _untried(rows: Sequence[Json]) -> list[str]:
    """One line for each way in which the budget ended too early for a recipe."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        words = recipe_text(row)
        what = f"{words} on {backend_text(row)}" if words != "-" else backend_text(row)
        groups.setdefault(row["reason"], []).append(what)
    return [f"  - not tried, {reason}: {', '.join(names)} (more with `--budget`)" for reason, names in groups.items()]


def _one_line(text: str) -> str:
    first = text.strip().splitlines()[0] if text.strip() else text
    return first if len(first) <= 140 else f"{first[:139]}…"


def _quality_notes(data: Json) -> list[str]:
    about = data.get("data") or {}
    if about.get("synthetic"):
        return ["no `--data`: inputs were generated, so quality is agreement with the original model, not accuracy"]
    if about.get("labels") is False:
        return ["the data has no labels: quality is agreement with the original model, not accuracy"]
    return []


def verdict(data: Json, goals: Goals) -> str:
    """The last line: whether the goals are met, and what was gained over the baseline."""
    if data["met"] and data.get("best"):
        return f"goals met: {gains(data, data['best'], goals)}"
    closest = data.get("closest")
    if not closest:
        return "no valid result in the budget"
    metrics = read(closest)
    missed = [
        f"{_value(limit, metrics)} (asked for `{limit.text}`)"
        for limit in goals.limits
        if limit.reason(metrics.get(limit.metric))
    ]
    return f"goals not met; the closest is #{closest['id']}: {', '.join(missed) or 'see its reason'}"


def _value(limit: Limit, metrics: Mapping[str, Measurement]) -> str:
    found = metrics.get(limit.metric)
    return f"{said(limit.metric)} not measured" if found is None else f"{said(limit.metric)} {number(found.to_json())}"


def gains(data: Json, best: Json, goals: Goals) -> str:
    """`2.8x faster, 3.9x smaller`: the changes that are significant, of the metrics that people ask about."""
    baseline = data.get("baseline")
    if not baseline:
        return f"#{best['id']} is the best found"
    if best["id"] == baseline["id"]:
        return "the untouched model on the default runtime is the best found"
    before, after = read(baseline), read(best)
    asked: list[Limit | Objective] = [*goals.limits, *goals.objectives]
    latency = next((g.metric for g in asked if g.metric.startswith("latency")), None)
    # Where serving was searched, only what was asked of it is compared: nothing else was measured side by side.
    untimed = (data.get("target") or {}).get("kind") in UNTIMED
    words = (
        []
        if untimed or (latency is None and data.get("serving"))
        else [_speed(data, best, baseline, latency or "latency_p50", before, after)]
    )
    words.append(_gain(before.get("size"), after.get("size"), "smaller", "larger"))
    rest = {"throughput": ("more per second", "fewer per second"), "memory": ("less memory", "more memory")}
    rest["cost"] = ("cheaper", "dearer")
    for name in dict.fromkeys(g.metric for g in asked):
        if name in rest:
            words.append(_gain(before.get(name), after.get(name), *rest[name], higher=METRICS[name].better == "higher"))
    return ", ".join(filter(None, words)) or f"#{best['id']} is the best found"


def _speed(
    data: Json,
    best: Json,
    baseline: Json,
    metric: str,
    before: Mapping[str, Measurement],
    after: Mapping[str, Measurement],
) -> str:
    """What the interleaved race says; two separate measurements only where there was no race."""
    ours, theirs = {str(best["id"]), f"#{best['id']}", "best"}, {str(baseline["id"]), f"#{baseline['id']}", "baseline"}
    for ratio in data.get("ratios") or ():
        a, b = str(ratio["a"]), str(ratio["b"])
        forward = a in ours and b in theirs
        if ratio["metric"] == metric and (forward or (b in ours and a in theirs)):
            if ratio["verdict"] == SAME:
                return f"{SAME} in speed"
            quicker = (ratio["verdict"] == "faster") == forward
            return f"{factor(ratio['ratio'])}x {'faster' if quicker else 'slower'}"
    return _gain(before.get(metric), after.get(metric), "faster", "slower") or f"{SAME} in speed"


def _gain(before: Measurement | None, after: Measurement | None, good: str, bad: str, *, higher: bool = False) -> str:
    if before is None or after is None or before.value <= 0 or after.value <= 0:
        return ""
    if before.overlaps(after):
        return ""
    gain = after.value / before.value if higher else before.value / after.value
    if abs(gain - 1) < 0.005:
        return ""
    return f"{mark(before, after)}{factor(gain)}x {good if gain > 1 else bad}"


def _plan_of_serving(serving: Json) -> str:
    """One line of `--dry-run`: what would be tried of serving."""
    parts = [f"{name}={value_text(serving[name])}" for name in ("max_batch", "replicas", "deadline")]
    loads = ", ".join(f"{rate:.10g} qps" for rate in serving["loads"])
    at = f" at {loads}" if loads else ""
    return f"serving {'  '.join(parts)}; {serving['tried']} tried under load{at}, {serving['claimed']} to the end"


def _plan(data: Json, verbose: bool) -> Answer:
    """The answer of `--dry-run`: the search space with its size, and what is refused and why."""
    rows = [["passes", "recipes"], *([chain, f"{count:,}"] for chain, count in data["chains"].items())]
    backends = [["backend", "recipes", "options"]]
    for name, entry in data["backends"].items():
        options = "  ".join(f"{key}={','.join(map(value_text, vs))}" for key, vs in entry["options"].items())
        backends.append([name, f"{entry['recipes']:,}", options])
    right = frozenset({1})
    lines = [Line("goals   " + "; ".join(data["goals"])), Line(f"budget  {data['budget']}"), Line("")]
    lines += [*plain(columns(rows, right=right)), Line(""), *plain(columns(backends, right=right))]
    lines += plain(_reasons([{**r, "status": "refused"} for r in data["refusals"]], verbose), "dim")
    if serving := data.get("serving"):
        lines[2:2] = [Line(_plan_of_serving(serving))]
    exact = f"{data['exact']:,} of them keep the arithmetic"
    verdict = f"would search {data['candidates']:,} recipes ({exact}), {data['refused']:,} refused; nothing was written"
    return Answer(lines, verdict)
