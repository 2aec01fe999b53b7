from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "race.py"


@pytest.fixture
def benchmark(monkeypatch):
    """The benchmark's module."""
    spec = importlib.util.spec_from_file_location("race_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "race_benchmark", module)
    spec.loader.exec_module(module)
    return module


def test_it_prints_a_row_for_each_case_and_a_verdict(benchmark, capsys):
    assert benchmark.main(["--runs", "8"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == len(benchmark.CASES) + 3
    assert all(line.endswith("ok") for line in out[1:-1])
    assert out[-1].startswith("all bounds hold: 8 runs a row")


def test_it_fails_when_a_bound_is_missed(benchmark, capsys, monkeypatch):
    impossible = benchmark.Case("equal arms, wanted to be different", 0.0, least=0.9)
    monkeypatch.setattr(benchmark, "CASES", (impossible,))
    assert benchmark.main(["--runs", "3", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert [row["ok"] for row in found["rows"]] == [False, True]


def test_the_design_to_avoid_fails_its_own_check(benchmark):
    row = benchmark.all_a_then_all_b(60, seed=0)
    assert row.called > 0.5
    assert row.ok


def test_no_runs_is_refused(benchmark, capsys):
    with pytest.raises(SystemExit) as caught:
        benchmark.main(["--runs", "0"])
    assert caught.value.code == 2
    assert "at least 1" in capsys.readouterr().err
