"""What the scripts of the page need, already in words and display units, so that no formatting is written twice."""

from __future__ import annotations

import json
import math
from typing import Any

from portolan import units
from portolan.core.goal import Limit
from portolan.core.measurement import METRICS, Measurement, unloaded
from portolan.reports import words
from portolan.reports.checked import clean
from portolan.reports.reading import Reading, Trial
from portolan.reports.sections import columns, duration, outcome, role


def view(reading: Reading) -> dict[str, Any]:
    """One study for the scripts: axes, trials, which two metrics to plot first. Text only, never HTML."""
    axes = {name: _axis(reading, name) for name in reading.metric_names}
    return {
        "name": reading.name,
        "axes": axes,
        "start": _start(reading, list(axes)),
        "selected": None if reading.shown is None else reading.shown.id,
        "trials": [_trial(reading, trial) for trial in reading.trials],
    }


def _axis(reading: Reading, name: str) -> dict[str, Any]:
    found = [trial.metrics[name] for trial in reading.trials if name in trial.metrics]
    sizes = [abs(m.value) for m in found if math.isfinite(m.value) and m.value]
    middle = sorted(sizes)[len(sizes) // 2] if sizes else 1.0
    scaled, unit = units.scale(middle, found[0].unit)
    factor = scaled / middle
    limits = [
        {"at": goal.bound * factor, "below": goal.op[0] == "<", "text": goal.text}
        for goal in reading.goals
        if isinstance(goal, Limit) and goal.metric == name
    ]
    known = METRICS.get(unloaded(name))
    better = "lower" if known is None else known.better
    return {"title": words.title(name), "unit": unit, "factor": factor, "better": better, "limits": limits}


def _start(reading: Reading, names: list[str]) -> list[str]:
    """Speed across and what it is paid with upwards, unless the goals name others."""
    plotted = [n for n in names if sum(n in t.metrics for t in reading.trials) > 1] or names
    wanted = [n for n in columns(reading) if n in plotted] + plotted
    fast = next((n for n in wanted if n.startswith("latency")), wanted[0] if wanted else "")
    paid = next((n for n in wanted if not n.startswith("latency") and n != fast), fast)
    return [fast, paid] if fast else []


def _trial(reading: Reading, trial: Trial) -> dict[str, Any]:
    said = outcome(reading, trial)
    return {
        "id": trial.id,
        "title": trial.title.replace("`", ""),
        "recipe": "the untouched model" if trial.passes == "-" else trial.passes,
        "backend": trial.backend,
        "options": trial.options,
        "status": trial.status,
        "role": role(reading, trial),
        "met": said == "met",
        "outcome": said,
        "pareto": trial.pareto,
        "seconds": None if trial.seconds is None else duration(trial.seconds),
        "metrics": {name: _metric(m) for name, m in trial.metrics.items()},
        "toml": recipe_toml(trial),
        "stages": list(trial.stages),
        "command": trial.command,
        "samples": reading.samples.get(str(trial.id), []),
    }


def _metric(m: Measurement) -> dict[str, Any]:
    told = {"value": m.value, "lo": m.lo, "hi": m.hi, "n": m.n, "kind": m.kind}
    return told | {"text": m.short, "interval": m.interval}


def recipe_toml(trial: Trial) -> str:
    """The recipe as the TOML that `--recipe` reads; as JSON where it holds what TOML cannot."""
    import tomli_w

    data = trial.recipe.to_json()
    data = {key: value for key, value in data.items() if value not in ({}, [])}
    try:
        text = tomli_w.dumps(data)
    except (TypeError, ValueError):
        text = json.dumps(data, indent=2, default=str)
    return "\n".join(clean(line) for line in text.splitlines())
