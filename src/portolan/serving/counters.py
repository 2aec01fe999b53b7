"""What the server counts, with Triton's names: plain numbers, bumped on the front's loop, read by whoever reports."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from typing import Any

#: Upper bounds in seconds; about 25 % apart, which is as well as a p99 can be told from them.
SECONDS: tuple[float, ...] = tuple(round(1e-4 * 1.25**i, 7) for i in range(60))
ROWS: tuple[float, ...] = tuple(float(1 << i) for i in range(13))
_HISTOGRAMS = ("request_seconds", "queue_seconds", "batch_rows")
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")


class Histogram:
    """Counts by upper bound, the last one without.

    Attributes:
        bounds: upper bounds, inclusive.
        counts: one more than bounds; not cumulative.
        total: sum of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Counts one value, so often."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def add_all(self, values: Sequence[float]) -> float:
        """Counts values; gives their sum."""
        bounds, counts = self.bounds, self.counts
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        added = sum(values)
        self.total += added
        return added

    def quantile(self, share: float, since: Sequence[int] | None = None) -> float | None:
        """The bound below which `share` of the values lie; with `since`, of those after that copy of `counts`."""
        counts = self.counts if since is None else [a - b for a, b in zip(self.counts, since, strict=True)]
        want, seen = share * sum(counts), 0
        if want <= 0:
            return None
        for i, count in enumerate(counts):
            seen += count
            if seen >= want:
                return self.bounds[min(i, len(self.bounds) - 1)]
        return self.bounds[-1]


@dataclass(slots=True)
class Counters:
    """One version of one model. Durations are sums in seconds; Triton's names are in microseconds.

    Attributes:
        request_success: calls answered: `nv_inference_request_success`.
        request_failure: calls refused after they were understood, by reason: `nv_inference_request_failure`.
        count: rows that ran: `nv_inference_count`.
        exec_count: batches that ran: `nv_inference_exec_count`.
        pending_request_count: calls that wait for a replica now: `nv_inference_pending_request_count`.
        request_duration: from arrival to answer, of the calls answered.
        queue_duration: from arrival to the start of their batch.
        compute_infer_duration: in the runtime, each batch's time counted once for each of its calls, as Triton does.
        compute_input_duration: around the runtime, before it; zero where nobody can tell it apart.
        compute_output_duration: around the runtime: the way to the replica and back.
        request_seconds: the distribution of request_duration.
        queue_seconds: the distribution of queue_duration.
        batch_rows: the distribution of batches' rows.
        batches: by exact rows: how many, and their seconds in the runtime.
        retried: calls that ran again because their replica ended.
        replicas_lost: replicas that crashed or hung.
        compared: answers as a shadow that were held against those of the version that serves.
        agreed: those of them that agreed.
        last: when the last call came, in seconds since the epoch.
    """

    request_success: int = 0
    request_failure: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    count: int = 0
    exec_count: int = 0
    pending_request_count: int = 0
    request_duration: float = 0.0
    queue_duration: float = 0.0
    compute_infer_duration: float = 0.0
    compute_input_duration: float = 0.0
    compute_output_duration: float = 0.0
    failure_duration: float = 0.0
    request_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    queue_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    batch_rows: Histogram = field(default_factory=lambda: Histogram(ROWS))
    batches: dict[int, tuple[int, float]] = field(default_factory=dict)
    retried: int = 0
    replicas_lost: int = 0
    compared: int = 0
    agreed: int = 0
    last: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the front that comes after this one."""
        histograms = {name: [list(getattr(self, name).counts), getattr(self, name).total] for name in _HISTOGRAMS}
        plain = {f.name: copy(getattr(self, f.name)) for f in fields(self) if f.name not in _HISTOGRAMS}
        return {**plain, **histograms}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Counters:
        """Reads what `to_json` wrote."""
        plain = {name: value for name, value in data.items() if name not in _HISTOGRAMS}
        plain["batches"] = {int(rows): (int(times), float(total)) for rows, (times, total) in data["batches"].items()}
        made = cls(**plain)
        for name in _HISTOGRAMS:
            histogram: Histogram = getattr(made, name)
            histogram.counts, histogram.total = data[name]
        return made

    @property
    def runtime(self) -> float:
        """Seconds in the runtime, each batch counted once."""
        return sum(total for _, total in self.batches.values())

    def compare(self, same: bool) -> None:
        """Counts a shadow's answer beside the one that was given."""
        self.compared += 1
        self.agreed += same

    def ran(
        self, arrived: Sequence[float], rows: int, started: float, now: float, seconds: float, times: int = 1
    ) -> None:
        """Counts a batch that ran, or several of one size that ran one after another.

        Args:
            arrived: when each of its calls came that still wants its answer.
            rows: of one batch.
            started: when it left for its replica, on the same clock.
            now: when its answer came.
            seconds: in the runtime.
            times: how many batches.
        """
        calls = len(arrived)
        self.request_duration += self.request_seconds.add_all([now - at for at in arrived])
        self.queue_duration += self.queue_seconds.add_all([started - at for at in arrived])
        self.request_success += calls
        self.compute_infer_duration += seconds * calls / times
        self.compute_output_duration += max(now - started - seconds, 0.0) * calls
        self.exec_count += times
        self.count += rows * times
        self.batch_rows.add(rows, times)
        before, total = self.batches.get(rows, (0, 0.0))
        self.batches[rows] = (before + times, total + seconds)
        self.last = time.time()
