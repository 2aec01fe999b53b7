"""What a recipe answers on a target where nothing is timed, against what the original answers here.

An emulator's time says nothing of the machine it stands for, so all that is asked there is whether the recipe runs, and
how far its outputs are from those of the untouched model on this machine's default runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portolan.core.measurement import METRICS, Metrics
from portolan.core.model import Model
from portolan.core.recipe import Recipe
from portolan.core.target import Target
from portolan.errors import NoBackend
from portolan.search.space import DEFAULT_BACKEND
from portolan.study.builder import Builder, Compiled, Samples
from portolan.study.probe import Outputs, Session, judge, reference, rows_to_judge
from portolan.study.workspace import Workspace
from portolan.targets.local import local
from portolan.worker.environments import backends

#: Seconds that the rows to judge by may take there, and the fewest rows however long they take.
_SECONDS, _LEAST = 10.0, 8
#: The largest error, as a share of the outputs' RMS, up to which answers are the same: f32 differs by 1e-6 between
#: processors, and a step of 8-bit arithmetic is 4e-3.
SAME = 1e-3
#: Metrics that only a machine with a clock of its own has, and memory, most of which would be the emulator's.
_CLOCKED = ("time", "rate", "money", "energy", "carbon")
UNTIMED = ("memory", *(name for name, metric in METRICS.items() if metric.dimension in _CLOCKED))


class Here:
    """The untouched model on the default runtime of this machine: what answers elsewhere are compared with.

    Args:
        workspace: where it is compiled.
        model: the original.
        samples: the data.
        say: told which rows are left out.
    """

    def __init__(self, workspace: Workspace, model: Model, samples: Samples, say: Any) -> None:
        self._workspace, self._model, self._samples, self._say = workspace, model, samples, say
        self._kept: dict[tuple[int, ...], tuple[tuple[int, ...], Outputs]] = {}

    def outputs(self, rows: tuple[int, ...]) -> tuple[tuple[int, ...], Outputs]:
        """Those of `rows` that the original answers without NaN, and its outputs for them.

        Raises:
            NoBackend: the default runtime is not here.
            WorkerError: the original does not run here.
            NoResult: it answers NaN for every row.
        """
        if rows not in self._kept:
            session = Session(self._compiled(), [])
            try:
                self._kept[rows] = reference(session, self._samples, self._model.signature, self._say, rows)
            finally:
                session.close()
        return self._kept[rows]

    def _compiled(self) -> Compiled:
        target = local.detect()
        found = backends(target, [DEFAULT_BACKEND])
        support = found[DEFAULT_BACKEND].probe(target)
        if not support.ready:
            raise NoBackend(
                f"`{DEFAULT_BACKEND}` is not ready here, and answers elsewhere are compared with its: {support.reason}",
                hint=support.fix,
            )
        return Builder(self._workspace, self._model, target, found, self._samples).compiled(Recipe())


def judged(compiled: Compiled, here: Here, samples: Samples, signature: Any, metric: Any = None) -> Metrics:
    """Agreement of a recipe on its target with the original here, and accuracy where there are labels.

    Raises:
        WorkerError: it does not load or run there.
    """
    session = Session(compiled, [])
    try:
        rows = rows_to_judge(session, samples, signature, _SECONDS, _LEAST)
        kept, wanted = here.outputs(rows)
        got = session.outputs(samples, kept, signature)
    finally:
        session.close()
    labels = samples.data.labels
    chosen = None if labels is None else labels[list(kept)]
    return judge(got, wanted, chosen, metric, signature.outputs)


def same(metrics: Mapping[str, Any]) -> bool:
    """Whether answers there are those from here, but for the last digits."""
    error = metrics.get("max_rel_error")
    return error is not None and error.value <= SAME


def absent(metrics: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Metrics as the contract writes them, with a null for each of `names` that nobody can measure there."""
    nothing = {
        name: {"value": None, "unit": METRICS[name].unit, "lo": None, "hi": None, "n": None, "kind": "measured"}
        for name in names
    }
    return {**nothing, **metrics}


def reason(target: Target) -> str:
    """Why nothing is timed there, in words."""
    return f"`{target.id}` is {target.kind}: time, energy and cost are not measured there, only answers and crashes"
