"""Load: a system under MLPerf's LoadGen, in its four scenarios, with every call's latency from when it was due.

    SingleStream    one call at a time, the next when the last is answered
    MultiStream     eight at a time
    Server          open loop: calls are due at random moments (Poisson) whether or not earlier ones were answered
    Offline         everything at once

LoadGen decides when calls are due, counts from that moment (a generator or a server that falls behind hides nothing),
and says whether its own rules hold: `valid`. The latencies come from its trace, so that a percentile can be given an
interval. LoadGen cannot be stopped, so a test belongs into a process that can be.

Source: Reddi et al., "MLPerf Inference Benchmark" (ISCA 2020), and the package `mlcommons-loadgen`.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from portolan.core.measurement import Measurement
from portolan.errors import NoBackend, UsageError, WorkerError
from portolan.measure.stats import Floats, percentile_bound, readings_needed

Scenario = Literal["SingleStream", "MultiStream", "Server", "Offline"]
#: Calls of one query of MultiStream.
STREAMS = 8
#: The share of calls that each latency is about.
QUANTILES: Mapping[str, float] = {"latency_p50": 0.5, "latency_p95": 0.95, "latency_p99": 0.99}
#: How much longer than planned calls are still made.
_OVERRUN = 4.0
_SAMPLE = re.compile(
    r'"name":"Sample".*?"ph":"b".*?"ts":(?P<due>[0-9.]+),'
    r'"args":\{"sample_seq":(?P<seq>\d+).*?"issue_start_ns":(?P<begun>-?\d+),"complete_ns":(?P<done>-?\d+)'
)


class System(Protocol):
    """What is put under load."""

    def issue(self, index: int, done: Callable[[str | None], None]) -> None:
        """Begins one call and returns at once.

        Args:
            index: which of the samples to send.
            done: called once, from any thread: with None when the answer is there, else with why there is none.
        """
        ...


@dataclass(frozen=True)
class Load:
    """What to put on a system.

    Attributes:
        scenario: one of the four.
        queries: the fewest queries: calls, or eight calls each of MultiStream.
        seconds: the shortest time.
        rate: calls per second: of Server those that are due, of Offline those expected (a pilot run tells).
        latency: seconds that a query is expected to take, of the two Stream scenarios (a pilot run tells).
        target: seconds that LoadGen's own verdict on Server asks of the `percentile`; 0 asks for nothing.
        percentile: which share has to be within the target.
        seed: of the moments and the order of samples.
    """

    scenario: Scenario
    queries: int = 500
    seconds: float = 1.0
    rate: float = 1.0
    latency: float = 1e-3
    target: float = 0.0
    percentile: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scenario not in get_args(Scenario):
            raise UsageError(f"LoadGen has no scenario `{self.scenario}`", hint=f"use {', '.join(get_args(Scenario))}")

    @property
    def expected(self) -> float:
        """About how long it takes, in seconds, where the system keeps up."""
        each = self.latency if self.scenario.endswith("Stream") else 1 / self.rate
        return max(self.seconds, self.queries * each)

    def settings(self) -> dict[str, Any]:
        """LoadGen's settings, less scenario and mode."""
        limits: dict[str, Any] = {
            "min_query_count": self.queries,
            "min_duration_ms": round(self.seconds * 1e3),
            "max_duration_ms": math.ceil(_OVERRUN * self.expected * 1e3),
            "qsl_rng_seed": self.seed + 1,
            "sample_index_rng_seed": self.seed + 2,
            "schedule_rng_seed": self.seed + 3,
        }
        if self.scenario == "Server":
            limits["server_target_qps"] = float(self.rate)
            limits["server_target_latency_ns"] = round((self.target or _OVERRUN * self.expected) * 1e9)
            limits["server_target_latency_percentile"] = self.percentile
        elif self.scenario == "Offline":
            limits["offline_expected_qps"] = float(self.rate)
        else:
            name = "single_stream" if self.scenario == "SingleStream" else "multi_stream"
            limits[f"{name}_expected_latency_ns"] = max(1, round(self.latency * 1e9))
            if self.scenario == "MultiStream":
                limits["multi_stream_samples_per_query"] = STREAMS
        return limits


@dataclass(frozen=True)
class Loaded:
    """What a load brought to light.

    Attributes:
        scenario: which one it was.
        latencies: seconds of each call from when it was due, in the order of the calls; infinite without an answer.
        seconds: from when the first call was due to the last answer.
        asked: calls per second that were due, of Server.
        valid: whether LoadGen's own rules hold.
        why: those that do not, in its words.
        failures: how many calls got no answer, by reason.
        late: the 99th percentile of how late the generator itself was, in seconds; it is part of the latencies.
    """

    scenario: Scenario
    latencies: Floats
    seconds: float
    valid: bool
    asked: float | None = None
    why: tuple[str, ...] = ()
    failures: Mapping[str, int] = field(default_factory=dict)
    late: float = 0.0

    @property
    def answered(self) -> int:
        """Calls that got an answer."""
        return int(np.isfinite(self.latencies).sum())

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answered / self.seconds

    @property
    def missing(self) -> float:
        """Share of the calls that got no answer."""
        return 1.0 - self.answered / len(self.latencies)

    def quantile(self, share: float) -> float:
        """Seconds within which that share of all calls was answered; infinite where fewer were."""
        return float(np.quantile(self.latencies, share, method="higher"))

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain data; null stands for a call without an answer."""
        return {
            "scenario": self.scenario,
            "latencies": [round(x, 7) if math.isfinite(x) else None for x in self.latencies.tolist()],
            "seconds": self.seconds,
            "valid": self.valid,
            "asked": self.asked,
            "why": list(self.why),
            "failures": dict(self.failures),
            "late": self.late,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Loaded:
        """Reads what `to_json` wrote."""
        latencies = np.array([math.inf if x is None else x for x in data["latencies"]], dtype=np.float64)
        return cls(**{**data, "latencies": latencies, "why": tuple(data["why"])})


def percentiles(runs: Sequence[Loaded]) -> dict[str, Measurement]:
    """`latency_p50`, and as far as there are calls enough `latency_p95` and `latency_p99`, over runs of fresh starts.

    The value is that of all calls. The interval reaches from the lower to the upper bound by order statistics (99 % for
    p99, as LoadGen's early stopping asks, else 95 %), and to what the best and the worst run had by themselves. A call
    without an answer counts as if it had taken its whole run; a percentile that such calls reach has no value, and is
    left out.
    """
    parts = [np.where(np.isfinite(r.latencies), r.latencies, max(r.seconds, 1e-9)) * 1e3 for r in runs]
    pooled = np.concatenate(parts)
    missing = max(run.missing for run in runs)
    found = {}
    for metric, share in QUANTILES.items():
        conf = 0.99 if share >= 0.99 else 0.95
        if missing >= 1 - share or len(pooled) < readings_needed(share):
            continue
        own = [float(np.quantile(part, share)) for part in parts]
        hi, lo = percentile_bound(pooled, share, conf), percentile_bound(-pooled, 1 - share, conf)
        ends = [*own, *([] if hi is None else [hi]), *([] if lo is None else [-lo])]
        found[metric] = Measurement.of(metric, float(np.quantile(pooled, share)), min(ends), max(ends), len(pooled))
    return found


def ready() -> bool:
    """Whether LoadGen is installed."""
    return importlib.util.find_spec("mlperf_loadgen") is not None


def require() -> None:
    """Refuses to go on without LoadGen.

    Raises:
        NoBackend: it is not installed.
    """
    if not ready():
        raise NoBackend(
            "the package `mlcommons-loadgen`, which makes the load, is not installed",
            hint="pip install 'portolan[load]'",
        )


def run(system: System, load: Load, samples: int, abandoned: threading.Event | None = None) -> Loaded:
    """Puts `load` on `system` and waits for the last answer. Not the loop's thread: this one blocks.

    Args:
        system: what is called; from threads of LoadGen.
        load: the scenario and its numbers.
        samples: how many different samples there are to send.
        abandoned: once set, calls are no longer made but failed at once, so that LoadGen comes to its end.

    Raises:
        NoBackend: LoadGen is not installed.
        WorkerError: LoadGen left no trace.
    """
    require()
    import mlperf_loadgen as lg

    settings = lg.TestSettings()
    settings.scenario, settings.mode = getattr(lg.TestScenario, load.scenario), lg.TestMode.PerformanceOnly
    for name, value in load.settings().items():
        getattr(settings, name)  # an attribute that does not exist would be made, and ignored
        setattr(settings, name, value)
    calls = _Calls(system, lg, abandoned or threading.Event())
    with tempfile.TemporaryDirectory(prefix="portolan-load-") as folder:
        log, out = lg.LogSettings(), lg.LogOutputSettings()
        out.outdir, out.copy_summary_to_stdout = folder, False
        log.log_output, log.enable_trace = out, True
        sut = lg.ConstructSUT(calls.issue, lambda: None)
        library = lg.ConstructQSL(samples, samples, lambda _: None, lambda _: None)
        try:
            lg.StartTestWithLogSettings(sut, library, settings, log)
        finally:
            lg.DestroyQSL(library)
            lg.DestroySUT(sut)
        trace = Path(folder, "mlperf_log_trace.json").read_text(errors="replace")
        summary = Path(folder, "mlperf_log_summary.txt").read_text(errors="replace")
    return _read(load, trace, summary, calls)


class _Calls:
    """Hands LoadGen's queries to the system, and the system's answers to LoadGen."""

    def __init__(self, system: System, loadgen: Any, abandoned: threading.Event) -> None:
        self._system, self._lg, self._abandoned = system, loadgen, abandoned
        self._numbers = itertools.count()
        #: Reasons by the number of the call.
        self.failures: dict[int, str] = {}

    def issue(self, queries: Sequence[Any]) -> None:
        for query in queries:
            done = self._answer(next(self._numbers), query.id)
            if self._abandoned.is_set():
                done("the test was abandoned")
                continue
            try:
                self._system.issue(query.index, done)
            except Exception as error:  # whatever it is: LoadGen waits for an answer to every call, for ever
                done(str(error) or type(error).__name__)

    def _answer(self, number: int, query: int) -> Callable[[str | None], None]:
        def done(failure: str | None) -> None:
            if failure is not None:
                self.failures[number] = failure
            self._lg.QuerySamplesComplete([self._lg.QuerySampleResponse(query, 0, 0)])

        return done


def _read(load: Load, trace: str, summary: str, calls: _Calls) -> Loaded:
    found = [m for line in trace.splitlines() if '"Sample"' in line and (m := _SAMPLE.search(line))]
    if not found:
        raise WorkerError("LoadGen left no trace of any call")
    rows = np.array([[float(m["seq"]), float(m["due"]), float(m["begun"]), float(m["done"])] for m in found])
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    seq, due, begun, done = rows.T
    latencies = done / 1e9
    latencies[np.isin(seq, list(calls.failures))] = math.inf
    valid = "Result is : VALID" in summary
    why = () if valid else tuple(line.strip(" *") for line in summary.splitlines() if line.rstrip().endswith(": NO"))
    return Loaded(
        scenario=load.scenario,
        asked=load.rate if load.scenario == "Server" else None,
        latencies=latencies,
        seconds=float((due / 1e6 + done / 1e9).max() - due.min() / 1e6),
        valid=valid,
        why=why,
        failures=dict(Counter(calls.failures.values()).most_common()),
        late=float(np.quantile(np.maximum(begun, 0.0) / 1e9, 0.99)),
    )
