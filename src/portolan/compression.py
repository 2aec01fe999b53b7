"""`compress`: passes applied in order, without a search."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from portolan.core import registry
from portolan.core.data import sample
from portolan.core.frontend import Shapes
from portolan.core.measurement import Measurement, Metrics
from portolan.core.model import Model
from portolan.core.plain import parse_call
from portolan.core.recipe import Recipe, Step
from portolan.core.target import Target
from portolan.errors import UsageError
from portolan.search.chains import disorder
from portolan.study.builder import Builder, Samples, read_model
from portolan.study.optimize import read_samples
from portolan.study.probe import Session, judge, reference
from portolan.study.runner import Progress
from portolan.study.workspace import explained, temporary
from portolan.targets.local import local
from portolan.worker.environments import backends as find_backends


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
    target = local.detect()
    steps = [_step(text, target) for text in passes]
    if not steps:
        raise UsageError("no pass to apply", hint=f"--pass {registry.PASSES.names()[0]}")
    with temporary() as workspace:
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
            "notes": list(builder.notes),
        }


def _step(text: str, target: Target) -> Step:
    name, given = parse_call(text, "pass")
    schema = registry.pass_(name).schema
    options = schema.check(given)
    chosen = schema.chosen(options, target)
    return Step(name, {key: value for key, value in options.items() if key in chosen and value is not None})


def _allow(steps: Sequence[Step], model: Model, target: Target, calibration: bool) -> None:
    passes = {step.name: registry.pass_(step.name) for step in steps}
    for step in steps:
        needs = passes[step.name].needs(step.options)
        if needs != "nothing" and not calibration:
            raise UsageError(f"`{step}` needs {needs} data", hint="give it with --data")
        if why := passes[step.name].refuse(model, step.options, target):
            raise UsageError(f"`{step}` is refused: {why}")
    if why := disorder(steps, passes, model, target):
        raise UsageError(f"the order of the passes is refused: {why}")


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
    # An ONNX file is written as it is; in a bundle, weights with many zeros are packed.
    stored = {"stored": Measurement.of("size", after.size)} if after.size < after.resident else {}
    return {"size": Measurement.of("size", after.resident), **stored, **metrics}


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
