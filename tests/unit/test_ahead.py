"""Building ahead: what is built, and that neither the end of the budget nor Ctrl-C leaves anything running."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from portolan.core.recipe import Recipe, Step
from portolan.errors import WorkerCrashed
from portolan.search.candidate import Candidate
from portolan.study.ahead import build_ahead, first_recipes

INT8 = (Step("quantize", {"bits": 8}),)
LIVE = [
    Candidate(Recipe((), "a", {"threads": 1})),
    Candidate(Recipe((), "a", {"threads": 2})),
    Candidate(Recipe((), "b")),
    Candidate(Recipe(INT8, "a", {"threads": 1})),
    Candidate(Recipe(INT8, "b")),
]


class Recorder:
    """A builder that notes what it is asked for; with `hold` it builds until it is stopped."""

    def __init__(self, hold: bool = False, error: Exception | None = None) -> None:
        self.built: list[Any] = []
        self.stops = 0
        self._hold, self._error = hold, error
        self._stopped = threading.Event()

    def artefact(self, steps: Any) -> None:
        self._build(("artefact", steps))

    def compiled(self, recipe: Recipe) -> None:
        self._build(("compiled", recipe.backend, recipe.passes))

    def _build(self, what: Any) -> None:
        self.built.append(what)
        if self._hold:
            assert self._stopped.wait(30)
            raise WorkerCrashed("crashed with SIGKILL", killed=True)
        if self._error:
            raise self._error

    def stop(self) -> None:
        self.stops += 1
        self._stopped.set()


def ahead(builder: Recorder, over: Callable[[], bool] = lambda: False) -> None:
    build_ahead(builder, LIVE, 2, over, lambda text: None)  # type: ignore[arg-type]


def test_the_first_recipe_of_each_chain_on_each_backend() -> None:
    assert first_recipes(LIVE) == [LIVE[i].recipe for i in (0, 2, 3, 4)]


def test_artefacts_come_first_and_each_once() -> None:
    builder = Recorder()
    ahead(builder)
    assert builder.built[0] == ("artefact", INT8)
    assert sorted(builder.built[1:], key=str) == sorted([("compiled", b, p) for b in "ab" for p in ((), INT8)], key=str)
    assert builder.stops == 0


def test_what_cannot_be_built_is_left_to_the_search() -> None:
    builder = Recorder(error=WorkerCrashed("crashed"))
    ahead(builder)
    assert len(builder.built) == 5


def test_a_bug_goes_up() -> None:
    with pytest.raises(ZeroDivisionError):
        ahead(Recorder(error=ZeroDivisionError()))


def test_the_end_of_the_budget_ends_it() -> None:
    builder = Recorder(hold=True)
    ahead(builder, lambda: True)
    assert builder.built == [("artefact", INT8)]
    assert builder.stops >= 1


def test_ctrl_c_ends_it_at_once() -> None:
    def interrupted() -> bool:
        raise KeyboardInterrupt

    builder = Recorder(hold=True)
    with pytest.raises(KeyboardInterrupt):
        ahead(builder, interrupted)
    assert builder.stops >= 1
    assert not [t for t in threading.enumerate() if t.name.startswith("build")]
