"""What earlier studies taught: a start for new ones, never a condition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from searching import MODEL, TARGET

from portolan.core.folders import cache_folder
from portolan.core.ledger import Ledger
from portolan.core.measurement import Measurement
from portolan.core.recipe import Recipe
from portolan.search.space import Candidate
from portolan.study.memory import Memory
from portolan.study.trial import Trial

OTHER = replace(TARGET, cores=64)
RECIPES = [Recipe(options={"threads": n}) for n in range(3)]
SPACE = [Candidate(recipe) for recipe in RECIPES]


def trials(*latencies: float) -> list[Trial]:
    return [
        Trial(i, recipe, "ok", metrics={"latency_p50": Measurement(ms, "ms")}, seconds=1.0)
        for i, (recipe, ms) in enumerate(zip(RECIPES, latencies, strict=False))
    ]


def test_nothing_is_known_at_first(tmp_path: Path) -> None:
    assert Memory(tmp_path).prior(TARGET, SPACE) == {}
    assert list(tmp_path.iterdir()) == []


def test_results_are_kept_relative_to_the_baseline(tmp_path: Path) -> None:
    assert Memory(tmp_path / "cache").keep(TARGET, MODEL, trials(10, 5, 20)) is None
    assert Memory(tmp_path / "cache").prior(TARGET, SPACE) == {
        RECIPES[0].key: {"latency_p50": 1.0, "seconds": 1.0},
        RECIPES[1].key: {"latency_p50": 0.5, "seconds": 1.0},
        RECIPES[2].key: {"latency_p50": 2.0, "seconds": 1.0},
    }


def test_only_recipes_of_the_space_are_asked_for(tmp_path: Path) -> None:
    Memory(tmp_path).keep(TARGET, MODEL, trials(10, 5, 20))
    assert Memory(tmp_path).prior(TARGET, SPACE[1:2]).keys() == {RECIPES[1].key}


def test_this_target_speaks_before_others(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.keep(OTHER, MODEL, trials(10, 9))
    assert memory.prior(TARGET, SPACE)[RECIPES[1].key]["latency_p50"] == 0.9
    memory.keep(TARGET, MODEL, trials(10, 5))
    memory.keep(OTHER, MODEL, trials(10, 8))
    assert memory.prior(TARGET, SPACE)[RECIPES[1].key]["latency_p50"] == 0.5


def test_a_newer_study_replaces_an_older_one(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.keep(TARGET, MODEL, trials(10, 5))
    memory.keep(TARGET, MODEL, trials(10, 6))
    assert memory.prior(TARGET, SPACE)[RECIPES[1].key]["latency_p50"] == 0.6


def test_failures_are_not_kept(tmp_path: Path) -> None:
    failed = [replace(t, status="failed") for t in trials(10, 5)]
    assert Memory(tmp_path).keep(TARGET, MODEL, failed) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no ledger at all, but long enough to be read as one" * 30])
def test_a_damaged_cache_is_no_cache(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(content)
    assert Memory(tmp_path).prior(TARGET, SPACE) == {}


def test_a_damaged_cache_is_said_when_results_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"no ledger at all, but long enough to be read as one" * 30)
    note = Memory(tmp_path).keep(TARGET, MODEL, trials(10, 5))
    assert note == f"`{tmp_path}` cannot be written: later studies will not learn from this one"


def test_a_cache_from_the_future_is_no_cache(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger._db.execute("PRAGMA user_version = 9")
    ledger.close()
    assert Memory(tmp_path).prior(TARGET, SPACE) == {}


def test_a_cache_that_cannot_be_made_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    note = Memory(tmp_path / "file" / "cache").keep(TARGET, MODEL, trials(10, 5))
    assert note == f"`{tmp_path / 'file' / 'cache'}` cannot be written: later studies will not learn from this one"
    assert Memory(tmp_path / "file" / "cache").prior(TARGET, SPACE) == {}


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORTOLAN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "portolan"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/portolan")
    monkeypatch.setenv("PORTOLAN_CACHE", "/mine")
    assert cache_folder() == Path("/mine")
