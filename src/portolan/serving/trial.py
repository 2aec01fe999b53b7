"""A load test of a served model: real replicas, a real queue, LoadGen before them; in a process that can be ended.

`python -m portolan.serving.trial` reads one JSON object from stdin and answers with one:

    {"source": SOURCE, "loads": [LOAD, ...], "data": FILE.npz, "rows": [0, 1, ...]}
    {"runs": [LOADED, ...], "memory": BYTES, "lost": REPLICAS, "start": SECONDS, "overhead": {"batch", "call"}}
    {"error": "..."}

The calls go straight to `Models`, without a network: what is measured is the model, the batching and the replicas.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from portolan.core.data import Data, sample
from portolan.core.serving import Overhead
from portolan.errors import PortolanError, WorkerCrashed, WorkerError, WorkerTimeout
from portolan.measure.load import Load, Loaded, require, run
from portolan.serving import strings
from portolan.serving.calls import Answer, Call, Refusal, Tensor
from portolan.serving.datatypes import WORD
from portolan.serving.models import Models
from portolan.serving.source import Source
from portolan.serving.version import Version
from portolan.worker.transport import environment

#: Calls that the Offline scenario has in flight for each call of the replicas' batches: the next ones are always there.
_AHEAD = 3
_LEAST_AHEAD, _MOST_AHEAD = 16, 512
#: Patience beyond what the loads are expected to take: seconds, and as a factor.
_SPARE, _FACTOR = 60.0, 6.0
_PATIENT = 3600.0
_POLL = 0.02
#: Calls made at once to see what each adds, how often, and for how many seconds.
_TOGETHER, _LEAST, _MOST, _BRIEF = 8, 3, 50, 0.3


@dataclass(frozen=True)
class LoadResult:
    """What a load test brought to light.

    Attributes:
        runs: one for each load, in order.
        memory: peak resident bytes of all replicas together.
        lost: replicas that ended on their own.
        start: seconds from the start to all replicas warm.
        overhead: what the server added to a batch's time in the runtime, without load.
    """

    runs: tuple[Loaded, ...]
    memory: int
    lost: int
    start: float
    overhead: Overhead = field(default_factory=Overhead)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "runs": [loaded.to_json() for loaded in self.runs],
            "memory": self.memory,
            "lost": self.lost,
            "start": self.start,
            "overhead": asdict(self.overhead),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LoadResult:
        """Reads what `to_json` wrote."""
        runs, overhead = tuple(map(Loaded.from_json, data["runs"])), Overhead(**data.get("overhead", {}))
        return cls(runs, data["memory"], data["lost"], data["start"], overhead)


def put_under_load(source: Source, loads: Sequence[Load], data: Path, rows: Sequence[int]) -> LoadResult:
    """Serves `source` in a process of its own, with all its replicas, and puts each load on it in turn.

    An Offline load after another one is told the rate that was measured before: the first one is the pilot.

    Args:
        source: what is served.
        loads: what to put on it.
        data: an .npz file with the model's inputs.
        rows: which of its samples to send, in turn.

    Raises:
        NoBackend: LoadGen is not installed.
        WorkerError: it could not be served, or its process ended or had to be ended.
    """
    require()
    asked = {
        "source": source.to_json(),
        "loads": [asdict(load) for load in loads],
        "data": str(data),
        "rows": list(rows),
    }
    longest = _SPARE * (1 + source.limits.replicas[1]) + _FACTOR * sum(load.expected for load in loads)
    with tempfile.TemporaryFile(prefix="portolan-trial-") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "portolan.serving.trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment(None),
            start_new_session=True,
        )
        try:
            answer, _ = process.communicate(json.dumps(asked).encode(), timeout=longest)
        except subprocess.TimeoutExpired:
            raise WorkerTimeout(f"the load test did not end within {longest:.0f} s", stderr=_tail(log)) from None
        finally:
            _end(process)
        return _read(answer, process.returncode, _tail(log))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process if it is still there; its replicas end with it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(answer: bytes, code: int, tail: str) -> LoadResult:
    try:
        data = json.loads(answer)
    except ValueError:
        killed = code == -signal.SIGKILL
        said = f"with {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        raise WorkerCrashed(f"the load test ended {said}", stderr=tail, killed=killed) from None
    if "error" in data:
        raise WorkerError(str(data["error"]), stderr=tail)
    return LoadResult.from_json(data)


def _tail(log: Any) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - 4000))
    return str(log.read().decode(errors="replace"))


# --- the other side


def main() -> None:
    """Answers the one request on stdin."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    asked = json.loads(sys.stdin.buffer.read())
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            told = runner.run(_served(asked)).to_json()
    except PortolanError as error:
        told = {"error": error.message}
    answer.write(json.dumps(told).encode())
    answer.close()
    os._exit(0)  # LoadGen's threads are not waited for


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop that `serve` runs on, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _served(asked: Mapping[str, Any]) -> LoadResult:
    loop = asyncio.get_running_loop()
    source, begin = Source.from_json(asked["source"]), loop.time()
    models = Models()
    try:
        version = await models.add(source)
        await _all_warm(version, source)
        start = loop.time() - begin
        inputs, runs, pilot = _inputs(asked, source), [], None
        overhead = await _overhead(models, version, inputs[0])
        for data in asked["loads"]:
            load = Load(**data)
            offline = load.scenario == "Offline"
            if offline and pilot:
                load = replace(load, rate=pilot, queries=max(load.queries, round(pilot * load.seconds)))
            client = _Client(models, version, inputs, offline)
            loaded = await loop.run_in_executor(None, partial(run, client, load, len(inputs)))
            pilot = loaded.rate if offline else pilot
            runs.append(loaded)
        memory = sum(_peak(instance.pid) for instance in version.pool.instances)
        return LoadResult(tuple(runs), memory, version.counters.replicas_lost, start, overhead)
    finally:
        models.close()


async def _all_warm(version: Version, source: Source) -> None:
    """Waits for the other replicas: the first one alone answers already."""
    wanted = source.limits.replicas[1]
    version.pool.start(wanted)
    while version.pool.running < wanted:
        if version.pool.failure is not None:
            raise WorkerError(f"a replica could not be started: {version.pool.failure}")
        await asyncio.sleep(_POLL)


async def _overhead(models: Models, version: Version, inputs: list[Tensor]) -> Overhead:
    """What the server adds to batches of one call, and of as many as go together up to a few: medians."""
    together = min(version.cap, _TOGETHER)
    alone = await _besides(models, version, inputs, 1)
    if together == 1:
        return Overhead(alone)
    return Overhead(alone, max(await _besides(models, version, inputs, together) - alone, 0.0) / (together - 1))


async def _besides(models: Models, version: Version, inputs: list[Tensor], count: int) -> float:
    """Seconds that `count` calls made at once take besides the runtime's, one batch after another."""
    loop = asyncio.get_running_loop()
    found: list[float] = []
    end = loop.time() + _BRIEF
    while len(found) < _LEAST or (len(found) < _MOST and loop.time() < end):
        begin, before = loop.time(), version.counters.runtime
        try:
            await asyncio.gather(
                *(models.infer(Call(version.source.name, None, inputs, timeout=_PATIENT)) for _ in range(count))
            )
        except Refusal:  # the loads will tell
            return 0.0
        found.append(max(loop.time() - begin - (version.counters.runtime - before), 0.0))
    return float(np.median(found))


def _inputs(asked: Mapping[str, Any], source: Source) -> list[list[Tensor]]:
    """The tensors of each sample to send."""
    with np.load(asked["data"], allow_pickle=False) as archive:
        data = Data({name: archive[name] for name in archive.files if name != "labels"}, None, "")
    found = []
    for row in asked["rows"]:
        feed = sample(data, row, source.signature)
        found.append([_tensor(spec.name, spec.dtype, feed[spec.name]) for spec in source.signature.inputs])
    return found


def _tensor(name: str, dtype: str, array: np.ndarray) -> Tensor:
    raw = strings.raw(array)[0] if dtype == "string" else np.ascontiguousarray(array).tobytes()
    return Tensor(name, WORD[dtype], tuple(array.shape), raw)


def _peak(pid: int) -> int:
    """The most memory a process ever held, in bytes; 0 when it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


class _Client:
    """Makes LoadGen's calls on the models' loop.

    Args:
        models: what is called, on its own loop.
        version: what answers.
        inputs: of each sample.
        offline: whether calls have all the time there is, and only so many are in flight that none is turned away.
    """

    def __init__(self, models: Models, version: Version, inputs: Sequence[list[Tensor]], offline: bool) -> None:
        self._models, self._name, self._inputs = models, version.source.name, inputs
        self._loop = asyncio.get_running_loop()
        limits = version.source.limits
        ahead = _AHEAD * limits.max_batch * max(limits.replicas[1], 1)
        self._most = min(max(ahead, _LEAST_AHEAD), _MOST_AHEAD, limits.queue) if offline else sys.maxsize
        self._timeout = _PATIENT if offline else None
        self._waiting: deque[tuple[int, Callable[[str | None], None]]] = deque()
        self._flying = 0
        self._sending = False
        self._awake = threading.Event()

    def issue(self, index: int, done: Callable[[str | None], None]) -> None:
        """From LoadGen's thread: hands the call over, and wakes the loop if it is not awake already."""
        self._waiting.append((index, done))
        if not self._awake.is_set():
            self._awake.set()
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._awake.clear()
        self._send()

    def _send(self) -> None:
        if self._sending:  # it was refused before `submit` returned, and the loop below goes on
            return
        self._sending = True
        while self._waiting and self._flying < self._most:
            index, done = self._waiting.popleft()
            call = Call(self._name, None, self._inputs[index], timeout=self._timeout)
            self._flying += 1
            try:
                self._models.submit(call, partial(self._ended, done))
            except Refusal as refusal:
                self._flying -= 1
                done(_why(refusal))
        self._sending = False

    def _ended(self, done: Callable[[str | None], None], result: Answer | Refusal) -> None:
        self._flying -= 1
        done(_why(result) if isinstance(result, Refusal) else None)
        if self._waiting:
            self._send()


def _why(refusal: Refusal) -> str:
    """A few words, the same for all calls of one kind."""
    said = {"late": "too late to be answered in time", "overloaded": "too many calls were waiting"}
    return said.get(refusal.kind, refusal.message)


if __name__ == "__main__":
    main()
