"""The fast axis: a compiled recipe in a fresh process, judged, timed and loaded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from portolan.core.measurement import Measurement, Metrics
from portolan.core.signature import Signature
from portolan.errors import NoResult
from portolan.study.budget import Left, ask, unlimited
from portolan.study.builder import Compiled, Samples
from portolan.worker import Reply, Worker, patience

#: Longest waits for a worker's answer; PORTOLAN_WORKER_TIMEOUT replaces them.
_LOAD_SECONDS, _RUN_SECONDS, _JUDGE_SECONDS = 120.0, 60.0, 600.0
#: Seconds of runs before anything is timed, at most; less where every input was run once.
_WARM = 0.2
#: The shortest and the longest block of a measurement of throughput, in seconds, and how many inferences one has.
SHORTEST, LONGEST, _INFERENCES = 0.1, 0.4, 30
_OUTPUT_BYTES = 512 * 2**20
Outputs = dict[str, np.ndarray]


class Session:
    """One started process of one compiled recipe; what `measure.race` times.

    Args:
        compiled: what to load.
        feeds: the inputs of the timed runs, used in turn; none where nothing is timed.
        least: the fewest inferences of a block, however long they take.
        left: seconds that it may take in all, asked before each question.

    Raises:
        WorkerError: it does not load or does not run.
        BudgetOver: nothing is left, here or in any method.
    """

    def __init__(
        self,
        compiled: Compiled,
        feeds: Sequence[Mapping[str, np.ndarray]],
        *,
        least: int = 1,
        left: Left = unlimited,
    ) -> None:
        self._least, self._slow, self._left = least, compiled.patience, left
        begin = time.perf_counter()
        self.worker = Worker(python=compiled.python)
        try:
            self._ask("load", timeout=patience(_LOAD_SECONDS * self._slow), folder=str(compiled.folder))
            self.cold_start_ms = (time.perf_counter() - begin) * 1e3
            if feeds:
                self._warm_up(feeds, begin)
        except BaseException:
            self.worker.close()
            raise

    def _warm_up(self, feeds: Sequence[Mapping[str, np.ndarray]], begin: float) -> None:
        """The first run ends the cold start. Then the other inputs: runtimes prepare anew for each new shape inside."""
        tensors = {f"{i}/{name}": array for i, feed in enumerate(feeds) for name, array in feed.items()}
        self._ask("inputs", timeout=patience(_RUN_SECONDS), tensors=tensors, count=len(feeds))
        self._ask("time", timeout=patience(_RUN_SECONDS), seconds=0.0, max_runs=1)
        self.cold_start_ms = (time.perf_counter() - begin) * 1e3
        if len(feeds) > 1:
            self._ask("time", timeout=patience(_RUN_SECONDS), seconds=_WARM, max_runs=len(feeds) - 1)

    def _ask(self, op: str, *, timeout: float, **fields: Any) -> Reply:
        return ask(self.worker, op, timeout=timeout, left=self._left, **fields)

    def answer(self, feed: Mapping[str, np.ndarray]) -> Outputs:
        """Outputs of one call."""
        return self._ask("run", timeout=patience(_RUN_SECONDS * self._slow), tensors=feed).tensors

    def block(self, seconds: float) -> np.ndarray:
        """Milliseconds of each inference of a block of about `seconds`."""
        timeout = patience(_RUN_SECONDS) + 20 * seconds + self._least
        reply = self._ask("time", timeout=timeout, seconds=seconds, min_runs=self._least)
        return np.asarray(reply.tensors["ns"] / 1e6)

    def peak_memory(self) -> int:
        """Peak resident bytes so far."""
        return int(self._ask("memory", timeout=patience(_RUN_SECONDS)).fields["peak"])

    def throughput(self, cores: int, latency: float) -> Measurement:
        """Inferences per second: the better of one caller and one per core, over three blocks.

        Args:
            cores: of the target.
            latency: about what one inference takes, in seconds.
        """
        seconds = max(SHORTEST, min(LONGEST, _INFERENCES * latency))
        best: list[float] = []
        for callers in dict.fromkeys((1, cores)):
            rates = []
            for _ in range(3):
                reply = self._ask(
                    "load_test", timeout=patience(_RUN_SECONDS) + 20 * seconds, callers=callers, seconds=seconds
                )
                rates.append(reply.fields["count"] / reply.fields["seconds"])
            if not best or np.median(rates) > np.median(best):
                best = rates
        return Measurement.of("throughput", float(np.median(best)), min(best), max(best), len(best))

    def outputs(self, samples: Samples, rows: Sequence[int], signature: Signature) -> Outputs:
        """Outputs for the given rows, first axis the samples."""
        reply = self._ask(
            "evaluate",
            timeout=patience(_JUDGE_SECONDS * self._slow),
            data=str(samples.path),
            rows=list(rows),
            inputs=[spec.to_json() for spec in signature.inputs],
        )
        return reply.tensors

    def close(self) -> None:
        """Ends the process."""
        self.worker.close()


def reference(
    session: Session,
    samples: Samples,
    signature: Signature,
    say: Callable[[str], None],
    rows: tuple[int, ...] | None = None,
) -> tuple[tuple[int, ...], Outputs]:
    """The rows to judge by, and the original's outputs for them.

    Rows for which the original itself answers NaN are left out: nothing can be verified there.

    Args:
        session: the original.
        samples: the data.
        signature: the original's.
        say: told what is left out.
        rows: the rows to choose from; by default as many as fit.

    Raises:
        NoResult: the original answers NaN for every row.
        WorkerError: the model does not run.
    """
    rows = rows_to_judge(session, samples, signature) if rows is None else rows
    outputs = session.outputs(samples, rows, signature)
    wrong = np.zeros(len(rows), bool)
    for array in outputs.values():
        if array.dtype.kind == "f" and len(array) == len(rows):
            wrong |= np.isnan(array).reshape(len(rows), -1).any(axis=1)
    if not wrong.any():
        return rows, outputs
    if wrong.all():
        raise NoResult(
            f"the untouched model answers NaN for all of {len(rows):,} samples, so no recipe can be verified",
            hint="give inputs that it is made for with --data"
            if samples.synthetic
            else "look at the model and the data",
        )
    say(f"the untouched model answers NaN for {wrong.sum():,} of {len(rows):,} samples: they are left out")
    right = np.flatnonzero(~wrong)
    kept = {name: array[right] if len(array) == len(rows) else array for name, array in outputs.items()}
    return tuple(rows[i] for i in right), kept


def rows_to_judge(
    session: Session, samples: Samples, signature: Signature, seconds: float = 5.0, least: int | None = None
) -> tuple[int, ...]:
    """The evaluation rows that fit in about `seconds` and in memory, 32 at least; all of them where labels decide.

    Args:
        session: what will answer for them.
        samples: the data.
        signature: the model's.
        seconds: that they may take.
        least: the fewest rows, where time decides even about labelled ones.

    Raises:
        WorkerError: the model does not run.
    """
    rows = samples.evaluation
    begin = time.perf_counter()
    first = session.outputs(samples, rows[:1], signature)
    spent = max(time.perf_counter() - begin, 1e-4)
    size = max(1, sum(array.nbytes for array in first.values()))
    most = min(len(rows), _OUTPUT_BYTES // size)
    if samples.data.labels is None or least is not None:
        most = min(most, max(32 if least is None else least, int(seconds / spent)))
    return rows[: max(1, most)]


def judge(outputs: Outputs, reference: Outputs, labels: Any, metric: Any, specs: Sequence[Any] | None) -> Metrics:
    """Fidelity against the original's outputs, and accuracy where there are labels."""
    from portolan.measure import quality

    metrics = quality.compare(outputs, reference, specs)
    if labels is not None:
        metrics["accuracy"] = quality.accuracy(outputs, labels, metric)
        metrics["accuracy_drop"] = quality.accuracy_drop(outputs, reference, labels, metric)
    return metrics


def broken(metrics: Mapping[str, Measurement], exact: bool, tolerance: float = 1e-2) -> str | None:
    """Why outputs cannot be right, whatever the goals: not finite, or far off although nothing was to change."""
    error = metrics.get("max_rel_error")
    if error is None:
        return None
    if not math.isfinite(error.value):
        return "verification failed: the outputs hold NaN or infinity where the original's do not"
    if exact and error.value > tolerance:
        return f"verification failed: the outputs are off by {error.value:.2g} of the original's RMS"
    return None
