"""`bench`: models and bundles against each other, raced with statistics.

Arms of one model have to answer alike before they are timed, and no time is believed in which this machine cannot
compute what the model needs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from portolan.bundle import Bundle, is_bundle, open_bundle
from portolan.core import registry, storage
from portolan.core.analysis import analyse
from portolan.core.backend import Backend, on_processor
from portolan.core.data import TIMED, timed
from portolan.core.frontend import Shapes
from portolan.core.measurement import Measurement
from portolan.core.model import Model
from portolan.core.plain import parse_call
from portolan.core.recipe import Recipe
from portolan.core.signature import Signature
from portolan.core.target import Target
from portolan.errors import ModelError, NoBackend, UsageError, VerificationFailed, WorkerError
from portolan.measure import roofline
from portolan.measure.environment import environment, ticks
from portolan.measure.race import Arm, race
from portolan.measure.result import Race
from portolan.passes._graphs import quantized
from portolan.study import ceilings
from portolan.study.budget import Budget
from portolan.study.builder import Builder, Compiled, Samples, read_model
from portolan.study.finals import MOST_STARTS
from portolan.study.optimize import read_samples
from portolan.study.probe import Outputs, Session, broken, judge
from portolan.study.runner import Progress
from portolan.study.workspace import Workspace, explained, temporary
from portolan.targets.local import local
from portolan.worker.environments import backends as find_backends

Feeds = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Entry:
    """One arm: a name, and a model with a backend, or a bundle; `asked`, unless it is there for being ready."""

    name: str
    source: str
    backend: str | None = None
    options: Mapping[str, Any] | None = None
    asked: bool = True


def parse_entry(text: str) -> Entry:
    """Reads `MODEL`, `BUNDLE` or `MODEL@BACKEND(option=value, ...)`."""
    source, at, spec = text.partition("@")
    if not at:
        return Entry(text, text)
    name, options = parse_call(spec, "backend")
    backend = registry.backend(name)
    return Entry(text, source, name, backend.schema.check(options))


@dataclass(frozen=True)
class Inputs:
    """What all arms are timed with: `data` or generated samples, at these sizes."""

    data: str | None
    shapes: Shapes | None
    seed: int


def bench(
    texts: Sequence[str],
    inputs: Inputs,
    *,
    backend: Sequence[str] | None,
    budget: str | None,
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
        workspace = stack.enter_context(temporary())
        line = _Line(stack, workspace, target, found, inputs, native)
        for entry in entries:
            progress(f"building {entry.name}")
            line.add(entry)
        if not line.arms:  # everything is simulated: there is nothing to race
            quiet = {"aa_ratio": None, "lo": None, "hi": None, "ok": True}
            return line.estimates({"arms": [], "ratios": [], "noise": quiet, "environment": environment(since)})
        outcome = race(
            line.arms,
            baseline=line.arms[0].name,
            starts=MOST_STARTS,
            deadline=None if limit.seconds is None else time.monotonic() + limit.seconds,
            rng=np.random.default_rng(inputs.seed),
            progress=progress,
        )
        outcome = replace(outcome, failures={**line.failures, **outcome.failures})
        return line.estimates(_answer(outcome, line.arms, line.unbelievable(outcome), since))


def _spread(
    entries: Sequence[Entry], wanted: Sequence[str] | None, found: Mapping[str, Backend], target: Target
) -> list[Entry]:
    """An arm per backend where backends are named, and for a single model without any, one per ready backend."""
    chosen, asked = list(wanted or ()), True
    for name in chosen:
        registry.backend(name)
    if not chosen and len(entries) == 1 and entries[0].backend is None and not is_bundle(entries[0].source):
        chosen = [n for n, b in found.items() if b.searched and not b.heavy and b.probe(target).ready]
        chosen.sort(key=lambda name: name != "onnxruntime")
        asked = False
    spread = []
    for entry in entries:
        if entry.backend is not None or is_bundle(entry.source):
            spread.append(entry)
            continue
        for name in chosen or ["onnxruntime"]:
            label = f"{entry.source}@{name}" if len(chosen) > 1 else entry.name
            spread.append(Entry(label, entry.source, name, registry.backend(name).schema.check({}), asked))
    names = [e.name for e in spread]
    return [replace(e, name=f"{e.name}#{i}") if names.count(e.name) > 1 else e for i, e in enumerate(spread)]


@dataclass
class _Line:
    """The starting line: arms are added one by one, and all take the inputs of the first.

    Attributes:
        arms: those that could be built; the first one has to be.
        failures: why the others could not.
        simulated: what simulated hardware says of its arms, by their names; they do not race.
    """

    stack: ExitStack
    workspace: Workspace
    target: Target
    backends: Mapping[str, Backend]
    inputs: Inputs
    native: bool
    arms: list[Arm] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    simulated: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _models: dict[str, Model] = field(default_factory=dict)
    _first: tuple[Entry, Signature, Feeds] | None = None
    #: What the first exact arm of each source answers, and that arm's name.
    _answers: dict[str, tuple[str, Outputs]] = field(default_factory=dict)
    #: Floating-point operations of one timed inference, by arm; nobody knows those of a bundle.
    _flops: dict[str, tuple[float, bool]] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Builds an arm.

        Raises:
            UsageError: it takes other inputs than the first.
            NoBackend: its backend is not ready, or cannot run the model.
            WorkerError: it is the first, and does not compile.
        """
        bundle = self._bundle(entry)
        signature = self._model(entry).signature if bundle is None else bundle.manifest.signature
        if self._first is None:
            self._first = entry, signature, self._feeds(entry, bundle)
        first, expected, feeds = self._first
        _same_inputs(first, expected, entry, signature)
        try:
            compiled = self._compile(entry) if bundle is None else _from_bundle(bundle)
            if not self.backends[compiled.backend].simulated:
                self._verify(entry, compiled, feeds[0])
        except (WorkerError, NoBackend, ModelError, VerificationFailed) as error:
            # A backend that was asked for by name has to work; one that is there by itself may not have the operators.
            if not self.arms or (entry.asked and not isinstance(error, (WorkerError, VerificationFailed))):
                raise
            self.failures[entry.name] = error.message
        else:
            if self.backends[compiled.backend].simulated:
                self.simulated[entry.name] = dict(compiled.facts.get("estimate", {}))
            else:
                self.arms.append(Arm(entry.name, partial(Session, compiled, feeds)))
                here = on_processor(entry.options or {})  # what a GPU can do at most, nobody measured
                if bundle is None and here and (flops := self._count(entry, feeds[0])):
                    self._flops[entry.name] = flops, quantized(self._model(entry))

    def unbelievable(self, outcome: Race) -> dict[str, str]:
        """Why the times of these arms cannot be true: they lie below the roofline floor."""
        known = ceilings.here(self.target) if self._flops else {}
        found = {}
        for name, (flops, integers) in self._flops.items():
            if name in outcome.arms:
                ms = outcome.arms[name].metrics()["latency_p50"].value
                if reason := roofline.believable(ms, flops, known, self.target.features, integers=integers):
                    found[name] = reason
        return found

    def _verify(self, entry: Entry, compiled: Compiled, feed: Mapping[str, np.ndarray]) -> None:
        """Arms of one source that keep its arithmetic have to answer as the first of them.

        Raises:
            VerificationFailed: this one does not.
            WorkerError: it does not run.
        """
        backend = self.backends[compiled.backend]
        exact = entry.backend is not None and backend.exact(backend.schema.check(entry.options or {}))
        if not exact:
            return
        session = Session(compiled, ())
        try:
            outputs = {name: value[None] for name, value in session.answer(feed).items()}
        finally:
            session.close()
        first, wanted = self._answers.setdefault(entry.source, (entry.name, outputs))
        if first == entry.name or any(np.isnan(value).any() for value in wanted.values() if value.dtype.kind == "f"):
            return  # where the model itself answers NaN nothing can be verified
        if reason := broken(judge(outputs, wanted, None, None, None), exact=True):
            raise VerificationFailed(f"{reason}, which are here the answers of `{first}`")

    def _count(self, entry: Entry, feed: Mapping[str, np.ndarray]) -> float | None:
        return analyse(self._model(entry), {name: array.shape for name, array in feed.items()}).flops

    def estimates(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer with the arms that did not race: their time is an estimate of the simulation's, and says so."""
        for name, estimate in self.simulated.items():
            value = Measurement.of("latency_p50", 1e3 * float(estimate["seconds"])) if "seconds" in estimate else None
            metrics = {} if value is None else {"latency_p50": replace(value, kind="estimated").to_json()}
            answer["arms"].append({"name": name, "metrics": metrics, "reason": "its hardware is simulated"})
            if metrics:
                what = f"`{name}` was not timed: its latency is the simulation's estimate of {estimate.get('of', 'it')}"
                answer.setdefault("notes", []).append(what)
        return answer

    def _bundle(self, entry: Entry) -> Bundle | None:
        if not is_bundle(entry.source):
            return None
        return self.stack.enter_context(open_bundle(Path(entry.source), native=self.native))

    def _model(self, entry: Entry) -> Model:
        if entry.source not in self._models:
            self._models[entry.source] = read_model(self.workspace, entry.source, self.inputs.shapes)
        return self._models[entry.source]

    def _samples(self, entry: Entry) -> Samples:
        given = self.inputs
        return read_samples(
            given.data, self._model(entry), self.workspace.folder, given.seed, given.shapes, entry.source
        )

    def _feeds(self, entry: Entry, bundle: Bundle | None) -> Feeds:
        if bundle is None:
            samples, signature = self._samples(entry), self._model(entry).signature
            return timed(samples.data, samples.evaluation, signature)
        if self.inputs.data is not None:
            raise UsageError(
                "a bundle as the first arm is timed on its own golden inputs",
                hint="leave out --data, or name a model first",
            )
        return [bundle.feeds(row) for row in range(min(TIMED, bundle.manifest.rows))]

    def _compile(self, entry: Entry) -> Compiled:
        backend, model = self.backends[entry.backend or "onnxruntime"], self._model(entry)
        support = backend.probe(self.target)
        if not support.ready:
            raise NoBackend(f"`{backend.name}` is not ready: {support.reason}", hint=support.fix)
        if why := backend.refuse(model, self.target):
            raise NoBackend(f"`{entry.name}` cannot run: {why}", hint="portolan doctor")
        builder = Builder(self.workspace, model, self.target, self.backends, self._samples(entry))
        return builder.compiled(Recipe((), backend.name, entry.options or {}))


def _same_inputs(a: Entry, first: Signature, b: Entry, other: Signature) -> None:
    if [(s.name, s.dtype) for s in first.inputs] != [(s.name, s.dtype) for s in other.inputs]:
        raise UsageError(
            f"`{a.name}` and `{b.name}` do not take the same inputs",
            hint=f"{', '.join(map(str, first.inputs))} against {', '.join(map(str, other.inputs))}",
        )


def _from_bundle(bundle: Bundle) -> Compiled:
    manifest, folder = bundle.manifest, bundle.compiled()
    model = Model(manifest.name, folder, manifest.model_sha256, manifest.signature)
    size = sum(entry.bytes for entry in manifest.files)
    return Compiled(bundle.sha256, folder, model, manifest.recipe.backend, 0.0, size, storage.resident(folder), {})


def _answer(outcome: Race, arms: Sequence[Arm], unbelievable: Mapping[str, str], since: Any) -> dict[str, Any]:
    names = [arm.name for arm in arms if arm.name in outcome.arms and arm.name not in unbelievable]
    rows: list[dict[str, Any]] = [
        {"name": name, "metrics": {m: v.to_json() for m, v in outcome.arms[name].metrics().items()}} for name in names
    ]
    rows += [{"name": name, "metrics": {}, "reason": why} for name, why in {**outcome.failures, **unbelievable}.items()]
    # All are compared with the first: without a time of it there is nothing to say of the others.
    first = arms[0].name
    ratios = [outcome.ratio(name, first).to_json() for name in names if name != first and first in names]
    return {
        "arms": rows,
        "ratios": ratios,
        "noise": outcome.noise.to_json(),
        "environment": environment(since),
    }
