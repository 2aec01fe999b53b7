"""What a worker can be asked to do. Paths are on a file system that both sides see."""

from __future__ import annotations

import contextlib
import gc
import json
import resource
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from portolan.core import registry, storage
from portolan.core.backend import Executable
from portolan.core.data import Data
from portolan.core.data import feeds as data_feeds
from portolan.core.model import Model
from portolan.core.passes import Context
from portolan.core.signature import Signature, TensorSpec
from portolan.core.target import Target
from portolan.errors import UsageError, WorkerError
from portolan.targets._foreign import emulated
from portolan.worker.frames import Frame

Answer = tuple[dict[str, Any], Mapping[str, np.ndarray]]
Feeds = dict[str, np.ndarray]
COMPILED = "compiled.json"


class Operations:
    """The state of one worker: at most one loaded executable, and the inputs to time it with."""

    def __init__(self) -> None:
        self._executable: Executable | None = None
        self._feeds: list[Feeds] = []
        self._data: tuple[str, Feeds] | None = None

    def answer(self, request: Frame) -> Answer:
        """Does what `request` asks for."""
        fields = dict(request.fields)
        name = fields.pop("op", None)
        method: Callable[..., Answer] | None = _OPERATIONS.get(str(name))
        if method is None:
            raise WorkerError(f"a worker cannot do `{name}`")
        return method(self, request.tensors, **fields)

    def hello(self, _: Feeds) -> Answer:
        """Proof of life, and the process's peak memory so far."""
        return {"ready": True}, {}

    def probe(self, _: Feeds, backend: str, target: Mapping[str, Any]) -> Answer:
        """Whether a backend is ready in this interpreter, and its versions."""
        chosen = registry.backend(backend)
        return {"support": asdict(chosen.probe(Target.from_json(target))), "versions": chosen.versions()}, {}

    def detect(self, _: Feeds, name: str) -> Answer:
        """The machine that this process takes itself to be on, as an emulated target called `name`."""
        return {"target": emulated(name).to_json()}, {}

    def compile(
        self, _: Feeds, backend: str, model: Mapping[str, Any], target: Mapping[str, Any],
        options: Mapping[str, Any], out: str,
    ) -> Answer:  # fmt: skip
        """Compiles `model` and saves what `load` needs into the empty folder `out`."""
        chosen = registry.backend(backend)
        checked = chosen.schema.check(options)
        begin = time.perf_counter()
        executable = chosen.compile(Model.from_json(model), Target.from_json(target), **checked)
        seconds = time.perf_counter() - begin
        folder = Path(out)
        executable.save(folder)
        resident = storage.resident(folder)
        about = {"backend": backend, "options": checked, "versions": chosen.versions()}
        (folder / COMPILED).write_text(json.dumps(about, indent=1, sort_keys=True))
        self._executable = executable
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name != COMPILED)
        return {"seconds": seconds, "size": size, "resident": resident, "facts": executable.facts()}, {}

    def load(self, _: Feeds, folder: str) -> Answer:
        """Loads what `compile` saved."""
        about = json.loads((Path(folder) / COMPILED).read_text())
        begin = time.perf_counter()
        self._executable = registry.backend(about["backend"]).load(Path(folder), **about["options"])
        return {"seconds": time.perf_counter() - begin, "facts": self._executable.facts()}, {}

    def inputs(self, tensors: Feeds, count: int = 1) -> Answer:
        """Sets `count` feeds to time with; tensors are named `INDEX/NAME`."""
        feeds: list[Feeds] = [{} for _ in range(count)]
        for key, array in tensors.items():
            index, _, name = key.partition("/")
            feeds[int(index)][name] = np.array(array)
        self._feeds, self._turn = feeds, 0
        return {"count": count}, {}

    def run(self, tensors: Feeds) -> Answer:
        """Runs once on the tensors that came along."""
        begin = time.perf_counter()
        outputs = self._loaded.run(tensors)
        return {"seconds": time.perf_counter() - begin}, outputs

    def time(self, _: Feeds, seconds: float, min_runs: int = 1, max_runs: int = 1_000_000) -> Answer:
        """Runs on the set inputs in turn for about `seconds`; the time of each run in nanoseconds.

        It goes on with the input after the last one: how fast it runs does not decide which inputs it is timed on.
        """
        run, feeds, clock = self._loaded.run, self._timed, time.perf_counter_ns
        samples: list[int] = []
        collecting = gc.isenabled()
        gc.disable()
        try:
            end = clock() + int(seconds * 1e9)
            while len(samples) < max_runs:
                feed = feeds[self._turn % len(feeds)]
                self._turn += 1
                begin = clock()
                run(feed)
                now = clock()
                samples.append(now - begin)
                if now >= end and len(samples) >= min_runs:
                    break
        finally:
            if collecting:
                gc.enable()
        return {}, {"ns": np.array(samples, np.int64)}

    def load_test(self, _: Feeds, callers: int, seconds: float) -> Answer:
        """Runs from `callers` threads at once for about `seconds`; completed runs and the time they took."""
        feeds, begin = self._timed, threading.Barrier(callers + 1)
        counts, failures = [0] * callers, []

        def work(index: int) -> None:
            try:
                call = self._loaded.caller()
                call(feeds[index % len(feeds)])
                begin.wait()
                end = time.perf_counter() + seconds
                while time.perf_counter() < end:
                    call(feeds[(index + counts[index]) % len(feeds)])
                    counts[index] += 1
            except BaseException as error:  # a caller that dies must not leave the others at the barrier
                failures.append(error)
                begin.abort()

        threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(callers)]
        for thread in threads:
            thread.start()
        with contextlib.suppress(threading.BrokenBarrierError):
            begin.wait()
        start = time.perf_counter()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return {"count": sum(counts), "seconds": time.perf_counter() - start}, {}

    def evaluate(self, _: Feeds, data: str, rows: list[int], inputs: list[Mapping[str, Any]]) -> Answer:
        """Outputs for the given samples of an .npz file, first axis the samples.

        Args:
            data: path of the file.
            rows: which samples.
            inputs: the model's inputs, as in `Model.to_json`.
        """
        signature = Signature(tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in inputs), ())
        samples = Data(self._load_data(data), None, "")
        parts: dict[str, list[np.ndarray]] = {}
        for feed, count in data_feeds(samples, rows, signature):
            batch = len(next(iter(feed.values()))) if signature.batch is not None else None
            for name, value in self._loaded.run(feed).items():
                whole = batch is None or value.ndim == 0 or len(value) != batch
                parts.setdefault(name, []).append(np.array(value)[None] if whole else np.array(value[:count]))
        return {}, {name: np.concatenate(values) for name, values in parts.items()}

    def memory(self, _: Feeds) -> Answer:
        """Peak and present resident bytes of this process."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {"peak": peak, "now": pages * resource.getpagesize()}, {}

    def apply(
        self, _: Feeds, name: str, options: Mapping[str, Any], model: Mapping[str, Any],
        target: Mapping[str, Any], calibration: str | None, out: str, rows: list[int] | None = None,
        original: Mapping[str, Any] | None = None,
    ) -> Answer:  # fmt: skip
        """Applies a pass, its files into the folder `out`; with `original`, it trains, and gets the labels too."""
        arrays = labels = None
        if calibration is not None:
            chosen = slice(None) if rows is None else rows
            arrays = {name: array[chosen] for name, array in self._load_data(calibration).items()}
            labels = None if original is None else _labels(calibration, chosen)
        begin = time.perf_counter()
        teacher = None if original is None else Model.from_json(original)
        context = Context(Path(out), Target.from_json(target), arrays, labels, teacher)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            result = registry.pass_(name)(Model.from_json(model), context, **options)
        notes = [str(w.message) for w in said if w.category is UserWarning and str(w.message).startswith(f"`{name}`")]
        return {"model": result.to_json(), "seconds": time.perf_counter() - begin, "notes": notes}, {}

    def convert(
        self, _: Feeds, source: str, out: str, shapes: Mapping[str, list[int | str]] | None, name: str | None = None
    ) -> Answer:
        """Reads a model of any framework through its front end."""
        from portolan import frontends

        sized = {name: tuple(shape) for name, shape in shapes.items()} if shapes else None
        return {"model": frontends.load(source, out=Path(out), shapes=sized, name=name).to_json()}, {}

    @property
    def _loaded(self) -> Executable:
        if self._executable is None:
            raise WorkerError("nothing is loaded")
        return self._executable

    @property
    def _timed(self) -> list[Feeds]:
        if not self._feeds:
            raise WorkerError("no inputs are set")
        return self._feeds

    def _load_data(self, path: str) -> Feeds:
        if self._data is None or self._data[0] != path:
            try:
                with np.load(path, allow_pickle=False) as archive:
                    self._data = (path, {name: archive[name] for name in archive.files if name != "labels"})
            except (OSError, ValueError) as error:
                raise UsageError(f"the data `{path}` cannot be read: {error}") from error
        return self._data[1]


def _labels(path: str, rows: slice | list[int]) -> np.ndarray | None:
    with np.load(path, allow_pickle=False) as archive:
        return archive["labels"][rows] if "labels" in archive.files else None


_OPERATIONS: dict[str, Callable[..., Answer]] = {
    name: getattr(Operations, name)
    for name in (
        "hello", "probe", "detect", "compile", "load", "inputs", "run", "time", "load_test", "evaluate", "memory",
        "apply", "convert",
    )
}  # fmt: skip
