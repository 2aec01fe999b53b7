"""`pack`: a study's best trial, or a model as it is, made into a bundle and verified by running it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from portolan import shipped
from portolan.bundle import BundleParts, golden, pack_parts
from portolan.bundle.write import exact
from portolan.core.data import sample
from portolan.core.frontend import Shapes
from portolan.core.measurement import Metrics
from portolan.core.model import Model
from portolan.core.recipe import Recipe
from portolan.core.serving import Profile
from portolan.core.target import Target
from portolan.errors import NoBackend, UsageError
from portolan.passes._overflow import Overflow, overflow
from portolan.study.builder import Builder, Compiled, Samples, read_model
from portolan.study.optimize import read_samples
from portolan.study.probe import Session
from portolan.study.reading import read_study
from portolan.study.runner import Progress
from portolan.study.study import Study
from portolan.study.trial import Trial
from portolan.study.workspace import Workspace, temporary
from portolan.targets._added import find
from portolan.targets.local import local
from portolan.worker.environments import backends as find_backends

_GOLDEN = 4


@dataclass(frozen=True)
class _Source:
    """What a bundle is made from."""

    name: str
    model: Model
    recipe: Recipe
    samples: Samples
    claims: Metrics
    created: str
    environment: Mapping[str, Any]
    profile: Profile | None = None


def pack(
    source: str,
    *,
    out: Path | None,
    name: str | None,
    trial: int | None,
    backend: str | None,
    data: str | None,
    shapes: Shapes | None,
    target: str = "local",
    force: bool,
    dry_run: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Makes and verifies a bundle; the object of the contract. See `portolan.api.pack`."""
    here, there = local.detect(), find(target)
    with _opened(source, trial, backend, data, shapes) as (workspace, found):
        label = name or found.name
        final = out or Path(f"{label}.portolan")
        if final.exists() and not force:
            raise UsageError(f"`{final}` exists", hint="--force overwrites it, or name another with -o")
        if dry_run:
            return {
                "bundle": str(final),
                "sha256": None,
                "files": [],
                "verified": False,
                "recipe": found.recipe.to_json(),
            }
        # A recipe that was found for another target is made for it, and checked there too.
        made_for = find(found.recipe.target)
        # A page runs the file that ONNX Runtime runs here, so that is what is shipped, and checked in both.
        web = found.recipe.backend == shipped.WEB
        found = replace(found, recipe=replace(found.recipe, backend="onnxruntime", options={})) if web else found
        places = {place.id: place for place in (made_for, there) if not place.timed}
        compiled, versions = _built(workspace, found, made_for, here, progress)
        parts = _parts(label, found, compiled, here, versions)
        checked = []
        for place in places.values():
            progress(f"running the golden inputs on {place.id}")
            checked.append(_elsewhere(place, found, parts))
        progress("writing the bundle, and verifying it in a process of its own")
        answer = pack_parts(parts, final, force=force).to_json()
        if web:
            answer["notes"] = [*answer["notes"], f"for a page or Node: portolan deploy {final} --to web"]
        return _flagged(answer, overflow(compiled.model), checked, source)


def _built(
    workspace: Workspace, found: _Source, made_for: Target, here: Target, progress: Progress
) -> tuple[Compiled, Mapping[str, str]]:
    recipe = found.recipe
    backends = find_backends(here, [recipe.backend])
    support = backends[recipe.backend].probe(here)
    if not support.ready:
        raise NoBackend(f"`{recipe.backend}` is not ready: {support.reason}", hint=support.fix)
    progress(f"building {recipe} for {recipe.backend}")
    artefact = Builder(workspace, found.model, made_for, backends, found.samples).artefact(recipe.passes)
    builder = Builder(workspace, artefact, here, backends, found.samples)
    return builder.compiled(replace(recipe, passes=())), backends[recipe.backend].versions()


def _elsewhere(place: Target, found: _Source, parts: BundleParts) -> dict[str, Any]:
    """What is shipped, asked for its golden answers on `place`."""
    rows = found.samples.evaluation[:_GOLDEN]
    feeds = [sample(found.samples.data, row, found.model.signature) for row in rows]
    allowed = golden.default_tolerance(parts.golden_outputs, exact(found.recipe))
    return shipped.verified(
        place, found.recipe.backend, parts.compiled, found.model.signature, feeds, parts.golden_outputs, allowed
    )


def _flagged(answer: dict[str, Any], risk: Overflow, checked: list[dict[str, Any]], source: str) -> dict[str, Any]:
    """The answer with what is known of other targets: each that was asked, and int8 that may overflow on some."""
    notes = [*answer["notes"], *(shipped.note(item) for item in checked)]
    narrow = [item for item in checked if not item["same"]]
    if risk.wide and not narrow:
        notes.append(f"{risk}: `portolan pack {source} -t NAME` asks one (portolan target add NAME --emulate haswell)")
    return answer | {
        "notes": notes,
        "elsewhere": checked,
        "overflow": {"products": risk.products, "wide": len(risk.wide)},
    }


@contextmanager
def _opened(
    source: str, trial: int | None, backend: str | None, data: str | None, shapes: Shapes | None
) -> Iterator[tuple[Workspace, _Source]]:
    if (Path(source) / "ledger.sqlite").is_file():
        study = read_study(Path(source))
        workspace = Workspace(study.folder)
        try:
            yield workspace, _from_study(study, workspace, trial)
        finally:
            workspace.close()
        return
    with temporary() as workspace:
        model = read_model(workspace, source, shapes)
        samples = read_samples(data, model, workspace.folder, 0, shapes, source)
        recipe = Recipe((), backend or "onnxruntime", {})
        yield workspace, _Source(model.name, model, recipe, samples, {}, _now(), {})


def _from_study(study: Study, workspace: Workspace, trial: int | None) -> _Source:
    chosen = study.best if trial is None else _numbered(study, trial)
    asked = study.data["asked"]
    shapes = {name: tuple(shape) for name, shape in asked["shapes"].items()} or None
    model = read_model(workspace, asked["model"], shapes)
    if model.sha256 != study.data["model"]["sha256"]:
        raise UsageError(
            f"`{asked['model']}` is not the model that was optimized: it has changed since",
            hint="repeat the `portolan optimize` command",
        )
    samples = read_samples(asked["data"], model, workspace.folder, asked["seed"], shapes, asked["model"])
    if samples.data.sha256 != study.data["data"].get("sha256", samples.data.sha256):
        raise UsageError(
            f"the data of `{asked['data'] or asked['model']}` has changed since the study",
            hint="repeat the `portolan optimize` command",
        )
    data = study.data
    return _Source(
        study.name, model, chosen.recipe, samples, chosen.metrics, data["created"], data["environment"],
        _profile(data, chosen.recipe),
    )  # fmt: skip


def _profile(data: Mapping[str, Any], recipe: Recipe) -> Profile | None:
    """What the study measured of this recipe's batches; None where serving was not searched."""
    alone = replace(recipe, serving={}).to_json()
    measured = (data.get("serving") or {}).get("profiles", [])
    found = next((item["profile"] for item in measured if item["recipe"] == alone), None)
    return None if found is None else Profile.from_json(found)


def _numbered(study: Study, number: int) -> Trial:
    for trial in study.trials:
        if trial.id == number:
            if trial.status != "ok":
                raise UsageError(f"trial {number} has no result: {trial.reason}", hint="name a trial that is ok")
            return trial
    raise UsageError(f"the study has no trial {number}", hint="portolan report STUDY lists them")


def _parts(name: str, found: _Source, compiled: Compiled, target: Target, versions: Mapping[str, str]) -> BundleParts:
    rows = found.samples.evaluation[:_GOLDEN]
    feeds = [sample(found.samples.data, row, found.model.signature) for row in rows]
    session = Session(compiled, feeds)
    try:
        answers = [session.worker.ask("run", timeout=120.0, tensors=feed).tensors for feed in feeds]
    finally:
        session.close()
    return BundleParts(
        name=name,
        model=found.model,
        recipe=found.recipe,
        compiled=compiled.folder,
        golden_inputs=golden.stack(feeds),
        golden_outputs=golden.join(answers, found.model.signature),
        claims=found.claims,
        environment=found.environment,
        target=target,
        backend_versions=versions,
        created=found.created,
        profile=found.profile,
    )


def _now() -> str:
    import datetime

    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
