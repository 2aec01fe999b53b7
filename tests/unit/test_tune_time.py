"""Tuning ends in time, whatever a call takes; on a clock that only calls move."""

from __future__ import annotations

import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portolan.kernels import tune
from portolan.kernels.lower.schedule import Schedule

END, LAST = 6.0, 9.5


@dataclass
class Machine:
    """Checks and times schedules: each takes a while of a clock that nothing else moves."""

    check: float
    block: float
    now: float = 0.0
    blocks: list[str] = field(default_factory=list)
    language: str = "c"

    def monotonic(self) -> float:
        return self.now

    def make(self, program: Any, schedules: list[Schedule]) -> Path:
        return Path(f"k{schedules[0].tile_rows}")

    def error(self, name: str, path: Path) -> float:
        self.now += self.check
        return 0.0

    @property
    def worker(self) -> Any:
        return types.SimpleNamespace(ask=self.ask)

    def ask(self, task: str, **fields: Any) -> Any:
        assert task == "block"
        self.now += self.block
        self.blocks.append(fields["name"])
        return types.SimpleNamespace(fields={"ms": [self.block * 1e3]})


def run(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> list[tune.Trial]:
    monkeypatch.setattr(tune, "time", machine)
    options = [Schedule(None, None, 8, tile_rows=n) for n in range(1, 8)]
    program: Any = types.SimpleNamespace(name="stub")
    judge: Any = machine
    session = tune._Session(program, options[:1], 0, judge, judge, lambda text: None)
    with ThreadPoolExecutor(1) as compiling:
        return session.run(options, compiling, END, LAST)


@given(check=st.floats(0, 20), block=st.floats(0.001, 20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_no_check_begins_after_its_end_and_no_block_of_the_race_ends_too_late(
    check: float, block: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(check, block)
    trials = run(machine, monkeypatch)
    assert machine.now <= max(LAST, END + check + block) + 1e-6
    assert trials[0].blocks, "the first is timed, however long it takes"


def test_what_is_quick_gets_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(check=0.01, block=0.02)
    trials = run(machine, monkeypatch)
    assert len(trials) == 7
    assert sorted(len(t.blocks) for t in trials) == [4, 4, 4, 4, 4, 12, 12]


def test_what_is_slow_is_raced_as_far_as_time_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(check=1.0, block=0.9)
    trials = run(machine, monkeypatch)
    assert len(trials) == 4, "the fifth would be checked after 7.6 s"
    assert machine.blocks == ["k1", "k2", "k3", "k4", "k1", "k2"], "the last ends at 9.4 s"
