"""`optimize`: from a model and goals to a study, resumed where an earlier run of the same command stopped."""

from __future__ import annotations

import datetime
import json
import shlex
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portolan.core.analysis import analyse
from portolan.core.backend import Backend
from portolan.core.data import generate, load_data, save_npz
from portolan.core.frontend import Shapes
from portolan.core.goal import Goals
from portolan.core.model import Model
from portolan.core.recipe import Recipe, digest
from portolan.core.serving import sizes_up_to
from portolan.core.target import Target
from portolan.errors import Interrupted, UsageError
from portolan.frontends.demo import demo_data, is_demo
from portolan.measure import profile
from portolan.measure.environment import Ticks, environment, ticks
from portolan.measure.metric import load_metric
from portolan.search.serving import check_pinned, tightest
from portolan.search.space import DEFAULT_BACKEND, Candidate, candidates, describe
from portolan.study import memory, payoffs
from portolan.study.budget import Budget, Spending
from portolan.study.builder import Samples, read_model
from portolan.study.conclude import best_of, closest_of, ratios, settle
from portolan.study.runner import Progress, Runner
from portolan.study.served import CLAIMED, TRIED, Served
from portolan.study.study import Study
from portolan.study.task import Task
from portolan.study.trial import Trial
from portolan.study.untimed import goals_for, hazards, only_what_differs, told
from portolan.study.untimed import runner as run_by
from portolan.study.wanted import about_serving, checked_price, is_served
from portolan.study.workspace import Workspace, explained
from portolan.targets._added import find
from portolan.worker.environments import backends as find_backends

_SYNTHETIC = 64
#: The share of the budget that the search for recipes leaves to what comes after it: the race, or the loads.
_RESERVE, _RESERVED = 0.25, 0.55


@dataclass(frozen=True)
class Settings:
    """What the user asked for, as given."""

    model: str
    goals: Sequence[str] = ()
    data: str | None = None
    metric: str | None = None
    shapes: Shapes | None = None
    study: str | None = None
    backend: Sequence[str] | None = None
    passes: Sequence[str] | None = None
    recipe: str | Mapping[str, Any] | None = None
    budget: str | None = None
    jobs: int = 1
    seed: int = 0
    target: str = "local"
    price: str | None = None

    @property
    def command(self) -> str:
        """The command line that asks for the same, less what decides nothing."""
        words = ["portolan", "optimize", self.model]
        for goal in self.goals:
            words += ["-g", goal]
        for flag in ("data", "metric", "study", "price"):
            if getattr(self, flag):
                words += [f"--{flag}", getattr(self, flag)]
        for name, shape in (self.shapes or {}).items():
            words += ["--shapes", f"{name}:{'x'.join(map(str, shape))}"]
        for flag in ("backend", "passes"):
            if getattr(self, flag):
                words += [f"--{flag}", ",".join(getattr(self, flag))]
        words += [] if self.target == "local" else ["-t", self.target]
        return shlex.join(words)

    @property
    def asked(self) -> dict[str, Any]:
        """What a later `pack` needs to read the same model and data again, from any folder."""
        return {
            "model": _absolute(self.model),
            "data": None if self.data is None else _absolute(self.data),
            "shapes": {name: list(shape) for name, shape in (self.shapes or {}).items()},
            "seed": self.seed,
        }


def _absolute(source: str) -> str:
    path, colon, function = source.partition(":")
    return f"{Path(path).resolve()}{colon}{function}" if Path(path).exists() else source


@dataclass(frozen=True)
class Setting:
    """What the settings mean here: everything read, checked and found."""

    model: Model
    goals: Goals
    target: Target
    samples: Samples
    backends: Mapping[str, Backend]
    space: Sequence[Candidate]
    metric: Any
    flops: float | None
    parameters: int
    key: str
    served: bool
    serving: Mapping[str, Any]
    price: float | None


def optimize(settings: Settings, progress: Progress) -> Study:
    """Searches for the best recipe under the goals; see `portolan.api.optimize`."""
    target = find(settings.target)
    goals = goals_for(settings.goals, target)
    # From here on: reading a model of a framework takes its time.
    price = checked_price(settings.price, goals)
    spending = Spending(Budget.parse(settings.budget), _RESERVED if about_serving(goals) else _RESERVE)
    folder = study_folder(settings)
    with explained(folder), closing(Workspace(folder)) as workspace:
        setting = _read(settings, goals, workspace, price, target)
        kept = workspace.ledger.latest("finished", setting.key)
        if kept is not None:
            progress("answered from the ledger: nothing was measured again")
            return Study(workspace.folder, kept)
        return _search(settings, setting, workspace, spending, progress)


def plan(settings: Settings) -> dict[str, Any]:
    """What `optimize` would try, with nothing written and nothing run (`--dry-run`)."""
    target = find(settings.target)
    goals, budget = goals_for(settings.goals, target), Budget.parse(settings.budget)
    price = checked_price(settings.price, goals)
    with tempfile.TemporaryDirectory(prefix="portolan-plan-") as scratch:
        workspace = Workspace(Path(scratch))
        try:
            setting = _read(settings, goals, workspace, price, target)
        finally:
            workspace.close()
    return {
        "study": str(study_folder(settings)),
        "goals": goals.texts,
        "budget": budget.text,
        **describe(setting.space),
        "serving": describe_serving(setting) if setting.served else None,
    }


def describe_serving(setting: Setting) -> dict[str, Any]:
    """What would be tried of serving, as plain data for `--dry-run`."""
    pinned = setting.serving
    batch = sizes_up_to(profile.LIMIT if isinstance(setting.model.signature.batch, str) else 1)
    usual = {"max_batch": list(batch), "replicas": [1, setting.target.cores], "deadline": tightest(setting.goals)}
    chosen = {name: pinned.get(name, value) for name, value in usual.items()}
    return {"loads": setting.goals.loads, **chosen, "tried": TRIED, "claimed": CLAIMED}


def study_folder(settings: Settings) -> Path:
    """Where the study lies: `--study`, or `study-NAME` in the current folder."""
    if settings.study:
        return Path(settings.study)
    stem = settings.model.rpartition(":")[2] if settings.model.startswith("demo:") else Path(settings.model).stem
    return Path(f"study-{stem or 'model'}")


def _read(settings: Settings, goals: Goals, workspace: Workspace, price: float | None, target: Target) -> Setting:
    model = read_model(workspace, settings.model, settings.shapes)
    samples = read_samples(settings.data, model, workspace.folder, settings.seed, settings.shapes, settings.model)
    _check_quality(goals, samples, settings)
    metric = load_metric(settings.metric) if settings.metric else None
    asked = settings.backend or (read_recipe(settings.recipe).get("backend") if settings.recipe else None)
    names = [asked] if isinstance(asked, str) else asked
    fixed, served = read_recipe(settings.recipe), is_served(goals, model)
    # What is searched later is pinned later: a recipe of one process holds no serving.
    serving = fixed.pop("serving", {}) if served else {}
    found = find_backends(target, None if names is None else list(dict.fromkeys([*names, DEFAULT_BACKEND])))
    space = candidates(
        model,
        target,
        goals,
        passes=settings.passes,
        backends={n: b for n, b in found.items() if (b.offered if names is None else n in names)},
        named=names is not None,
        default=found.get(DEFAULT_BACKEND),
        fixed=fixed,
        has_calibration=bool(samples.calibration),
        payoffs=payoffs.kept(target, found),
    )
    space = only_what_differs(space, found, target, fixed)
    first = {name: array.shape[1:] for name, array in samples.data.inputs.items()}
    analysis = analyse(model, {name: (1, *shape) for name, shape in first.items()})
    versions = {name: backend.versions() for name, backend in sorted(found.items())}
    from portolan import __version__

    key = digest(
        [
            __version__, model.sha256, sorted(goals.texts), samples.data.sha256, samples.synthetic, settings.seed,
            getattr(metric, "sha256", None), target.fingerprint, versions, [c.key for c in space],
            settings.budget, *([serving, price, "served"] if served else []),
        ]
    )  # fmt: skip
    return Setting(
        model, goals, target, samples, found, space, metric, analysis.flops, analysis.parameters, key, served, serving,
        price,
    )  # fmt: skip


def read_samples(
    source: str | None, model: Model, folder: Path, seed: int, shapes: Shapes | None, model_source: str = ""
) -> Samples:
    """The data, divided for good into calibration and evaluation rows, and written where workers can read it."""
    if source is None and is_demo(model_source):
        source = str(demo_data(model_source))
    if source is None:
        data = generate(model.signature, _SYNTHETIC, seed, dict(shapes or {}))
        calibration: tuple[int, ...] = ()
        evaluation = tuple(range(data.rows))
    else:
        data = load_data(source, model.signature)
        parts = data.split()
        calibration, evaluation = tuple(map(int, parts[0])), tuple(map(int, parts[1]))
    path = folder / f"data-{data.sha256[:16]}.npz"
    if not path.is_file():
        save_npz(data, path)
    return Samples(data, path, calibration, evaluation, synthetic=source is None)


def _check_quality(goals: Goals, samples: Samples, settings: Settings) -> None:
    needs_labels = [name for name in goals.metrics if name in ("accuracy", "accuracy_drop")]
    if needs_labels and samples.data.labels is None:
        raise UsageError(
            f"the goal on `{needs_labels[0]}` needs labels, and the data has none",
            hint="give labelled data with --data, or limit `cosine` or `agreement` instead",
        )
    if settings.metric and samples.data.labels is None:
        raise UsageError("`--metric` needs labels, and the data has none", hint="give labelled data with --data")


def read_recipe(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """A recipe from a TOML or JSON file, JSON text, or plain data.

    Raises:
        UsageError: the file cannot be read, or is not a recipe.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    if given.lstrip().startswith("{"):
        data, where = _parse(json.loads, given, "--recipe")
    else:
        try:
            text = Path(given).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the recipe `{given}` cannot be read", hint="give a TOML or JSON file") from error
        data, where = _parse(json.loads if given.endswith(".json") else tomllib.loads, text, given)
    if not isinstance(data, Mapping):
        raise UsageError("a recipe is a table of passes, backend and options", where=where)
    # An empty list of passes is a choice; no options, as a trial's recipe may have them, are none.
    kept = {key: value for key, value in data.items() if (value not in ([], {}) or key == "passes") and key != "target"}
    ranges = [key for key in ("backend", "serving") if key == "serving" or isinstance(kept.get(key), list)]
    Recipe.from_json({k: v for k, v in kept.items() if k not in ranges}, where)
    check_pinned(kept.get("serving", {}), where)
    return kept


def _parse(parser: Callable[[str], Any], text: str, where: str) -> tuple[Any, str]:
    try:
        return parser(text), where
    except ValueError as error:
        raise UsageError(f"the recipe cannot be parsed: {error}", where=where) from error


def _search(
    settings: Settings, setting: Setting, workspace: Workspace, spending: Spending, progress: Progress
) -> Study:
    remembered = memory.Memory()
    task = Task(
        setting.model, setting.target, setting.goals, setting.samples, setting.backends, setting.space,
        remembered.prior(setting.target, setting.space), setting.metric, setting.flops, settings.seed,
        settings.command, setting.served, setting.serving, setting.price,
    )  # fmt: skip
    before = ticks()
    runner = run_by(task, workspace, spending, progress)
    try:
        runner.prepare()
        runner.build_ahead(settings.jobs)
        runner.search()
        runner.race()
        outcome = Served(runner).search() if task.served else None
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped after {len(runner.trials)} trials; all are saved in `{workspace.folder}`",
            hint="repeat the command to go on",
        ) from None
    finally:
        runner.close()
    result = _result(settings, setting, runner, workspace, spending, before)
    result["serving"] = None if outcome is None else outcome.to_json(runner.trials, setting.goals)
    result = told(result, setting.target)
    workspace.ledger.append("finished", setting.key, result)
    if not setting.target.timed:
        return Study(workspace.folder, result)
    if note := remembered.keep(setting.target, setting.model, list(runner.trials.values())):
        progress(note)
    return Study(workspace.folder, result)


def _refusal(candidate: Candidate, workspace: Workspace) -> Trial:
    number = workspace.ledger.number("trial", f"refused {candidate.key}", {"recipe": candidate.recipe.to_json()})
    return Trial(number, candidate.recipe, "refused", candidate.refused)


def _result(
    settings: Settings, setting: Setting, runner: Runner, workspace: Workspace, spending: Spending, before: Ticks | None
) -> dict[str, Any]:
    goals, race = setting.goals, runner.outcome
    refused = [_refusal(c, workspace) for c in setting.space if c.refused is not None]
    tried = settle(sorted(runner.trials.values(), key=lambda t: t.id), goals)
    baseline = next(t for t in tried if t.recipe.key == runner.task.live[0].key)
    best = best_of(tried, goals, baseline, race)
    closest = None if best else closest_of(tried, goals)
    samples = setting.samples
    return {
        "study": str(workspace.folder),
        "name": setting.model.name,
        "command": settings.command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "goals": goals.texts,
        "met": best is not None,
        "baseline": baseline.to_json(),
        "best": None if best is None else best.to_json(),
        "closest": None if closest is None else closest.to_json(),
        "trials": [t.to_json() for t in (*tried, *refused)],
        "skipped": runner.skipped,
        "untried": runner.untried,
        "seconds": round(spending.seconds, 2),
        "first_seconds": runner.first_seconds,
        "measurements": sum(len(t.metrics) for t in tried),
        "model": {
            key: value for key, value in setting.model.to_json().items() if key not in ("path", "program", "features")
        }
        | {"flops": setting.flops, "parameters": setting.parameters},
        "target": setting.target.to_json(),
        "environment": environment(before),
        "noise": race.noise.to_json() if race is not None else None,
        "ratios": ratios(race, baseline, {t.recipe.key: t.id for t in tried}),
        "data": {
            "rows": samples.data.rows,
            "calibration": len(samples.calibration),
            "evaluation": len(samples.evaluation),
            "labels": samples.data.labels is not None,
            "synthetic": samples.synthetic,
            "sha256": samples.data.sha256,
        },
        "samples": {str(t.id): [list(start) for start in t.samples] for t in tried if t.samples},
        "price": None if setting.price is None else {"usd_per_hour": setting.price, "source": "--price"},
        "asked": settings.asked,
        "notes": [] if best is None else hazards(runner.artefact(best), setting.target),
    }
