"""Profiles of compiled models: batches of each size, timed in one worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from portolan.core.data import feeds
from portolan.core.serving import Profile
from portolan.errors import PortolanError
from portolan.measure.profile import profile
from portolan.study.builder import Compiled, Samples
from portolan.study.probe import Session
from portolan.worker import patience

_SECONDS = 60.0


class NoProfile(PortolanError):
    """A profile that could not be measured, now or before."""


def profiled(
    compiled: Compiled, samples: Samples, limit: int, longest: float, first: Sequence[Mapping[str, np.ndarray]]
) -> tuple[Profile, str | None]:
    """Measures the profile of a compiled model, and why it ends where a batch did not run; see `measure.profile`.

    Args:
        compiled: what to load.
        samples: where the batches' rows come from, in turn.
        limit: the largest batch.
        longest: seconds above which no larger batch is tried.
        first: inputs of the worker's first run.

    Raises:
        WorkerError: it does not load, or does not run a single call.
    """
    session = Session(compiled, first)
    rows, signature = list(samples.evaluation), compiled.model.signature
    sizes: list[int] = []

    def block(size: int, seconds: float, least: int) -> np.ndarray:
        if sizes[-1:] != [size]:
            chosen = [rows[i % len(rows)] for i in range(size)]
            feed, _ = next(feeds(samples.data, chosen, signature, size))
            tensors = {f"0/{name}": array for name, array in feed.items()}
            session.worker.ask("inputs", timeout=patience(_SECONDS), tensors=tensors, count=1)
            sizes.append(size)
        timeout = patience(_SECONDS) + 20 * seconds
        reply = session.worker.ask("time", timeout=timeout, seconds=seconds, min_runs=least)
        return np.asarray(reply.tensors["ns"] / 1e6)

    try:
        return profile(block, limit, longest)
    finally:
        session.close()
