"""`bench`: models and bundles against each other, raced with statistics; `compress`: passes applied, no search."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from portolan.bundle import Bundle, is_bundle, open_bundle
from portolan.core import registry
from portolan.core.backend import Backend
from portolan.core.data import sample
from portolan.core.frontend import Shapes
from portolan.core.measurement import Measurement, Metrics
from portolan.core.model import Model
from portolan.core.recipe import Recipe, Step
from portolan.core.signature import Signature
from portolan.core.target import Target
from portolan.errors import NoBackend, UsageError, WorkerError
from portolan.measure.environment import environment, ticks
from portolan.measure.race import Arm, race
from portolan.measure.result import Race
from portolan.study.budget import Budget
from portolan.study.builder import Builder, Compiled, Samples, read_model
from portolan.study.optimize import read_samples
from portolan.study.probe import Session, judge, reference
from portolan.study.runner import Progress
from portolan.study.workspace import Workspace, explained
from portolan.targets.local import local
from portolan.worker.environments import backends as find_backends

_SPEC = re.compile(r"(?P<name>\w[\w-]*)(?:\((?P<options>.*)\))?$")
_PAIR = re.compile(r"\s*([\w-]+)\s*=\s*([^,]+?)\s*(?:,|$)")
_FEEDS = 4


@dataclass(frozen=True)
class Entry:
    """One arm: a name, and a model with a recipe, or a bundle."""

    name: str
    source: str
    backend: str | None = None
    options: Mapping[str, Any] | None = None


def parse_call(text: str, what: str) -> tuple[str, dict[str, str]]:
    """`NAME(key=value, ...)` as a name and its options.

    Raises:
        UsageError: it is not of that form.
    """
    match = _SPEC.match(text.strip())
    if match is None:
        raise UsageError(
            f"the {what} `{text}` cannot be read", hint=f"write `NAME` or `NAME(option=value)` for a {what}"
        )
    inner = match["options"] or ""
    options = {key.replace("-", "_"): value for key, value in _PAIR.findall(inner)}
    if inner.strip() and _PAIR.sub("", inner).strip():
        raise UsageError(f"the options of the {what} `{text}` cannot be read", hint="write `NAME(option=value)`")
    return match["name"], options


def parse_entry(text: str) -> Entry:
    """Reads `MODEL`, `BUNDLE` or `MODEL@BACKEND(option=value, ...)`."""
    source, at, spec = text.partition("@")
    if not at:
        return Entry(text, text)
    name, options = parse_call(spec, "backend")
    backend = registry.backend(name)
    return Entry(text, source, name, backend.schema.check(options))


def bench(
    texts: Sequence[str],
    *,
    data: str | None,
    shapes: Shapes | None,
    backend: Sequence[str] | None,
    budget: str | None,
    seed: int,
    native: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Races the arms, the first one as the baseline; the object of the contract.

    Raises:
        UsageError: arms that do not take the same inputs.
        NoBackend: an arm's backend is not ready here.
    """
    if not texts:
        raise UsageError("nothing to measure", hint="portolan bench MODEL [MODEL...]")
    limit = Budget.parse(budget)
    if limit.trials is not None:
        raise UsageError(f"`{budget}` is no time, and a race is bounded by time", hint="write `60s` or `5min`")
    target, since = local.detect(), ticks()
    found = find_backends(target)
    entries = _spread([parse_entry(text) for text in texts], backend, found, target)
    with ExitStack() as stack, explained(Path.cwd()):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="portolan-bench-")))
        workspace = Workspace(folder)
        stack.callback(workspace.close)
        arms, failures = _arms(entries, stack, workspace, target, found, data, shapes, seed, native, progress)
        outcome = race(
            arms,
            baseline=arms[0].name,
            deadline=None if limit.seconds is None else time.monotonic() + limit.seconds,
            rng=np.random.default_rng(seed),
            progress=progress,
        )
        return _answer(replace(outcome, failures={**failures, **outcome.failures}), arms, since)


def _spread(
    entries: Sequence[Entry], wanted: Sequence[str] | None, found: Mapping[str, Backend], target: Target
) -> list[Entry]:
    """An arm per backend where backends are named, and for a single model without any, one per ready backend."""
    chosen = list(wanted or ())
    for name in chosen:
        registry.backend(name)
    if not chosen and len(entries) == 1 and entries[0].backend is None and not is_bundle(entries[0].source):
        chosen = [n for n, b in found.items() if b.searched and not b.needs_program and b.probe(target).ready]
        chosen.sort(key=lambda name: name != "onnxruntime")
    spread = []
    for entry in entries:
        if entry.backend is not None or is_bundle(entry.source):
            spread.append(entry)
            continue
        for name in chosen or ["onnxruntime"]:
            label = f"{entry.source}@{name}" if len(chosen) > 1 else entry.name
            spread.append(Entry(label, entry.source, name, registry.backend(name).schema.check({})))
    names = [e.name for e in spread]
    return [Entry(f"{e.name}#{i}" if names.count(e.name) > 1 else e.name, e.source, e.backend, e.options)
            for i, e in enumerate(spread)]  # fmt: skip


def _arms(
    entries: Sequence[Entry],
    stack: ExitStack,
    workspace: Workspace,
    target: Target,
    found: Mapping[str, Backend],
    data: str | None,
    shapes: Shapes | None,
    seed: int,
    native: bool,
    progress: Progress,
) -> tuple[list[Arm], dict[str, str]]:
    """The arms that could be built, and why the others could not; the first one has to be."""
    models: dict[str, Model] = {}
    arms: list[Arm] = []
    failures: dict[str, str] = {}
    feeds: list[dict[str, np.ndarray]] = []
    first: Signature | None = None
    for entry in entries:
        bundle = (
            stack.enter_context(open_bundle(Path(entry.source), native=native)) if is_bundle(entry.source) else None
        )
        if bundle is None and entry.source not in models:
            models[entry.source] = read_model(workspace, entry.source, shapes)
        signature = bundle.manifest.signature if bundle is not None else models[entry.source].signature
        if first is None:
            first = signature
            feeds = _feeds(entry, bundle, models, data, workspace, seed, shapes)
        _same_inputs(first, signature, entries[0], entry)
        progress(f"building {entry.name}")
        if bundle is not None:
            compiled = _from_bundle(bundle)
        else:
            try:
                compiled = _compile(entry, models[entry.source], workspace, target, found, data, seed, shapes)
            except WorkerError as error:
                if not arms:
                    raise
                failures[entry.name] = error.message
                continue
        arms.append(Arm(entry.name, partial(Session, compiled, feeds)))
    return arms, failures


def _feeds(
    entry: Entry, bundle: Bundle | None, models: Mapping[str, Model], data: str | None, workspace: Workspace,
    seed: int, shapes: Shapes | None,
) -> list[dict[str, np.ndarray]]:  # fmt: skip
    if bundle is not None and data is None:
        return [bundle.feeds(row) for row in range(min(_FEEDS, bundle.manifest.rows))]
    if bundle is not None:
        raise UsageError(
            "a bundle as the first arm is timed on its own golden inputs",
            hint="leave out --data, or name a model first",
        )
    model = models[entry.source]
    samples = read_samples(data, model, workspace.folder, seed, shapes, entry.source)
    return [sample(samples.data, row, model.signature) for row in samples.evaluation[:_FEEDS]]


def _same_inputs(first: Signature, other: Signature, a: Entry, b: Entry) -> None:
    if [(s.name, s.dtype) for s in first.inputs] != [(s.name, s.dtype) for s in other.inputs]:
        raise UsageError(
            f"`{a.name}` and `{b.name}` do not take the same inputs",
            hint=f"{', '.join(map(str, first.inputs))} against {', '.join(map(str, other.inputs))}",
        )


def _compile(
    entry: Entry, model: Model, workspace: Workspace, target: Target, found: Mapping[str, Backend],
    data: str | None, seed: int, shapes: Shapes | None,
) -> Compiled:  # fmt: skip
    backend = found[entry.backend or "onnxruntime"]
    support = backend.probe(target)
    if not support.ready:
        raise NoBackend(f"`{backend.name}` is not ready: {support.reason}", hint=support.fix)
    if why := backend.refuse(model, target):
        raise NoBackend(f"`{entry.name}` cannot run: {why}", hint="portolan doctor")
    samples = read_samples(data, model, workspace.folder, seed, shapes, entry.source)
    recipe = Recipe((), backend.name, entry.options or {})
    return Builder(workspace, model, target, found, samples).compiled(recipe)


def _from_bundle(bundle: Bundle) -> Compiled:
    manifest, folder = bundle.manifest, bundle.compiled()
    model = Model(manifest.name, folder, manifest.model_sha256, manifest.signature)
    size = sum(entry.bytes for entry in manifest.files)
    return Compiled(bundle.sha256, folder, model, manifest.recipe.backend, 0.0, size, {})


def _answer(outcome: Race, arms: Sequence[Arm], since: Any) -> dict[str, Any]:
    names = [arm.name for arm in arms if arm.name in outcome.arms]
    rows: list[dict[str, Any]] = [
        {"name": name, "metrics": {m: v.to_json() for m, v in outcome.arms[name].metrics().items()}} for name in names
    ]
    rows += [{"name": name, "metrics": {}, "reason": why} for name, why in outcome.failures.items()]
    ratios = [outcome.ratio(name, names[0]).to_json() for name in names[1:]]
    return {
        "arms": rows,
        "ratios": ratios,
        "noise": outcome.noise.to_json(),
        "environment": environment(since),
    }


@contextmanager
def _scratch() -> Iterator[Workspace]:
    with tempfile.TemporaryDirectory(prefix="portolan-compress-") as folder:
        workspace = Workspace(Path(folder))
        try:
            yield workspace
        finally:
            workspace.close()


def compress(
    source: str,
    passes: Sequence[str],
    *,
    out: str | None,
    data: str | None,
    shapes: Shapes | None,
    seed: int,
    force: bool,
    dry_run: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Applies passes in order and writes the model; the object of the contract.

    Raises:
        UsageError: no pass, a pass that cannot help this model, or an output that exists.
    """
    steps = [_step(text) for text in passes]
    if not steps:
        raise UsageError("no pass to apply", hint=f"--pass {registry.PASSES.names()[0]}")
    target = local.detect()
    with _scratch() as workspace:
        model = read_model(workspace, source, shapes)
        final = Path(out) if out else Path(f"{model.name}-{'-'.join(s.name for s in steps)}.onnx")
        if final.exists() and not force:
            raise UsageError(f"`{final}` exists", hint="--force overwrites it, or name another with -o")
        samples = read_samples(data, model, workspace.folder, seed, shapes, source)
        _allow(steps, model, target, bool(samples.calibration))
        recipe = Recipe(tuple(steps))
        if dry_run:
            return {"model": str(final), "recipe": recipe.to_json(), "metrics": {}, "dry_run": True}
        builder = Builder(workspace, model, target, find_backends(target), samples)
        progress(f"applying {recipe}")
        result = builder.artefact(steps)
        metrics = _effect(builder, model, samples, recipe, progress)
        with explained(final.parent):
            final.parent.mkdir(parents=True, exist_ok=True)
            _copy_model(result.path, final)
        return {
            "model": str(final),
            "recipe": recipe.to_json(),
            "metrics": {n: m.to_json() for n, m in metrics.items()},
        }


def _step(text: str) -> Step:
    name, options = parse_call(text, "pass")
    return Step(name, registry.pass_(name).schema.check(options))


def _allow(steps: Sequence[Step], model: Model, target: Target, calibration: bool) -> None:
    for step in steps:
        item = registry.pass_(step.name)
        if item.needs(step.options) == "calibration" and not calibration:
            raise UsageError(f"`{step}` needs calibration data", hint="give it with --data")
        if why := item.refuse(model, step.options, target):
            raise UsageError(f"`{step}` is refused: {why}")


def _effect(builder: Builder, model: Model, samples: Samples, recipe: Recipe, progress: Progress) -> Metrics:
    """Size, and how far the outputs moved, measured on the default runtime."""
    before, after = builder.compiled(Recipe()), builder.compiled(recipe)
    outputs = []
    rows: tuple[int, ...] = ()
    for compiled in (before, after):
        session = Session(compiled, [sample(samples.data, samples.evaluation[0], model.signature)])
        try:
            if rows:
                outputs.append(session.outputs(samples, rows, model.signature))
            else:
                rows, original = reference(session, samples, model.signature, progress)
                outputs.append(original)
        finally:
            session.close()
    labels = samples.data.labels
    chosen = None if labels is None else labels[list(rows)]
    metrics = judge(outputs[1], outputs[0], chosen, None, model.signature.outputs)
    return {"size": Measurement.of("size", after.size), **metrics}


def _copy_model(source: Path, final: Path) -> None:
    """The ONNX file under its new name, whole or not at all; external data beside it, named after it."""
    import onnx

    from portolan.core import external, protos

    graph = onnx.load(str(source), load_external_data=False)
    names = {old: f"{final.name}.{i or ''}data" for i, old in enumerate(external.files(graph, source))}
    for old, new in names.items():
        _place(final.with_name(new), lambda part, old=old: shutil.copyfile(source.parent / old, part))  # type: ignore[misc]
    for tensor in protos.tensors(graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = names[entry.value]
    _place(final, lambda part: part.write_bytes(graph.SerializeToString()))


def _place(final: Path, write: Callable[[Path], object]) -> None:
    """Writes beside `final` and then gives it its name, so that a killed process leaves no half a file under it."""
    part = final.with_name(f".{final.name}.{os.getpid()}.partial")
    try:
        write(part)
        part.replace(final)
    finally:
        part.unlink(missing_ok=True)
