"""Metrics in Prometheus' text format, under Triton's names where Triton has one, so that its dashboards work.

Written by hand: the client library insists on a `_total` at the end of a counter, which Triton's names do not have.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from portolan import __version__
from portolan.serving.counters import Histogram
from portolan.serving.version import Version

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labels = Mapping[str, str]
Sample = tuple[Labels, float]
Kind = Literal["counter", "gauge"]
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
#: Every third bound of the counters' own: twice as large each, which is as fine as a dashboard needs.
_THIN = 3


class Served(Protocol):
    """What metrics are read from."""

    def versions(self) -> list[Version]:
        """Every version that takes calls."""


class Metrics:
    """What the server counted, as text.

    Args:
        models: whose counters are read.

    Attributes:
        started: when the process began, in seconds since the epoch.
    """

    def __init__(self, models: Served) -> None:
        self._models = models
        self.started = time.time()

    def text(self, lost: int = 0) -> str:
        """All metrics. `lost` is the number of log lines that could not be written."""
        found = [(_labels(version), version) for version in self._models.versions()]
        return "".join((*_triton(found), *_own(found), *_process(self.started, lost)))


def _triton(found: Sequence[tuple[Labels, Version]]) -> Iterator[str]:
    """Triton's, whose durations are sums in microseconds."""
    yield _family(
        "nv_inference_request_success",
        "Calls answered",
        "counter",
        ((labels, v.counters.request_success) for labels, v in found),
    )
    yield _family(
        "nv_inference_request_failure",
        "Calls refused after they were understood, by reason",
        "counter",
        (
            ({**labels, "reason": reason}, count)
            for labels, v in found
            for reason, count in v.counters.request_failure.items()
        ),
    )
    for name, said in _COUNTS.items():
        yield _family(
            f"nv_inference_{name}", said, "counter", ((labels, getattr(v.counters, name)) for labels, v in found)
        )
    for name, said in _DURATIONS.items():
        values = ((labels, getattr(v.counters, f"{name}_duration") * 1e6) for labels, v in found)
        yield _family(f"nv_inference_{name}_duration_us", said, "counter", values)
    waiting = ((labels, v.queue.length) for labels, v in found)
    yield _family("nv_inference_pending_request_count", "Calls that wait for a replica", "gauge", waiting)


_COUNTS = {"count": "Rows that ran", "exec_count": "Batches that ran"}
_DURATIONS = {
    "request": "Microseconds from arrival to answer",
    "queue": "Microseconds from arrival to the start of the batch",
    "compute_input": "Microseconds of preparing inputs",
    "compute_infer": "Microseconds in the runtime, a batch's time counted for each of its calls",
    "compute_output": "Microseconds of handing outputs back",
}


def _own(found: Sequence[tuple[Labels, Version]]) -> Iterator[str]:
    yield _family(
        "portolan_replicas",
        "Processes by what they do",
        "gauge",
        (
            ({**labels, "state": state}, sum(i.state == state for i in v.pool.instances))
            for labels, v in found
            for state in ("starting", "free", "busy")
        ),
    )
    costs = [(labels, *v.pool.cost()) for labels, v in found]
    memory = ((labels, resident) for labels, resident, _ in costs)
    yield _family("portolan_replicas_memory_bytes", "Resident bytes of the replicas there are", "gauge", memory)
    used = ((labels, cpu) for labels, _, cpu in costs)
    yield _family("portolan_replicas_cpu_seconds", "Processor time of the replicas there are", "gauge", used)
    yield _family(
        "portolan_queue_bytes", "Bytes of inputs that wait", "gauge", ((labels, v.queue.bytes) for labels, v in found)
    )
    yield _family(
        "portolan_replicas_lost_total",
        "Replicas that crashed or hung",
        "counter",
        ((labels, v.counters.replicas_lost) for labels, v in found),
    )
    yield _family(
        "portolan_retried_total",
        "Calls that ran again because their replica ended",
        "counter",
        ((labels, v.counters.retried) for labels, v in found),
    )
    for name, said in _SHADOW.items():
        values = [(labels, getattr(v.counters, name)) for labels, v in found if v.counters.compared]
        yield _family(f"portolan_shadow_{name}_total", said, "counter", values)
    for name, said, attribute, every in _HISTOGRAMS:
        yield _histogram(name, said, [(labels, getattr(v.counters, attribute)) for labels, v in found], every)


_SHADOW = {
    "compared": "A shadow's answers that were held against those given",
    "agreed": "Those of them that agreed",
}
_HISTOGRAMS = (
    ("portolan_request_seconds", "From arrival to answer", "request_seconds", _THIN),
    ("portolan_queue_seconds", "From arrival to the start of the batch", "queue_seconds", _THIN),
    ("portolan_batch_rows", "Rows of the batches that ran", "batch_rows", 1),
)


def _process(started: float, lost: int) -> Iterator[str]:
    times = os.times()
    none: Labels = {}
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    resident = pages * os.sysconf("SC_PAGE_SIZE")
    yield _family("portolan_log_lines_lost_total", "Log lines that could not be written", "counter", [(none, lost)])
    yield _family("process_cpu_seconds_total", "Of the front", "counter", [(none, times.user + times.system)])
    yield _family("process_resident_memory_bytes", "Of the front", "gauge", [(none, resident)])
    yield _family("process_start_time_seconds", "Of the front", "gauge", [(none, started)])
    yield _family("portolan_info", "Which version serves", "gauge", [({"version": __version__}, 1)])


def _labels(version: Version) -> Labels:
    return {"model": version.source.name, "version": version.number}


def _family(name: str, said: str, kind: Kind, samples: Iterable[Sample]) -> str:
    lines = [f"{name}{_braces(labels)} {_number(value)}\n" for labels, value in samples]
    return f"# HELP {name} {said}.\n# TYPE {name} {kind}\n{''.join(lines)}" if lines else ""


def _histogram(name: str, said: str, histograms: Sequence[tuple[Labels, Histogram]], every: int) -> str:
    lines = []
    for labels, histogram in histograms:
        seen = 0
        for i, bound in enumerate(histogram.bounds):
            seen += histogram.counts[i]
            if (i + 1) % every == 0:
                lines.append(f"{name}_bucket{_braces({**labels, 'le': _number(bound)})} {seen}\n")
        seen += histogram.counts[-1]
        lines.append(f"{name}_bucket{_braces({**labels, 'le': '+Inf'})} {seen}\n")
        lines.append(f"{name}_sum{_braces(labels)} {_number(histogram.total)}\n")
        lines.append(f"{name}_count{_braces(labels)} {seen}\n")
    return f"# HELP {name} {said}.\n# TYPE {name} histogram\n{''.join(lines)}" if lines else ""


def _braces(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{value.translate(_ESCAPES)}"' for key, value in labels.items()) + "}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.10g}"
