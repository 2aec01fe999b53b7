"""The slow axis: models read, passes applied, recipes compiled; each once per content, in a worker."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from portolan import __version__, frontends
from portolan.core import interpreters, registry
from portolan.core.backend import Backend
from portolan.core.data import Data
from portolan.core.files import sha256
from portolan.core.frontend import Shapes
from portolan.core.model import Model
from portolan.core.recipe import Recipe, Step, digest
from portolan.core.target import Target
from portolan.errors import (
    CannotHelp,
    DiskFull,
    EnvironmentGone,
    NoResult,
    OutOfMemory,
    PortolanError,
    UsageError,
    WorkerCrashed,
    WorkerError,
    WorkerTimeout,
)
from portolan.study.budget import Left, ask, unlimited
from portolan.study.workspace import Workspace
from portolan.worker import Worker, default_memory_limit, patience
from portolan.worker.environments import python_for, python_for_compiling, python_on

_SECONDS = 600.0
_LOG = 2000
#: An emulated processor is 10 to 100 times slower than a real one, but the usual waits are generous already.
FAR_PATIENCE = 5.0
Make = Callable[[Path], Mapping[str, Any]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Samples:
    """Data on disk, where workers read it."""

    data: Data
    path: Path
    calibration: tuple[int, ...]
    evaluation: tuple[int, ...]
    synthetic: bool


@dataclass(frozen=True)
class Compiled:
    """A recipe, compiled and saved: any number of processes can load it.

    Attributes:
        key: hash of the artefact, the backend with its options and versions, and the target.
        seconds: what the backend's compile step took.
        size: bytes of what was saved.
        resident: the same once it is unpacked, which differs where weights are stored packed.
        facts: what the runtime said it really does.
        reach: how to start a Python on the target that it was compiled for; empty for this machine.
    """

    key: str
    folder: Path
    model: Model
    backend: str
    seconds: float
    size: int
    resident: int
    facts: Mapping[str, Any]
    reach: tuple[str, ...] = ()

    @property
    def python(self) -> list[str] | None:
        """The interpreter it runs in."""
        return list(self.reach) or python_for(self.backend)

    @property
    def patience(self) -> float:
        """How many times as long as here an answer may take."""
        return FAR_PATIENCE if self.reach else 1.0


class Builder:
    """Builds what recipes name.

    Args:
        workspace: where it goes.
        model: the original.
        target: where it is to run.
        backends: by name.
        samples: data on disk, for passes that calibrate.
    """

    def __init__(
        self, workspace: Workspace, model: Model, target: Target, backends: Mapping[str, Backend], samples: Samples
    ) -> None:
        self._workspace, self._model, self._target = workspace, model, target
        self._backends, self._samples = backends, samples
        self._workers: set[Worker] = set()
        self._left: Left = unlimited
        #: What passes had to say about what they did.
        self.notes: list[str] = []

    def artefact(self, steps: Sequence[Step]) -> Model:
        """The model after these passes.

        Raises:
            PortolanError: a pass failed; the failure is kept, so that it is not tried again.
        """
        model, key = self._model, self._model.sha256
        for step in steps:
            key = digest([key, self._step(step)])
            folder, facts = self._remember("artefact", key, partial(self._apply, step, model))
            model = _at(facts, folder)
            self.notes += [note for note in facts["notes"] if note not in self.notes]
        return model

    def failing(self, steps: Sequence[Step]) -> tuple[Step, ...]:
        """The part of a chain, from its start to the pass that is known to fail; empty where none is."""
        key = self._model.sha256
        for i, step in enumerate(steps):
            key = digest([key, self._step(step)])
            failure = self._workspace.ledger.latest("artefact_failed", key)
            if failure is not None and holds(failure):
                return tuple(steps[: i + 1])
        return ()

    def compiled(self, recipe: Recipe) -> Compiled:
        """The recipe, compiled for the target.

        Raises:
            PortolanError: a pass or the compile step failed; the failure is kept.
        """
        model, backend = self.artefact(recipe.passes), self._backends[recipe.backend]
        key = self.compiled_key(recipe, model)
        folder, facts = self._remember("compiled", key, lambda out: self._compile(recipe, model, out))
        reach = python_on(self._target, backend.name) if self._target.reach else None
        return Compiled(
            key, folder, model, backend.name, facts["seconds"], facts["size"], facts["resident"], facts["facts"],
            tuple(reach or ()),
        )  # fmt: skip

    def compiled_key(self, recipe: Recipe, model: Model) -> str:
        """Hash of everything that decides what is compiled and how fast it runs."""
        backend = self._backends[recipe.backend]
        options = backend.schema.check(recipe.options)
        return digest([model.sha256, backend.name, options, backend.versions(), self._target.fingerprint])

    @contextmanager
    def within(self, left: Left) -> Iterator[None]:
        """Builds only while there is time left: `BudgetOver` ends what takes longer, and is not kept as a failure."""
        before, self._left = self._left, left
        try:
            yield
        finally:
            self._left = before

    def stop(self) -> None:
        """Ends whatever is being built."""
        for worker in list(self._workers):
            worker.kill()

    @contextmanager
    def _worker(self, python: list[str] | None) -> Iterator[Worker]:
        with Worker(python=python) as worker:
            self._workers.add(worker)
            try:
                yield worker
            finally:
                self._workers.discard(worker)

    def _step(self, step: Step) -> list[Any]:
        found = registry.pass_(step.name)
        options = found.schema.check(step.options)
        data = None if found.needs(options) == "nothing" else self._samples.data.sha256
        module = found.module(options)
        elsewhere = {} if module is None else {module: interpreters.version(module)}
        return [step.name, options, data, versions_of_passes([step]) | elsewhere, list(self._target.features)]

    def _remember(self, kind: str, key: str, make: Make) -> tuple[Path, dict[str, Any]]:
        """What `make` built or how it failed, now or in an earlier run."""
        failure = self._workspace.ledger.latest(f"{kind}_failed", key)
        if failure is not None and holds(failure):
            if failure.get("cannot"):
                raise CannotHelp(failure["reason"], hint=failure["hint"])
            raise WorkerError(failure["reason"], hint=failure["hint"], stderr=failure.get("log", ""))
        try:
            return self._workspace.build(kind, key, make)
        except PortolanError as error:
            if lasting(error):
                self._workspace.ledger.append(f"{kind}_failed", key, {**told(error), "hint": error.hint})
            raise

    def _apply(self, step: Step, model: Model, out: Path) -> dict[str, Any]:
        found = registry.pass_(step.name)
        options = found.schema.check(step.options)
        needs, module = found.needs(options), found.module(options)
        with self._worker(None if module is None else python_for(module)) as worker, _blamed():
            reply = ask(
                worker,
                "apply",
                timeout=patience(_SECONDS),
                left=self._left,
                name=step.name,
                options=options,
                model=model.to_json(),
                target=self._target.to_json(),
                calibration=None if needs == "nothing" else str(self._samples.path),
                rows=None if needs == "nothing" else list(self._samples.calibration),
                original=self._model.to_json() if needs == "training" else None,
                out=str(out),
            )
        return {"scratch": str(out), **{name: reply.fields[name] for name in ("model", "seconds", "notes")}}

    def _compile(self, recipe: Recipe, model: Model, out: Path) -> dict[str, Any]:
        slow = FAR_PATIENCE if self._target.reach else 1.0
        with self._worker(python_for_compiling(self._target, self._backends[recipe.backend])) as worker:
            reply = ask(
                worker,
                "compile",
                timeout=patience(_SECONDS * slow),
                left=self._left,
                backend=recipe.backend,
                model=model.to_json(),
                target=self._target.to_json(),
                options=dict(recipe.options),
                out=str(out),
            )
        return {name: reply.fields[name] for name in ("seconds", "size", "resident", "facts")}


def lasting(error: PortolanError) -> bool:
    """Whether the same would happen again: not so when something from outside, or the user's request, was the cause."""
    outside = isinstance(error, WorkerCrashed) and error.killed
    request = isinstance(error, UsageError) and not isinstance(error, CannotHelp)
    return not outside and not request and not isinstance(error, (DiskFull, NoResult, EnvironmentGone))


@contextmanager
def _blamed() -> Iterator[None]:
    """What a pass cannot do with a model is the recipe's failure; whoever asked for it by name still reads it whole."""
    try:
        yield
    except UsageError as error:
        raise CannotHelp(error.message, hint=error.hint, where=error.where) from error


def told(error: PortolanError) -> dict[str, Any]:
    """A failure as the ledger keeps it: the reason, the end of what was printed, and the limits if one was hit."""
    found: dict[str, Any] = {"reason": error.message, "log": getattr(error, "stderr", "")[-_LOG:]}
    if isinstance(error, (OutOfMemory, WorkerTimeout)):
        found["limits"] = _limits()
    if isinstance(error, CannotHelp):
        found["cannot"] = True
    return found


def holds(failure: Mapping[str, Any]) -> bool:
    """Whether a kept failure still stands: one for want of memory or time does until the limits change."""
    return failure.get("limits") in (None, _limits())


def _limits() -> list[float]:
    return [default_memory_limit(), patience(_SECONDS)]


def read_model(workspace: Workspace, source: str, shapes: Shapes | None = None) -> Model:
    """The model behind `source`. A front end that needs a framework runs in a worker, once per content.

    Raises:
        UsageError: no such source, or shapes that do not fit.
        ModelError: it cannot be read.
    """
    front_end = frontends.find(source)
    if not front_end.distributions:
        return front_end.load(source, workspace.folder / "models", shapes)
    sizes = {name: list(shape) for name, shape in (shapes or {}).items()}
    python = frontends.interpreter(source)
    key = digest([_content(source), sizes, versions(front_end.distributions, python)])

    def make(out: Path) -> dict[str, Any]:
        return {"model": converted(python, source, out, shapes).to_json(), "scratch": str(out)}

    folder, facts = workspace.build("models", key, make)
    return _at(facts, folder)


def converted(
    python: list[str] | None, source: str, out: Path, shapes: Shapes | None = None, name: str | None = None
) -> Model:
    """What the front end of `source` makes of it in a worker, its files in the folder `out`."""
    sizes = {key: list(shape) for key, shape in (shapes or {}).items()}

    def convert() -> Model:
        with Worker(python=python) as worker:
            reply = worker.ask(
                "convert", timeout=patience(_SECONDS), source=source, out=str(out), shapes=sizes or None, name=name
            )
        return Model.from_json(reply.fields["model"])

    return once_more(convert)


def once_more(work: Callable[[], Result]) -> Result:
    """Does `work`; a second time if its process was killed, for SIGKILL comes from outside."""
    try:
        return work()
    except WorkerCrashed as error:
        if not error.killed:
            raise
    return work()


def _content(source: str) -> list[str]:
    """Hash of the file behind `FILE` or `FILE.py:FUNCTION`, or of every file of a folder, and the function."""
    name, _, function = source.partition(":")
    path = Path(name)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return [digest([[str(p.relative_to(path)), sha256(p)] for p in files]), function]
    return [sha256(path) if path.is_file() else name, function]


def _at(facts: Mapping[str, Any], folder: Path) -> Model:
    """The model that `facts` describe, where its files are now: they were written to a folder that was then renamed."""
    before = Path(facts["scratch"])

    def move(text: str | None) -> str | None:
        path = None if text is None else Path(text)
        inside = path is not None and before in path.parents
        return str(folder / path.relative_to(before)) if path is not None and inside else text

    model = facts["model"]
    return Model.from_json({**model, "path": move(model["path"]), "program": move(model["program"])})


def versions_of_passes(steps: Sequence[Step]) -> dict[str, str]:
    """The version of everything that decides what these passes give."""
    return versions([name for step in steps for name in registry.pass_(step.name).distributions])


def versions(distributions: Sequence[str], python: Sequence[str] | None = None) -> dict[str, str]:
    """The version of Portolan and of each distribution, here or in the interpreter `python`."""
    if python is not None:
        return {"portolan": __version__, **interpreters.versions(python, distributions)}
    found = {"portolan": __version__}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found
