"""What the page at `/` shows: plain data that it asks for about once a second, and the page itself."""

from __future__ import annotations

import time
from importlib.resources import files
from typing import Any

from portolan import __version__
from portolan.serving.counters import Histogram
from portolan.serving.metrics import Served
from portolan.serving.version import Version

PAGE = "live.html"


def page() -> bytes:
    """The page: one file that fetches nothing but `/live.json`."""
    return files("portolan.serving").joinpath("assets").joinpath(PAGE).read_bytes()


def data(models: Served, index: list[dict[str, Any]], started: float) -> dict[str, Any]:
    """What goes on now. Counts grow from the start of a version; the page takes differences.

    Args:
        models: whose counters are read.
        index: the repository's, for models that do not serve.
        started: when the server began, in seconds since the epoch.
    """
    serving = [_model(version) for version in models.versions()]
    names = {model["name"] for model in serving}
    resting = [entry for entry in index if entry["name"] not in names]
    return {"server": __version__, "uptime": time.time() - started, "models": serving, "resting": resting}


def _model(version: Version) -> dict[str, Any]:
    counters, limits = version.counters, version.source.limits
    memory, cpu = version.pool.cost()
    return {
        "name": version.source.name,
        "version": version.number,
        "platform": version.source.platform,
        "state": version.state,
        "success": counters.request_success,
        "failure": dict(counters.request_failure),
        "rows": counters.count,
        "batches": counters.exec_count,
        "by_rows": {str(rows): times for rows, (times, _) in sorted(counters.batches.items())},
        "queue": version.queue.length,
        "queue_bytes": version.queue.bytes,
        "latency": _histogram(counters.request_seconds),
        "waiting": _histogram(counters.queue_seconds),
        "replicas": [
            {"pid": i.pid, "state": i.state, "busy": i.busy, "memory": i.cost()[0]} for i in version.pool.instances
        ],
        "least": limits.replicas[0],
        "most": limits.replicas[1],
        "max_batch": limits.max_batch,
        "deadline": limits.deadline,
        "lost": counters.replicas_lost,
        "retried": counters.retried,
        "memory": memory,
        "cpu": cpu,
    }


def _histogram(histogram: Histogram) -> dict[str, Any]:
    """Only as far as there is something: bounds are the same for all, and most are empty."""
    used = [i for i, count in enumerate(histogram.counts) if count]
    last = used[-1] + 1 if used else 0
    return {"bounds": list(histogram.bounds[:last]), "counts": histogram.counts[:last], "total": histogram.total}
