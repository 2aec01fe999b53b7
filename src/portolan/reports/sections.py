"""The parts of one study as plain HTML, readable without any script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from portolan import units
from portolan.core.goal import Objective
from portolan.core.measurement import METRICS, Measurement, unloaded
from portolan.reports import words
from portolan.reports.html import esc, rich, table, tag
from portolan.reports.reading import Reading, Trial

_MARKS = {"met": "✓", "missed": "✗", "not shown": "?", "not measured": "?", "ranked": "↕"}


def verdict(reading: Reading) -> str:
    """The headline, what qualifies it, and what was studied."""
    said = words.verdict(reading)
    mark = {"met": "✓", "missed": "✗", "empty": "–"}[said.state]
    headline = tag("h2", tag("span", mark, class_="mark", aria_hidden="true") + rich(said.headline), class_="headline")
    notes = tag("ul", "".join(tag("li", rich(note)) for note in said.notes), class_="notes")
    facts = "".join(f"<div><dt>{esc(name)}</dt><dd>{value}</dd></div>" for name, value in _facts(reading))
    return tag("header", headline + notes + tag("dl", facts, class_="facts"), class_=f"verdict {said.state}")


def _facts(reading: Reading) -> Iterable[tuple[str, str]]:
    model, target = reading.model, reading.target
    counts = [f"{count} {status}" for status in ("ok", "failed", "refused") if (count := _count(reading, status))]
    known = [(key, model.get(key)) for key in ("parameters", "flops")]
    weight = [f"{units.count(n) if isinstance(n, (int, float)) else n} {key}" for key, n in known if n]
    yield "Model", esc(" · ".join(filter(None, (model.get("name") or reading.name, model.get("format"), *weight))))
    yield "Input", esc(", ".join(_tensor(spec) for spec in model.get("inputs") or []) or "not recorded")
    yield "Data", esc(_data(reading))
    yield "Target", esc(target.get("display") or target.get("id") or "not recorded")
    yield "Trials", esc(f"{len(reading.trials):,} ({', '.join(counts)})")
    if reading.seconds is not None:
        took = f"{reading.measurements:,} measurements in " if reading.measurements is not None else ""
        yield "Effort", esc(f"{took}{duration(reading.seconds)}")
    if reading.created:
        shown = reading.created[:16].replace("T", " ") + (" UTC" if reading.created.endswith(("+00:00", "Z")) else "")
        yield "Created", tag("time", esc(shown), datetime=reading.created)


def _data(reading: Reading) -> str:
    kind = "synthetic samples" if reading.synthetic else "samples"
    parts = [f"{_count_text(reading.data[k])} for {k}" for k in ("calibration", "evaluation") if reading.data.get(k)]
    total = (
        f"{reading.data['rows']} {kind}" if reading.data.get("rows") else kind if reading.synthetic else "not recorded"
    )
    return f"{total}: {', '.join(parts)}" if parts else total


def _count_text(count: Any) -> str:
    return f"{count:,}" if isinstance(count, int) else str(count)


def _count(reading: Reading, status: str) -> int:
    return sum(trial.status == status for trial in reading.trials)


def _tensor(spec: Any) -> str:
    if not isinstance(spec, Mapping):
        return str(spec)
    return f"{spec.get('name')}:{'x'.join(map(str, spec.get('shape') or []))} {spec.get('dtype', '')}".strip()


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{units.digits(seconds, None)} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def goals(reading: Reading) -> str:
    """Each goal and whether it was met, with the reason."""
    if not reading.goals:
        return "<p>No goals are recorded.</p>"
    if reading.shown is None:
        rows = [
            [tag("code", esc(goal.text)), _state("not measured"), "", "no trial was valid"] for goal in reading.goals
        ]
    else:
        rows = [
            [tag("code", esc(j.text)), _state(j.state), esc(j.value), rich(j.why)]
            for j in words.judge(reading, reading.shown)
        ]
    whose = "best result" if reading.best is not None else "closest result"
    return table(["Goal", "Verdict", f"Of the {whose}", "Why"], rows, class_="goals")


def _state(state: str) -> str:
    mark = tag("span", _MARKS[state], class_="mark", aria_hidden="true")
    return tag("span", mark + esc(state), class_=f"state {state.replace(' ', '-')}")


def comparison(reading: Reading) -> str:
    """The baseline against the best (or closest) trial, metric by metric."""
    before, after = reading.baseline, reading.shown
    if before is None or after is None:
        return "<p>There is nothing to compare: the baseline or a valid result is missing.</p>"
    pairs = [(name, before.metrics.get(name), after.metrics.get(name)) for name in reading.metric_names]
    rows = [_compared(reading, *pair) for pair in pairs]
    role = "Best" if reading.best is not None else "Closest"
    head = ["Metric", f"Baseline{_sub(before)}", f"{role}{_sub(after)}", "Change", ""]
    return table(head, [row for row in rows if row[1] or row[2]], class_="comparison")


def _sub(trial: Trial) -> str:
    return f' <span class="sub">{rich(trial.title)}</span>'


def _quality(name: str) -> bool:
    known = METRICS.get(unloaded(name))
    return known is not None and known.quality


def _compared(reading: Reading, name: str, before: Measurement | None, after: Measurement | None) -> list[str]:
    moved = words.moved(reading, name)
    cells = [esc(str(m)) if m is not None else "" for m in (before, after)]
    note = tag("span", esc(moved.text), class_=moved.direction)
    return [label(name), *cells, note, bars(before, after) if not _quality(name) else ""]


def label(name: str) -> str:
    """A metric's name with what it means as a tooltip."""
    return tag("span", esc(words.title(name)), title=_about(name))


def _about(name: str) -> str | None:
    known = METRICS.get(unloaded(name))
    return None if known is None else known.about


def bars(before: Measurement | None, after: Measurement | None) -> str:
    """Two bars on one scale with their intervals: the baseline above, the result below."""
    shown = [m for m in (before, after) if m is not None and math.isfinite(m.value) and m.value >= 0]
    top = max((m.value if m.hi is None else m.hi for m in shown), default=0.0)
    if len(shown) < 2 or top <= 0:
        return ""
    parts = []
    for row, (m, role) in enumerate(zip(shown, ("before", "after"), strict=True)):
        y = 2 + 9 * row
        parts.append(f'<rect class="{role}" x="0" y="{y}" width="{120 * m.value / top:.1f}" height="6"/>')
        if m.lo is not None and m.hi is not None:
            ends = (120 * max(m.lo, 0) / top, 120 * m.hi / top)
            parts.append(f'<line x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y + 3}" y2="{y + 3}"/>')
    return f'<svg class="bars" viewBox="0 0 120 19" width="120" height="19" aria-hidden="true">{"".join(parts)}</svg>'


def columns(reading: Reading) -> list[str]:
    """The metrics that the trials table shows: what the goals name, then the usual ones."""
    stored = ("size", "resident") if any(map(_packed, reading.trials)) else ("size",)
    usual = ("latency_p50", "latency_p95", *stored, "accuracy_drop", "agreement", "cosine")
    order = [goal.metric for goal in reading.goals] + list(usual)
    present = set(reading.metric_names)
    return [name for name in dict.fromkeys(order) if name in present][:7]


def _packed(trial: Trial) -> bool:
    """Whether a model is smaller on disk than a runtime is given it."""
    size, resident = trial.metrics.get("size"), trial.metrics.get("resident")
    return size is not None and resident is not None and resident.value > 1.01 * size.value


def ranked(reading: Reading) -> list[Trial]:
    """Trials in the order of interest: the shown one, those that meet the goals, the others, failed, refused."""
    objectives = [g for g in reading.goals if isinstance(g, Objective)]
    top = reading.shown

    def key(trial: Trial) -> tuple[Any, ...]:
        place = ("ok", "failed", "refused").index(trial.status)
        shortfall = sum(limit.shortfall(trial.metrics.get(limit.metric)) for limit in reading.limits)
        costs = tuple(goal.cost(trial.metrics.get(goal.metric)) for goal in objectives)
        return (top is None or trial.id != top.id, place, shortfall, costs, trial.id)

    return sorted(reading.trials, key=key)


def role(reading: Reading, trial: Trial) -> str:
    """`best`, `closest`, `baseline` or nothing."""
    if reading.shown is not None and trial.id == reading.shown.id:
        return "best" if reading.best is not None else "closest"
    return "baseline" if reading.baseline is not None and trial.id == reading.baseline.id else ""


def outcome(reading: Reading, trial: Trial) -> str:
    """What became of a trial, in a few words."""
    if trial.status != "ok":
        return f"{trial.status}: {trial.reason or 'no reason recorded'}"
    return "; ".join(words.title(why) for why in reading.unmet(trial)) or "met"


def trials(reading: Reading) -> str:
    """Every trial, one row each, with the keys that a script sorts by."""
    names = columns(reading)
    head = _th("#", "number") + _th("Recipe") + _th("Backend") + _th("Outcome")
    head += "".join(_th(words.title(n), "number", _about(n)) for n in names)
    body = "".join(_row(reading, trial, names) for trial in ranked(reading))
    inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return tag("div", tag("table", inner, class_="trials"), class_="scroll")


def _th(text: str, kind: str = "text", about: str | None = None) -> str:
    return tag("th", esc(text), scope="col", data_kind=kind, title=about, class_="num" if kind == "number" else None)


def _row(reading: Reading, trial: Trial, names: list[str]) -> str:
    mine = role(reading, trial)
    star = {"best": "★", "closest": "☆"}.get(mine, "")
    passes = esc("untouched" if trial.passes == "-" else trial.passes)
    badge = f" {tag('span', mine, class_='badge')}" if mine else ""
    backend = esc(trial.backend) + (f' <span class="sub">{esc(trial.options)}</span>' if trial.options else "")
    said = outcome(reading, trial)
    cells = tag("td", f"{star}{trial.id}", class_="num id", data_v=trial.id)
    cells += tag("th", tag("code", passes) + badge, scope="row", data_v=trial.passes)
    cells += tag("td", backend, data_v=f"{trial.backend} {trial.options}")
    cells += tag("td", esc(said), class_="outcome", data_v=said)
    cells += "".join(_metric(trial.metrics.get(name)) for name in names)
    kinds = [trial.status, mine, "good" if said == "met" else ""]
    return tag("tr", cells, data_trial=trial.id, class_=" ".join(filter(None, kinds)))


def _metric(got: Measurement | None) -> str:
    if got is None:
        return '<td class="num"></td>'
    value = got.value if math.isfinite(got.value) else None
    return tag("td", esc(got.short), class_="num", data_v=value, title=str(got))


def reasons(reading: Reading, status: str) -> str:
    """Trials of one status, grouped by reason, the most frequent first."""
    groups: dict[str, list[Trial]] = {}
    for trial in reading.trials:
        if trial.status == status:
            groups.setdefault(trial.reason or "no reason recorded", []).append(trial)
    if not groups:
        return f"<p>Nothing was {status}.</p>"
    items = "".join(_group(*item) for item in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))
    return tag("ul", items, class_="reasons")


def _group(reason: str, members: list[Trial]) -> str:
    count = tag("span", f"{len(members):,}", class_="count")
    inner = "".join(tag("li", f"{tag('span', str(t.id), class_='id')} {rich(t.title)}{_again(t)}") for t in members)
    return tag("li", tag("details", tag("summary", f"{count} {rich(reason)}") + tag("ul", inner)))


def _again(trial: Trial) -> str:
    return tag("pre", esc(trial.command)) if trial.command and trial.status == "failed" else ""


def environment(reading: Reading) -> str:
    """The noise floor, the machine and the versions."""
    parts = []
    if reading.noise is not None:
        mood = "ok" if reading.noise.ok else "noisy"
        parts.append(tag("p", esc(words.noise_sentence(reading.noise)), class_=f"noise {mood}"))
    else:
        parts.append('<p class="noise">No A/A arm was run, so the noise floor is not known.</p>')
    target, told = reading.target, reading.environment
    rows = [(k, target[k]) for k in ("display", "id", "kind", "arch", "cores", "ram", "caches", "fingerprint")
            if target.get(k)]  # fmt: skip
    rows += [(k, v) for k, v in told.items() if k != "versions"]
    accelerators = target.get("accelerators")
    rows += [("accelerators", ", ".join(map(str, accelerators)))] if accelerators else []
    rows += [("gpu", f"compute capability {d['capability']}, driver {d['driver']}") for d in target.get("devices", ())]
    parts.append(table(["Machine", ""], [[esc(words.title(k)), esc(_fact(k, v))] for k, v in rows], class_="pairs"))
    versions = told.get("versions") or target.get("runtimes")
    if isinstance(versions, Mapping) and versions:
        pairs = [[esc(k), esc(v)] for k, v in versions.items()]
        parts.append(table(["Versions", ""], pairs, class_="pairs"))
    columns_ = tag("div", "".join(parts[1:]), class_="columns")
    features = target.get("features")
    listed = ""
    if isinstance(features, (list, tuple)) and features:
        named = " ".join(tag("code", esc(feature)) for feature in features)
        listed = tag("details", f"<summary>{len(features)} processor features</summary><p class='tags'>{named}</p>")
    return parts[0] + columns_ + listed


def _fact(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_fact(key, v)}" for k, v in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(v) for v in value) or "none"
    if key in ("ram", "caches") and isinstance(value, (int, float)):
        return units.write(value, "B")
    if key == "steal" and isinstance(value, (int, float)):
        return f"{value:.1%}"
    return "not known" if value is None else str(value)
