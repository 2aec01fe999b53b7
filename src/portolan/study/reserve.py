"""The time that the race needs, kept from the search: when to stop for it, what a trial may take, and who missed out.

Without it a backend that compiles for a minute would take the race of all others with it. A race of a large model takes
minutes, and one among few recipes finds little: what it is kept is bounded by a share of the budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from portolan.core.labels import label
from portolan.search.searcher import Searcher
from portolan.search.space import Candidate
from portolan.study import finals
from portolan.study.budget import BudgetOver, Left, Spending, unlimited
from portolan.study.trial import Trial

#: Entrants of the smallest race worth having, the baseline among them, and how much longer than estimated it may take.
FEWEST, MARGIN = 2, 1.2
#: Share of the budget that is kept at most. What then has no time for five starts of each entrant chooses, but claims
#: nothing.
MOST = 0.4
#: Why a recipe that should have been was not tried.
CUT, NO_TURN = "the budget was over while it was being built or measured", "the budget was over before its turn"


class Reserve:
    """What a search keeps for its race: time for a small one until all backends' defaults were tried, then for a whole.

    Args:
        spending: the budget.
        searcher: knows which backends wait for their turn.
        trials: what screening found, by key; it grows.
        entrants: who would race now, the baseline first and then the most promising; None where nothing is raced.
    """

    def __init__(
        self,
        spending: Spending,
        searcher: Searcher,
        trials: Mapping[str, Trial],
        entrants: Callable[[], list[Candidate]] | None,
    ) -> None:
        self._spending, self._searcher, self._trials, self._entrants = spending, searcher, trials, entrants
        self._cut: list[Candidate] = []
        #: Seconds that the trial which is under way may still take.
        self.left: Left = unlimited

    @property
    def due(self) -> bool:
        """Whether the race must begin: what is left is what is kept for it."""
        left = self._spending.left
        if self._entrants is None or left == float("inf") or len(chosen := self._entrants()) < FEWEST:
            return False
        kept = self._small(chosen)
        if self._searcher.introduced:
            kept = max(kept, self._bounded(finals.seconds(chosen, self._trials)))
        return left < kept

    def spare(self) -> float:
        """Seconds that the next trial may take: what is left but for a small race, or half where that has no room."""
        left = self._spending.left
        if self._entrants is None or left == float("inf") or not (chosen := self._entrants()):
            return float("inf")
        need = self._small(chosen)
        return left - need if need < left else left / 2

    @contextmanager
    def kept(self, candidate: Candidate) -> Iterator[None]:
        """Sets `left` for a trial of `candidate`, and remembers which one `BudgetOver` ended."""
        end = time.monotonic() + self.spare()
        self.left = lambda: end - time.monotonic()
        try:
            yield
        except BudgetOver:
            self._cut.append(candidate)
            raise
        finally:
            self.left = unlimited

    @property
    def untried(self) -> list[dict[str, Any]]:
        """The recipe of each trial that was cut short and of each backend whose turn did not come, with the reason."""
        # The baseline was measured before the searcher was asked anything.
        cut = [c for c in self._cut if c.key not in self._trials]
        waiting = [c for c in self._searcher.waiting() if c not in cut and c.key not in self._trials]
        return [
            {"recipe": c.recipe.to_json(), "label": label(c.recipe), "reason": why}
            for why, some in ((CUT, cut), (NO_TURN, waiting))
            for c in some
        ]

    def _small(self, chosen: Sequence[Candidate]) -> float:
        return self._bounded(MARGIN * finals.seconds(chosen[:FEWEST], self._trials))

    def _bounded(self, seconds: float) -> float:
        return min(seconds, MOST * (self._spending.left + self._spending.seconds))
