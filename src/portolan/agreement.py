"""`bench` on a target where nothing is timed: how far each arm's answers are from those its model gives here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portolan.bundle import is_bundle
from portolan.comparison import Entry, Inputs, parse_entry
from portolan.core import registry
from portolan.core.backend import Backend
from portolan.core.measurement import Measurement, Metrics
from portolan.core.recipe import Recipe
from portolan.core.target import Target
from portolan.errors import NoBackend, UsageError, WorkerError
from portolan.measure.environment import environment
from portolan.study import elsewhere
from portolan.study.builder import Builder, Samples, read_model
from portolan.study.optimize import read_samples
from portolan.study.runner import Progress
from portolan.study.workspace import Workspace, explained, temporary
from portolan.worker.environments import backends as find_backends

_TIMES = ("latency_p50", "latency_p95", "latency_p99")


@dataclass(frozen=True)
class _Place:
    """Where arms run, and with what."""

    target: Target
    backends: Mapping[str, Backend]
    workspace: Workspace
    inputs: Inputs
    say: Progress


def bench(
    texts: Sequence[str], inputs: Inputs, target: Target, *, backend: Sequence[str] | None, progress: Progress
) -> dict[str, Any]:
    """Runs each arm on `target`; the object of the contract, without times and ratios.

    Raises:
        UsageError: an arm is a bundle.
        NoBackend: no backend is ready there, or none of the arms' can run them.
    """
    if bundle := next((text for text in texts if is_bundle(text)), None):
        raise UsageError(
            f"`{bundle}` is a bundle, and bundles are checked, not raced, on `{target.id}`",
            hint=f"portolan pack --check {bundle} -t {target.id}",
        )
    found = find_backends(target, None)
    with temporary() as workspace, explained(Path.cwd()):
        place = _Place(target, found, workspace, inputs, progress)
        rows = [_arm(entry, place) for entry in _spread([parse_entry(t) for t in texts], backend, place)]
    return {
        "arms": rows,
        "ratios": [],
        "noise": {"aa_ratio": None, "lo": None, "hi": None, "ok": False},
        "environment": environment(),
        "target": target.to_json(),
        "notes": [elsewhere.reason(target)],
    }


def _spread(entries: Sequence[Entry], wanted: Sequence[str] | None, place: _Place) -> list[Entry]:
    """An arm per backend where none is named: those named by the flag, else all that are ready there."""
    chosen = list(wanted or ())
    for name in chosen:
        registry.backend(name)
    if not chosen:
        ready = {n: b for n, b in place.backends.items() if b.probe(place.target).ready and not b.needs_program}
        chosen = [name for name, backend in ready.items() if backend.searched] or list(ready)[:1]
    if not chosen:
        reasons = {b.probe(place.target).reason for b in place.backends.values()}
        raise NoBackend(
            f"no backend is ready on `{place.target.id}`: {next(iter(reasons))}",
            hint=f"portolan doctor {place.target.id}",
        )
    return [
        one
        for entry in entries
        for one in ([entry] if entry.backend else [Entry(f"{entry.name}@{n}", entry.source, n) for n in chosen])
    ]


def _arm(entry: Entry, place: _Place) -> dict[str, Any]:
    place.say(f"running {entry.name} on {place.target.id}")
    try:
        metrics = _measured(entry, place)
    except (WorkerError, NoBackend) as error:
        return {"name": entry.name, "metrics": {}, "reason": error.message}
    written = {name: metric.to_json() for name, metric in metrics.items()}
    return {"name": entry.name, "metrics": elsewhere.absent(written, _TIMES), "same": elsewhere.same(metrics)}


def _measured(entry: Entry, place: _Place) -> Metrics:
    model = read_model(place.workspace, entry.source, place.inputs.shapes)
    backend = place.backends[entry.backend or "onnxruntime"]
    support = backend.probe(place.target)
    if not support.ready:
        raise NoBackend(f"`{backend.name}` is not ready on `{place.target.id}`: {support.reason}")
    if why := backend.refuse(model, place.target):
        raise NoBackend(f"it cannot run: {why}")
    given = place.inputs
    samples: Samples = read_samples(given.data, model, place.workspace.folder, given.seed, given.shapes, entry.source)
    builder = Builder(place.workspace, model, place.target, place.backends, samples)
    compiled = builder.compiled(Recipe((), backend.name, entry.options or {}, place.target.id))
    here = elsewhere.Here(place.workspace, model, samples, place.say)
    metrics = elsewhere.judged(compiled, here, samples, model.signature)
    return {"size": Measurement.of("size", compiled.size), **metrics}
