"""What a search says of its trials while it runs: one line each."""

from __future__ import annotations

import json
from collections.abc import Sequence

from portolan.core.labels import label
from portolan.core.measurement import Metrics
from portolan.search.space import Candidate
from portolan.study.task import Task
from portolan.study.trial import Trial


def brief(metrics: Metrics) -> str:
    """Speed and size."""
    return "  ".join(str(metrics[name]) for name in ("latency_p50", "size") if name in metrics)


def described(trial: Trial, unmet: Sequence[str], served: bool) -> str:
    """The trial in a line: what it is, what was measured, and which limits it misses."""
    verdict = ", ".join(unmet) or ("to be served" if served else "met")
    words = label(trial.recipe)
    return f"#{trial.id} {words['passes']} on {words['backend']}  {brief(trial.metrics)}  {verdict}"


def reproduce(task: Task, candidate: Candidate) -> str:
    """The command that tries this recipe alone."""
    return f"{task.command} --recipe '{json.dumps(candidate.recipe.to_json(), separators=(',', ':'))}'"
