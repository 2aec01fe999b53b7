"""Who runs what fastest: `python benchmarks/race_runtimes.py ZOO [NAME...] [--prepare] [--write]`.

ZOO is the folder that `python benchmarks/models.py ZOO` fills; a gradient-boosted tree is made here. For each model,
with whatever backends and environments are there (`portolan doctor`), in two steps:

    --prepare   every backend compiles the model and answers, each within five minutes; peers' files are made. Other
                work may run meanwhile: nothing is timed but to leave out what is hopeless.
    without     each is timed alone for a moment, and what takes three times as long as the fastest is out; `optimize`
                searches the others, with the passes that leave answers alone; then one interleaved race sets what it
                chose against every backend with the untouched model, at its best options in that search, and against
                peers' defaults of the same fidelity, over fresh processes. This wants a machine that does nothing else.

The answer must not be slower than any of them beyond the noise. Results go to ZOO/runtimes.json model by model: what
is there is not raced again (`--again` does). `--write` puts the table of who wins where into
docs/reference/who-wins-where.md. Exits 1 where the answer is slower than a backend or a peer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import portolan
import race_page
import race_peers
from portolan.core import registry
from portolan.core.data import timed
from portolan.core.model import Model
from portolan.core.recipe import Recipe
from portolan.core.silence import silence
from portolan.errors import PortolanError
from portolan.measure.race import Arm, race
from portolan.measure.result import MIN_STARTS
from portolan.study.builder import Builder, read_model
from portolan.study.optimize import read_samples
from portolan.study.probe import Session, judge
from portolan.study.workspace import Workspace
from portolan.targets.local import local
from portolan.units import parse
from portolan.worker.environments import backends as find_backends
from race_page import ANSWER

MODELS = ("resnet50", "mobilenetv2", "vit", "bert", "gpt2", "minilm", "lstm", "trees")
BASE = "onnxruntime"
#: Samples: speed needs few, and slow runtimes answer for each of them; a quarter calibrates, for which `trim` wants 8.
ROWS = 40
#: How far an output may be from the untouched model's on ONNX Runtime, over its root mean square.
EXACT = 1e-3
#: How many times the fastest's time keeps a backend out: compiled beside other work, which slows some runtimes by ten;
#: timed alone before the search; and timed by the search before the race.
HOPELESS, SLOW, BEATEN = 40.0, 3.0, 2.0
#: Seconds of the warm-up of each process of the race.
WARM_UP = 0.5
#: Most starts of each arm: from start to start one runtime differs by more than the best five do from each other.
STARTS = 20
#: Seconds that a backend may take for one step: compile, load, answer.
PATIENCE = 300


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--budget", default="3min", help="of each search")
    parser.add_argument("--race", default="4min", help="of each race")
    parser.add_argument("--prepare", action="store_true", help="only compile, and leave out what is far too slow")
    parser.add_argument("--again", action="store_true", help="race models that are in runtimes.json too")
    parser.add_argument("--write", action="store_true", help="write the table into the docs")
    given = parser.parse_args()
    if unknown := set(given.names) - set(MODELS):
        parser.error(f"no model named {', '.join(sorted(unknown))}: known are {', '.join(MODELS)}")
    os.environ.setdefault("PORTOLAN_WORKER_TIMEOUT", str(PATIENCE))
    silence()
    kept = given.zoo / "runtimes.json"
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    for name in given.names or ([] if given.write else MODELS):
        begin = time.monotonic()
        if given.prepare or not prepared(name, given.zoo).is_file():
            prepare(name, given.zoo)
        if not given.prepare and (name not in rows or given.again):
            rows[name] = measured(name, given.zoo, given.budget, given.race)
            kept.write_text(json.dumps(rows, indent=1))
        print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
        if name in rows and not given.prepare:
            race_page.show(name, rows[name])
    if given.write:
        print(f"wrote {race_page.write(rows, MODELS)}")
    return int(any(race_page.slower(row) for row in rows.values()))


class Task:
    """One model with what its steps need; the study's folder keeps what was compiled."""

    def __init__(self, name: str, zoo: Path) -> None:
        self.source, self.data = model(name, zoo)
        self.study = zoo / f"study-runtimes-{name}"
        self.workspace, self.target = Workspace(self.study), local.detect()
        self.model = read_model(self.workspace, self.source)
        self.samples = read_samples(self.data, self.model, self.study, 0, None, self.source)
        ready = {row["name"]: row["version"] for row in portolan.doctor().backends if row["ready"]}
        self.versions = {n: version for n, version in ready.items() if registry.backend(n).offered and real(n)}
        self.backends = find_backends(self.target, list(self.versions))
        self.feeds = timed(self.samples.data, self.samples.evaluation, self.model.signature)

    def session(self, backend: str, options: Mapping[str, Any], changed: Model | None = None) -> Session:
        """A fresh process of the model, or of a `changed` one, on a backend.

        Raises:
            PortolanError: the backend refuses it, or it does not compile, load or run.
        """
        return self.started(Recipe((), backend, options, self.target.id), changed)

    def started(self, recipe: Recipe, changed: Model | None = None) -> Session:
        """A fresh process of a recipe; raises as `session` does."""
        graph = changed or self.model
        if why := self.backends[recipe.backend].refuse(graph, self.target):
            raise PortolanError(why)
        return Session(
            Builder(self.workspace, graph, self.target, self.backends, self.samples).compiled(recipe), self.feeds
        )


def exact() -> list[str]:
    """The passes that leave answers alone."""
    found = map(registry.pass_, registry.PASSES.names())
    return [one.name for one in found if not one.lossy(one.schema.check({}))]


def real(backend: str) -> bool:
    """Whether times of a backend mean anything: not where its hardware is simulated."""
    return not registry.backend(backend).simulated


def prepared(name: str, zoo: Path) -> Path:
    """What `prepare` found out."""
    return zoo / f"runtimes-{name}.json"


def prepare(name: str, zoo: Path) -> None:
    """Compiles the model for every backend, makes the peers' files, and finds out who answers right and how fast."""
    task = Task(name, zoo)
    peers, out = race_peers.make(name, zoo, Path(task.model.path))
    right = answers(task.session(BASE, {}), task)
    times, _, failures = timed_alone(task, starts_of(task, task.versions, peers), right)
    best = min(times.values())
    for one, ms in times.items():
        if ms > HOPELESS * best:
            failures[one] = f"more than {HOPELESS:.0f} times as slow as the fastest when it was compiled"
    found = {"out": out | failures, "versions": task.versions, "peers": {n: str(p) for n, p in peers.items()}}
    prepared(name, zoo).write_text(json.dumps(found, indent=1))
    task.workspace.close()


def starts_of(task: Task, names: Iterable[str], peers: Mapping[str, Path]) -> dict[str, Callable[[], Any]]:
    """What starts a process of each backend at its defaults, and of each peer."""
    backends = {one: partial(task.session, one, {}) for one in sorted(names)}
    return backends | {one: partial(race_peers.session, one, file, task) for one, file in peers.items()}


def timed_alone(
    task: Task, starts: Mapping[str, Callable[[], Any]], right: Mapping[str, np.ndarray]
) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """Milliseconds of an inference of each, one after the other; the seconds that each took; why others gave none."""
    times: dict[str, float] = {}
    seconds: dict[str, float] = {}
    failures: dict[str, str] = {}
    for one, start in starts.items():
        begin = time.monotonic()
        try:
            times[one] = tried(start(), task, right)
        except PortolanError as error:
            failures[one] = error.message
        told = failures.get(one) or f"{times[one]:.3g} ms"
        seconds[one] = time.monotonic() - begin
        print(f"{one:16} {seconds[one]:6.1f} s  {told[:160]}", flush=True)
    return times, seconds, failures


def fitting(times: Mapping[str, float], seconds: Mapping[str, float], chosen: str, budget: float) -> list[str]:
    """Who races: the slowest stay out where five starts of all would not fit, and below five nothing can be claimed.

    Args:
        times: milliseconds of an inference.
        seconds: of a start and a few inferences.
        chosen: who races in any case, and twice.
        budget: seconds of the race.
    """
    left = sorted(times, key=lambda one: (one != chosen, times[one]))
    while len(left) > 2 and MIN_STARTS * (_cost(seconds[chosen]) + sum(_cost(seconds[one]) for one in left)) > budget:
        left.pop()
    return left


def _cost(seconds: float) -> float:
    return seconds + WARM_UP


def answers(session: Any, task: Task) -> dict[str, np.ndarray]:
    """Outputs for a few samples, one after the other."""
    try:
        found = [session.answer(feed) for feed in task.feeds]
    finally:
        session.close()
    return {name: np.stack([one[name] for one in found]) for name in found[0]}


def tried(session: Any, task: Task, right: Mapping[str, np.ndarray]) -> float:
    """Milliseconds of an inference, the best of a short block.

    Raises:
        PortolanError: it fails, or its answers are others.
    """
    try:
        block = session.block(0.2)
        found = [session.answer(feed) for feed in task.feeds]
    finally:
        session.close()
    mine = {name: np.stack([one[name] for one in found]) for name in right}
    error = judge(mine, dict(right), None, None, task.model.signature.outputs)["max_rel_error"].value
    if not error <= EXACT:
        raise PortolanError(f"its answers are off by {error:.2g} of the untouched model's")
    return float(block.min())


def measured(name: str, zoo: Path, budget: str, seconds: str) -> dict[str, Any]:
    """The search over the backends that are left, and the race."""
    task, known = Task(name, zoo), json.loads(prepared(name, zoo).read_text())
    out = dict(known["out"])
    peers = {one: Path(file) for one, file in known["peers"].items() if one not in out}
    names = [one for one in task.versions if one not in out]
    right = answers(task.session(BASE, {}), task)
    times, spent, failures = timed_alone(task, starts_of(task, names, peers), right)
    out |= failures
    beaten = {one: ms for one, ms in times.items() if ms > SLOW * min(times.values()) and one != BASE}
    names = [one for one in names if one in times and one not in beaten]
    told = portolan.optimize(
        task.source, goals=["min latency_p50"], data=task.data, study=task.study, budget=budget, backend=names,
        passes=exact(), progress=say,
    ).to_json()  # fmt: skip
    answer = told["best"] or told["baseline"]
    recipe = Recipe.from_json(answer["recipe"])
    untouched = [one for one in told["trials"] if not one["recipe"]["passes"]]
    best = best_of_each(untouched)
    chosen = ANSWER if recipe.passes else recipe.backend
    best |= {chosen: answer}
    spent[chosen] = spent[recipe.backend]
    out |= failed(untouched, names, best)
    # What the search did not come to runs with its defaults.
    known_times = times | {one: latency(trial) for one, trial in best.items()}
    fastest = min(ms for one, ms in known_times.items() if one != ANSWER)
    beaten |= {one: ms for one, ms in known_times.items() if ms > BEATEN * fastest}
    given = {one: best[one]["recipe"]["options"] if one in best else {} for one in names}
    wanted = {one: ms for one, ms in known_times.items() if one not in beaten and one not in out}
    racing = fitting(wanted, spent, chosen, parse(seconds, "time"))
    beaten |= {one: ms for one, ms in wanted.items() if one not in racing}
    options = {one: values for one, values in given.items() if one in racing}
    starts: dict[str, Any] = {one: partial(task.session, one, values) for one, values in options.items()}
    starts |= {chosen: partial(task.started, recipe)}
    starts |= {one: partial(race_peers.session, one, peers[one], task) for one in racing if one in peers}
    outcome = race(
        [Arm(one, start) for one, start in starts.items()],
        baseline=chosen, starts=STARTS, warm_up=WARM_UP, deadline=time.monotonic() + parse(seconds, "time"),
        rng=np.random.default_rng(0), progress=say,
    )  # fmt: skip
    task.workspace.close()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "host": race_page.host(),
        "budget": [budget, seconds],
        "seconds": told["seconds"],
        "versions": task.versions,
        "chosen": chosen,
        "recipe": answer["recipe"],
        "times": {one: arm.metrics()["latency_p50"].to_json() for one, arm in outcome.arms.items()},
        "ratios": [outcome.ratio(one, chosen).to_json() for one in outcome.arms if one != chosen],
        "noise": outcome.noise.to_json(),
        "beaten": beaten,
        "out": out | outcome.failures,
    }


def say(line: str) -> None:
    """Progress, as it comes."""
    print(line, file=sys.stderr, flush=True)


def latency(trial: Mapping[str, Any]) -> float:
    """Median milliseconds of a trial."""
    return float(trial["metrics"]["latency_p50"]["value"])


def best_of_each(trials: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Per backend, the fastest of its trials."""
    found: dict[str, Mapping[str, Any]] = {}
    for trial in trials:
        name = trial["recipe"]["backend"]
        if trial["status"] != "ok" or not trial["met"] or "latency_p50" not in trial["metrics"]:
            continue
        if name not in found or latency(trial) < latency(found[name]):
            found[name] = trial
    return found


def failed(trials: Iterable[Mapping[str, Any]], names: Iterable[str], best: Mapping[str, Any]) -> dict[str, str]:
    """Per backend of which no trial is in order, why its defaults failed."""
    reasons: dict[str, str] = {}
    for trial in trials:
        name = trial["recipe"]["backend"]
        if name in names and name not in best and trial["status"] == "failed" and trial.get("reason"):
            reasons.setdefault(name, trial["reason"])
    return reasons


def model(name: str, zoo: Path) -> tuple[str, str]:
    """What `optimize` reads, and its data: the torch program where there is one, since some backends start from it."""
    if name == "trees":
        return trees(zoo)
    program, graph, data = (zoo / f"{name}.{end}" for end in ("pt2", "onnx", "npz"))
    few = zoo / f"runtimes-{name}.npz"
    if not few.is_file():
        with np.load(data) as arrays:
            np.savez(few, **{key: arrays[key][:ROWS] for key in arrays.files})
    return str(program if program.is_file() else graph), str(few)


def trees(zoo: Path) -> tuple[str, str]:
    """A gradient-boosted tree of 200 rounds on 30 features, through the front end of scikit-learn."""
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    path, data = zoo / "trees.onnx", zoo / "trees.npz"
    if not (path.is_file() and data.is_file()):
        rows = np.random.default_rng(0).standard_normal((4000, 30)).astype(np.float32)
        labels = (rows[:, :6].prod(axis=1) + rows[:, 6] > 0).astype(int)
        fitted = make_pipeline(StandardScaler(), GradientBoostingClassifier(n_estimators=200, random_state=0))
        made = portolan.load(fitted.fit(rows, labels), out=zoo, name="trees")
        np.savez(data, **{made.signature.inputs[0].name: rows[:256]})
    return str(path), str(data)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PortolanError as error:
        sys.exit(f"{error.message}\nhint: {error.hint}")
