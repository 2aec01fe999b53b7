"""`kernel --for`: a model's kernels compiled, put into every runtime that takes them, verified and raced end to end."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from portolan.backends._artefact import KERNELS
from portolan.backends._openvino_door import LIBRARY
from portolan.bundle import BundleParts, golden, pack_parts
from portolan.core.backend import Backend
from portolan.core.data import sample
from portolan.core.frontend import Shapes
from portolan.core.graph import read, set_sizes
from portolan.core.model import Model
from portolan.core.recipe import Recipe
from portolan.core.target import Target
from portolan.errors import NoBackend, UsageError, VerificationFailed
from portolan.kernels.build import tuned_for
from portolan.kernels.compiler import Compiler, find
from portolan.kernels.decorated import Kernel
from portolan.kernels.embed.carry import carry
from portolan.kernels.embed.export import checked
from portolan.kernels.embed.find import Site, sites
from portolan.kernels.embed.function import model as one_node
from portolan.kernels.embed.ort import library
from portolan.kernels.source import Found, read_file
from portolan.kernels.verify import AGENT, difference
from portolan.measure.environment import environment, ticks
from portolan.measure.race import Arm, race
from portolan.study.budget import Budget
from portolan.study.builder import Builder, Compiled, read_model
from portolan.study.finals import MOST_STARTS
from portolan.study.optimize import read_samples
from portolan.study.probe import Session
from portolan.study.runner import Progress
from portolan.study.workspace import Workspace
from portolan.targets.local import local
from portolan.worker import Worker
from portolan.worker.environments import backends as find_backends

if TYPE_CHECKING:
    import onnx

#: Runtimes of the CPU that a kernel's library can be put into.
RUNTIMES = ("onnxruntime", "openvino")
_ROWS = 4
#: What results may differ by, relative to the largest, after the kernel took the body's place.
_TOLERANCE = 1e-3
Json = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What was asked for; see `portolan.api` and the verb's flags."""

    out: Path | None = None
    backends: Sequence[str] = ()
    data: str | None = None
    shapes: Shapes | None = None
    budget: str | None = None
    seed: int = 0
    force: bool = False


def embed(file: str | Path, source: str, asked: Asked, progress: Progress) -> Json:
    """Compiles the kernels of `file` that the model calls, verifies them, and races the model with and without them.

    Returns:
        `{kernels, model, backends: [{name, before, after, ratio, max_error, compiled}], bundle, environment}`; `bundle`
        is null where none was asked for, or the kernels are slower on every runtime; `compiled` is false where calls go
        through Python.

    Raises:
        UsageError: the model calls none of the kernels.
        VerificationFailed: the model's own function, the compiled kernel or the whole model differs.
        NoBackend: there is no runtime, or no compiler.
    """
    if asked.out is not None and asked.out.exists() and not asked.force:
        raise UsageError(f"`{asked.out}` exists", hint="add `--force` to overwrite it")
    target, compiler, since = local.detect(), find(), ticks()
    backends = _ready(asked.backends, target)
    with tempfile.TemporaryDirectory(prefix="portolan-kernels-") as folder:
        workspace = Workspace(Path(folder))
        try:
            model = read_model(workspace, source, asked.shapes)
            samples = read_samples(asked.data, model, workspace.folder, asked.seed, asked.shapes, source)
            feeds = [sample(samples.data, row, model.signature) for row in samples.evaluation[:_ROWS]]
            found = sites(_sized(model, feeds[0]), [f.program for f in read_file(Path(file))])
            rows, libraries = _compiled(found, read_file(Path(file)), target, compiler, progress)
            carried = carry(Path(folder) / "kernels", libraries)
            fast = replace(model, kernels=carried.path, sha256=_digest(model, carried.path))
            before = Builder(workspace, model, target, backends, samples)
            after = Builder(workspace, fast, target, backends, samples)
            lines = []
            for name in backends:
                progress(f"racing the model in {name} with the kernels and without")
                lines.append(_raced(name, before, after, feeds, asked))
                if not lines[-1]["compiled"]:
                    progress(f"{name} calls the kernels through Python: no C++ compiler made its extension")
            bundle = None
            gaining = [row for row in lines if row["ratio"]["verdict"] != "slower"]
            if asked.out is not None and gaining:  # what is known to be slower is not shipped
                best = min(gaining, key=lambda row: row["after"]["value"])["name"]
                progress(f"writing the bundle for {best}, and verifying it in a process of its own")
                parts = _parts(best, after.compiled(Recipe((), best, {})), feeds, target, backends[best])
                bundle = pack_parts(parts, asked.out, force=asked.force).to_json()
            answer = {"kernels": rows, "model": source, "backends": lines, "bundle": bundle}
            return {**answer, "environment": environment(since)}
        finally:
            workspace.close()


def _ready(names: Sequence[str], target: Target) -> dict[str, Backend]:
    wanted = list(names) or list(RUNTIMES)
    for name in wanted:
        if name not in RUNTIMES:
            raise UsageError(f"`{name}` takes no kernels into a model", hint=f"those that do: {', '.join(RUNTIMES)}")
    every = find_backends(target, wanted)
    ready = {n: every[n] for n in wanted if every[n].probe(target).ready}
    if not ready:
        support = every[wanted[0]].probe(target)
        raise NoBackend(f"`{wanted[0]}` is not ready: {support.reason}", hint=support.fix)
    return ready


def _sized(model: Model, feed: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The graph with the sizes of the inputs that are timed: kernels are tuned for what they will meet."""
    given: dict[str, int] = {}
    for spec in model.signature.inputs:
        for dim, size in zip(spec.shape, feed[spec.name].shape, strict=True):
            if isinstance(dim, str):
                given[dim] = size
    return set_sizes(read(model.path), given)


def _compiled(
    found: Sequence[Site], kernels: Sequence[Found], target: Target, compiler: Compiler, progress: Progress
) -> tuple[list[Json], list[tuple[Any, Path]]]:
    """Tunes, compiles and verifies each kernel: as its own body, as the model's, and as the library."""
    rows, libraries = [], []
    named = {k.program.name: k for k in kernels}
    with Worker(module=AGENT) as worker:
        for site in found:
            program = site.program
            kernel = Kernel(program)
            kernel.sizes.extend(named[program.name].sizes)
            sizes = site.sizes or kernel.usual()
            tuned = tuned_for(kernel, sizes, target, compiler, progress=progress)
            built = library(program, tuned.schedules, compiler)
            progress(f"{program.name}: checking the model's function and the library against the oracle")
            call = one_node(program)
            if site.function is not None:
                del call.functions[:]
                call.functions.append(site.function)
                _check(partial(checked, program, call.SerializeToString(), worker), program.name)
            error = checked(program, call.SerializeToString(), worker, [built])
            rows.append(
                {
                    "name": program.name,
                    "nodes": site.nodes,
                    "sizes": dict(sizes),
                    "max_abs_error": error,
                    "seconds_tuning": tuned.seconds,
                    "latency": {**tuned.ms, "unit": "ms", "kind": "measured"},
                    "artefact": str(built),
                }
            )
            libraries.append((program, built))
    return rows, libraries


def _check(run: Callable[[], float], name: str) -> None:
    try:
        run()
    except VerificationFailed as error:
        raise VerificationFailed(
            f"the model's own function `{name}` is not what the kernel computes: {error.message}",
            hint="export the model again with the kernel as it is now",
        ) from error


def _digest(model: Model, folder: Path) -> str:
    parts = [model.sha256.encode(), *(p.read_bytes() for p in sorted(folder.iterdir()))]
    return hashlib.sha256(b"\0".join(hashlib.sha256(p).digest() for p in parts)).hexdigest()


def _raced(name: str, before: Builder, after: Builder, feeds: list[dict[str, np.ndarray]], asked: Asked) -> Json:
    """The model on one runtime with and without the kernels: outputs compared, then timed in turn."""
    arms = {"body": before.compiled(Recipe((), name, {})), "kernels": after.compiled(Recipe((), name, {}))}
    error = _apart(name, arms["body"], arms["kernels"], feeds)
    seconds = Budget.parse(asked.budget).seconds
    outcome = race(
        [Arm(label, partial(Session, made, feeds)) for label, made in arms.items()],
        baseline="body",
        starts=MOST_STARTS,
        deadline=None if seconds is None else time.monotonic() + seconds,
        rng=np.random.default_rng(asked.seed),
    )
    if "kernels" in outcome.failures:
        raise VerificationFailed(f"the kernels fail in `{name}`: {outcome.failures['kernels']}")
    metrics = {label: outcome.arms[label].metrics()["latency_p50"].to_json() for label in arms}
    ratio = outcome.ratio("kernels", "body").to_json()
    return {
        "name": name,
        "before": metrics["body"],
        "after": metrics["kernels"],
        "ratio": ratio,
        "noise": outcome.noise.to_json(),
        "max_error": error,
        "compiled": name != "openvino" or (arms["kernels"].folder / KERNELS / LIBRARY).is_file(),
    }


def _apart(name: str, body: Compiled, kernels: Compiled, feeds: list[dict[str, np.ndarray]]) -> float:
    worst = 0.0
    sessions = [Session(made, feeds) for made in (body, kernels)]
    try:
        for feed in feeds:
            want, got = (s.worker.ask("run", timeout=120.0, tensors=feed).tensors for s in sessions)
            for output, array in want.items():
                worst = max(worst, difference(got[output], array))
    finally:
        for session in sessions:
            session.close()
    if not worst <= _TOLERANCE:
        raise VerificationFailed(
            f"with the kernels, `{name}` answers otherwise: off by {worst:.2g} of the largest value",
            hint="report it with the kernel and the model: each kernel alone agreed with the oracle",
        )
    return worst


def _parts(
    name: str, compiled: Compiled, feeds: list[dict[str, np.ndarray]], target: Target, backend: Backend
) -> BundleParts:
    import datetime

    model = compiled.model
    session = Session(compiled, feeds)
    try:
        answers = [session.worker.ask("run", timeout=120.0, tensors=feed).tensors for feed in feeds]
    finally:
        session.close()
    return BundleParts(
        name=model.name,
        model=model,
        recipe=Recipe((), name, {}),
        compiled=compiled.folder,
        golden_inputs=golden.stack(feeds),
        golden_outputs=golden.join(answers, model.signature),
        claims={},
        target=target,
        backend_versions=backend.versions(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
