"""Records every trial of the spaces of some models: `python benchmarks/record_table.py NAME MODEL...`

MODEL is `demo:digits`, or a file that benchmarks/models.py made, `FOLDER/NAME.onnx` or `.pt2` (with torch's backend);
samples are read from the `.npz` beside it. Writes benchmarks/tables/NAME.jsonl, one line per trial, which
benchmarks/search.py replays. Everything that was measured is kept line by line in WORK/NAME.events, so a repeated
command goes on where the last one was (start with an empty WORK after an update of a runtime). Run it on a machine
that does nothing else: about 10 s per trial, 40 to 70 trials per model.

Per trial: `artefact` (the passes, once per chain), `build` (compile), `judge` (outputs against the original's, once
per arithmetic), a screening of 0.3 s in one process start, and a long reading: the median of several starts that are
taken in rounds over all trials in random order. Like in a study, every block is timed between two of the untouched
model, which stays loaded, and scaled by how that one did, so that a drift of the machine cancels out. What may be the
best is then started several times more: small models settle into one of two speeds as they are loaded, so three starts
cannot say which of two recipes is 2 % faster. That last reading is the truth that picks are judged by.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from portolan import frontends
from portolan.core.data import Data, generate, load_data, sample, save_npz
from portolan.core.goal import parse_goals
from portolan.core.measurement import Measurement
from portolan.core.model import Model
from portolan.core.recipe import digest
from portolan.core.registry import BACKENDS, PASSES, TARGETS, backend, pass_
from portolan.errors import PortolanError
from portolan.frontends.demo import demo_data, is_demo
from portolan.measure.lock import measuring
from portolan.measure.quality import compare
from portolan.search.space import Candidate, candidates
from portolan.study.pace import Pace
from portolan.worker import Worker
from portolan.worker.environments import python_for

TABLES = Path(__file__).parent / "tables"
TIMEOUT = 900.0
FEEDS = 8
#: Blocks of one start of a long reading.
BLOCKS = 4
#: How many of all trials, and of the exact ones, are started further times.
CONTENDERS = 10
ANYTHING = parse_goals(["cosine >= -1", "min latency_p50"])
Event = dict[str, Any]


class Events:
    """Results by key, appended to a file as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Event] = {}
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines:
            try:
                data = json.loads(line)
            except ValueError:  # the last line of a run that was killed
                continue
            self._known[data["key"]] = data["value"]

    def once(self, key: str, make: Callable[[], Event]) -> Event:
        """What `make` gave under `key`, now or earlier; a failure is a result as well."""
        if key not in self._known:
            try:
                value = make()
            except PortolanError as error:
                value = {"failure": str(error).splitlines()[0]}
            with self._path.open("a") as file:
                file.write(json.dumps({"key": key, "value": value}) + "\n")
            self._known[key] = value
        return self._known[key]

    def known(self, key: str) -> Event | None:
        """What was kept under `key`; None if nothing was."""
        return self._known.get(key)


class Loaded:
    """A worker with a loaded recipe and its inputs."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def block(self, seconds: float) -> np.ndarray:
        """Milliseconds of each inference of a block of about `seconds`."""
        reply = self._worker.ask("time", timeout=TIMEOUT, seconds=seconds, min_runs=5)
        return np.asarray(reply.tensors["ns"] / 1e6)

    def close(self) -> None:
        """Ends the process."""
        self._worker.close()


class Recorder:
    """Records one model."""

    def __init__(self, source: str, work: Path, events: Events, arguments: argparse.Namespace) -> None:
        self.target = TARGETS.get("local").detect()
        self.name = source.removeprefix("demo:") if is_demo(source) else Path(source).stem
        self.work = work / self.name
        self.work.mkdir(parents=True, exist_ok=True)
        self.model: Model = frontends.load(source, out=self.work / "model")
        self.data = self._samples(source)
        self.npz = save_npz(self.data, self.work / "data.npz")
        self.calibration, evaluation = self.data.split()
        self.evaluation = evaluation[: arguments.judged]
        self.events, self.arguments = events, arguments
        found = candidates(
            self.model, self.target, ANYTHING, has_calibration=True, backends=arguments.backends, refused_too=False,
            passes=arguments.passes,
        )  # fmt: skip
        self.candidates: list[Candidate] = drawn(found, arguments.most or len(found))
        self.original: dict[str, np.ndarray] | None = None
        self._pace: Pace | None = None

    def _samples(self, source: str) -> Data:
        beside = demo_data(source) if is_demo(source) else Path(source).with_suffix(".npz")
        if beside.exists():
            return load_data(beside, self.model.signature)
        return generate(self.model.signature, 64, 0)

    def record(self) -> list[Event]:
        """One line per candidate."""
        for i, candidate in enumerate(self.candidates):
            self.note(f"{i + 1}/{len(self.candidates)} {candidate.recipe.backend} {candidate.recipe}")
            if self.failure(candidate) is None:
                self.stage(candidate, "screen", lambda c=candidate: self.screen(c))
        good = [c for c in self.candidates if self.failure(c) is None]
        self.rounds(good, range(self.arguments.starts))
        last = self.arguments.starts + self.arguments.settle
        self.rounds(self.contenders(good), range(self.arguments.starts, last))
        if self._pace is not None:
            self._pace.close()
        return [self.line(candidate) for candidate in self.candidates]

    def rounds(self, candidates: Sequence[Candidate], turns: range) -> None:
        """One start of each candidate per turn, in random order."""
        for turn in turns:
            order = list(candidates)
            random.Random(f"{self.name} {turn}").shuffle(order)
            for i, candidate in enumerate(order):
                self.note(f"start {turn + 1}/{turns.stop}, {i + 1}/{len(order)}")
                self.stage(candidate, f"start {turn}", lambda c=candidate: self.start(c, self.arguments.seconds))

    def contenders(self, good: Sequence[Candidate]) -> list[Candidate]:
        """The fastest by their long readings: of all, and of those that keep the arithmetic."""
        turns = range(self.arguments.starts)
        reads = {c.key: [self.stage(c, f"start {t}", dict) for t in turns] for c in good}
        middles = {key: long_reading(starts).value for key, starts in reads.items() if all("ms" in s for s in starts)}
        ranked = sorted((c for c in good if c.key in middles), key=lambda c: middles[c.key])
        chosen = [*ranked[:CONTENDERS], *[c for c in ranked if c.exact][:CONTENDERS]]
        return [c for c in ranked if c in chosen]

    def note(self, text: str) -> None:
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    # --- stages

    def stage(self, candidate: Candidate, name: str, make: Callable[[], Event]) -> Event:
        return self.events.once(f"{self.model.sha256[:12]} {name} {candidate.key}", make)

    def failure(self, candidate: Candidate) -> str | None:
        """Builds and judges the candidate; why it is of no use, or None."""
        for event in (self.artefact(candidate), self.build(candidate), self.judge(candidate)):
            if "failure" in event:
                return str(event["failure"])
        return None

    def artefact(self, candidate: Candidate) -> Event:
        """The model after the candidate's passes."""
        key = f"{self.model.sha256[:12]} artefact {candidate.recipe.chain}"
        return self.events.once(key, lambda: self._apply(candidate))

    def _apply(self, candidate: Candidate) -> Event:
        model, seconds = self.model, 0.0
        for i, step in enumerate(candidate.recipe.passes):
            calibrates = pass_(step.name).needs(step.options) == "calibration"
            out = self._folder(f"artefact-{candidate.recipe.chain}-{i}")
            begin = time.perf_counter()
            with Worker() as worker:
                reply = worker.ask(
                    "apply", timeout=TIMEOUT, name=step.name, options=dict(step.options), model=model.to_json(),
                    target=self.target.to_json(), calibration=str(self.npz) if calibrates else None,
                    rows=self.calibration if calibrates else None, out=str(out),
                )  # fmt: skip
            model = Model.from_json(reply.fields["model"])
            seconds += time.perf_counter() - begin
        return {"model": model.to_json(), "seconds": seconds}

    def build(self, candidate: Candidate) -> Event:
        """The candidate, compiled."""
        return self.stage(candidate, "build", lambda: self._build(candidate))

    def _build(self, candidate: Candidate) -> Event:
        recipe, out = candidate.recipe, self._folder(f"compiled-{candidate.key}")
        begin = time.perf_counter()
        with Worker(python=python_for(recipe.backend)) as worker:
            reply = worker.ask(
                "compile", timeout=TIMEOUT, backend=recipe.backend, model=self.artefact(candidate)["model"],
                target=self.target.to_json(), options=dict(recipe.options), out=str(out),
            )  # fmt: skip
        facts = {"compile": reply.fields["seconds"], "size": reply.fields["size"]}
        return {**facts, "folder": str(out), "seconds": time.perf_counter() - begin}

    def judge(self, candidate: Candidate) -> Event:
        """Quality of the outputs, once per arithmetic."""
        key = f"{self.model.sha256[:12]} judge {candidate.numerics}"
        return self.events.once(key, lambda: self._judge(candidate))

    def _judge(self, candidate: Candidate) -> Event:
        if self.original is None:
            self.original = self._outputs(self.candidates[0])[0]
        outputs, seconds = self._outputs(candidate)
        quality = compare(outputs, self.original, self.model.signature.outputs)
        return {"metrics": {name: m.to_json() for name, m in quality.items()}, "seconds": seconds}

    def _outputs(self, candidate: Candidate) -> tuple[dict[str, np.ndarray], float]:
        begin = time.perf_counter()
        with self._loaded(candidate) as worker:
            inputs = self.model.to_json()["inputs"]
            reply = worker.ask("evaluate", timeout=TIMEOUT, data=str(self.npz), rows=self.evaluation, inputs=inputs)
        return dict(reply.tensors), time.perf_counter() - begin

    def screen(self, candidate: Candidate) -> Event:
        return self.start(candidate, 0.3, 1)

    def start(self, candidate: Candidate, seconds: float, blocks: int = BLOCKS) -> Event:
        """One process start: warmed up for a third of the time, then timed; milliseconds and what it took."""
        pace = self.pace()
        begin = time.perf_counter()
        loaded = Loaded(self._timed(candidate))
        try:
            with measuring():
                loaded.block(seconds / 3)
                ms = np.concatenate([pace.against(loaded, seconds / blocks) for _ in range(blocks)])
        finally:
            loaded.close()
        low, middle, high = np.quantile(ms, [0.25, 0.5, 0.75])
        taken = time.perf_counter() - begin
        return {"ms": [float(middle), float(low), float(high)], "n": len(ms), "seconds": taken}

    def pace(self) -> Pace:
        """The untouched model, kept loaded; every run of this program scales to what the first one saw."""
        if self._pace is None:
            loaded = Loaded(self._timed(self.candidates[0]))
            usual = self.events.once(
                f"{self.model.sha256[:12]} usual", lambda: {"ms": float(np.median(loaded.block(3.0)))}
            )
            self._pace = Pace(loaded, usual["ms"])
        return self._pace

    def _timed(self, candidate: Candidate) -> Worker:
        worker = self._loaded(candidate)
        try:
            feeds = [sample(self.data, row, self.model.signature) for row in self.evaluation[:FEEDS]]
            tensors = {f"{i}/{name}": array for i, feed in enumerate(feeds) for name, array in feed.items()}
            worker.ask("inputs", timeout=TIMEOUT, tensors=tensors, count=len(feeds))
        except BaseException:
            worker.close()
            raise
        return worker

    def _loaded(self, candidate: Candidate) -> Worker:
        worker = Worker(python=python_for(candidate.recipe.backend))
        try:
            worker.ask("load", timeout=TIMEOUT, folder=self.build(candidate)["folder"])
        except PortolanError:
            worker.close()
            raise
        return worker

    def _folder(self, name: str) -> Path:
        """A new empty folder: an earlier run may have been killed while it wrote."""
        for i in range(1000):
            path = self.work / f"{name}-{i}"
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            return path
        raise SystemExit(f"`{self.work}` is full of `{name}`: delete it")

    # --- the result

    def line(self, candidate: Candidate) -> Event:
        """One line of the table."""
        failure = self.failure(candidate)
        artefact, build, judge = self.artefact(candidate), self.build(candidate), self.judge(candidate)
        seconds = {
            "artefact": artefact.get("seconds", 0.0), "build": build.get("seconds", 0.0),
            "judge": judge.get("seconds", 0.0),
        }  # fmt: skip
        metrics: dict[str, Event] = {}
        if failure is None:
            screen = self.stage(candidate, "screen", lambda: {"failure": "not run"})
            turns = range(self.arguments.starts)
            starts = [self.stage(candidate, f"start {t}", lambda: {"failure": "not run"}) for t in turns]
            failure = next((str(e["failure"]) for e in (screen, *starts) if "failure" in e), None)
        if failure is None:
            still = {
                "size": Measurement.of("size", build["size"]),
                "compile_time": Measurement.of("compile_time", 1000 * build["compile"]),
            }
            metrics = {
                "0": jsons({**still, "latency_p50": screening(screen)}),
                "1": jsons({**still, "latency_p50": long_reading(starts)}),
                "quality": judge["metrics"],
            }
            seconds |= {"0": screen["seconds"], "1": sum(e["seconds"] for e in starts)}
            if settled := self.settled(candidate):
                metrics["truth"] = jsons({**still, "latency_p50": long_reading([*starts, *settled])})
        return {
            "model": self.name, "recipe": candidate.recipe.to_json(), "exact": candidate.exact,
            "heavy": candidate.heavy, "failure": failure, "metrics": metrics,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
        }  # fmt: skip

    def settled(self, candidate: Candidate) -> list[Event]:
        """The further starts of a contender; empty for the others."""
        turns = range(self.arguments.starts, self.arguments.starts + self.arguments.settle)
        keys = [f"{self.model.sha256[:12]} start {turn} {candidate.key}" for turn in turns]
        found = [event for key in keys if (event := self.events.known(key)) is not None]
        return found if all("ms" in event for event in found) else []

    def about(self) -> Event:
        """Where and with what this was recorded."""
        versions: dict[str, str] = {}
        for name in sorted({c.recipe.backend for c in self.candidates}):
            versions |= backend(name).versions()
        target = {key: getattr(self.target, key) for key in ("fingerprint", "kind", "arch", "cores", "display")}
        return {"target": {**target, "features": list(self.target.features)}, "versions": versions}


def drawn(found: Sequence[Candidate], most: int) -> list[Candidate]:
    """A part of a space: all that keeps the arithmetic, a case of its own, and others at random, always the same."""
    first = [c for i, c in enumerate(found) if c.exact or c.recipe.backend not in {x.recipe.backend for x in found[:i]}]
    others = [c for c in found if c not in first]
    chosen = {c.key for c in random.Random(0).sample(others, max(0, min(most - len(first), len(others))))}
    return [c for c in found if c in first or c.key in chosen]


def screening(event: Event) -> Measurement:
    """A short reading. Its interval is what one start can say: the quartiles, and 5 % between starts."""
    middle, low, high = event["ms"]
    return Measurement.of("latency_p50", middle, min(low, 0.95 * middle), max(high, 1.05 * middle), event["n"])


def long_reading(starts: list[Event]) -> Measurement:
    """The median over process starts, with the range of their medians."""
    middles = [event["ms"][0] for event in starts]
    n = sum(event["n"] for event in starts)
    return Measurement.of("latency_p50", statistics.median(middles), min(middles), max(middles), n)


def jsons(metrics: Mapping[str, Measurement]) -> Event:
    return {name: m.to_json() for name, m in metrics.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--work", type=Path, required=True, help="a folder for artefacts, several GB with large models")
    parser.add_argument("--backends", nargs="*", default=None, choices=BACKENDS.names())
    parser.add_argument("--starts", type=int, default=3, help="process starts of a long reading")
    parser.add_argument("--settle", type=int, default=9, help="further starts of what may be the best")
    parser.add_argument("--seconds", type=float, default=1.0, help="time of each")
    parser.add_argument("--judged", type=int, default=64, help="samples that quality is judged on")
    parser.add_argument("--passes", nargs="*", default=None, choices=PASSES.names())
    parser.add_argument("--most", type=int, default=None, help="trials per model, drawn from the whole space")
    parser.add_argument("--tables", type=Path, default=TABLES)
    arguments = parser.parse_args()
    arguments.tables.mkdir(parents=True, exist_ok=True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    events = Events(arguments.work / f"{arguments.name}.events")
    lines: list[Event] = []
    for source in arguments.models:
        work = arguments.work.resolve() / digest([source])
        recorder = Recorder(source, work, events, arguments)
        found = recorder.record()
        lines += [{**found[0], **recorder.about()}, *found[1:]]  # where and with what is said once per model
    path = arguments.tables / f"{arguments.name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    failed = sum(line["failure"] is not None for line in lines)
    print(f"{len(lines)} trials of {len(arguments.models)} models, {failed} of them failed: `{path}`")
    return 0


if __name__ == "__main__":
    sys.exit(main())
