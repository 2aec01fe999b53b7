"""What earlier studies on this machine learned, as a start for new ones. Losing it costs time, never a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from portolan.core.folders import cache_folder
from portolan.core.ledger import Ledger
from portolan.core.model import Model
from portolan.core.target import Target
from portolan.errors import PortolanError
from portolan.search.space import Candidate
from portolan.study.trial import Trial

_METRICS = ("latency_p50", "size", "memory")


class Memory:
    """The ledger of earlier studies: per recipe, how it did relative to its study's baseline."""

    def __init__(self, folder: Path | None = None) -> None:
        self._path = (folder or cache_folder()) / "ledger.sqlite"

    def prior(self, target: Target, space: Sequence[Candidate]) -> dict[str, Mapping[str, float]]:
        """For each recipe of `space` seen before, its metrics relative to the baseline.

        The newest study on this target speaks, or else the newest on any other.
        """
        wanted = {c.key for c in space}
        here: dict[str, Mapping[str, float]] = {}
        elsewhere: dict[str, Mapping[str, float]] = {}
        try:
            with closing(Ledger(self._path, writable=False)) as ledger:
                for key, data in ledger.all("relative"):
                    if key in wanted:
                        side = here if data["target"] == target.fingerprint else elsewhere
                        side[key] = data["metrics"]
        except (PortolanError, OSError):
            return {}
        return {**elsewhere, **here}

    def keep(self, target: Target, model: Model, trials: Sequence[Trial]) -> str | None:
        """Adds a study's results, of which the first valid one is the baseline; a note when they could not be kept."""
        valid = [t for t in trials if t.status == "ok"]
        if not valid:
            return None
        usual = valid[0].metrics
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(Ledger(self._path)) as ledger:
                for trial in valid:
                    both = [m for m in _METRICS if m in trial.metrics and m in usual and usual[m].value > 0]
                    metrics = {m: trial.metrics[m].value / usual[m].value for m in both} | {"seconds": trial.seconds}
                    data = {"target": target.fingerprint, "model": model.sha256, "metrics": metrics}
                    ledger.append("relative", trial.recipe.key, data)
        except (PortolanError, OSError):
            return f"`{self._path.parent}` cannot be written: later studies will not learn from this one"
        return None
