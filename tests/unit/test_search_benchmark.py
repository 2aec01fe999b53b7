from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
from searching import LOSSY, NETWORKS, Machine, space

from portolan.core.goal import parse_goals


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "search.py"
    spec = importlib.util.spec_from_file_location("bench_search", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_search"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A SYNTHETIC table in the format of the recorder."""
    lines = []
    for name in ("bert", "resnet"):
        machine = Machine(NETWORKS[name])
        for c in space(LOSSY, refused_too=False):
            read = [machine.trial(c, level)[0] for level in (0, 1)]
            quality = {n: m.to_json() for n, m in (read[0] or {}).items() if n in ("cosine", "max_rel_error")}
            metrics = {
                str(i): {n: m.to_json() for n, m in (r or {}).items() if n not in quality} for i, r in enumerate(read)
            }
            lines.append(
                {
                    "model": name, "recipe": c.recipe.to_json(), "exact": c.exact, "heavy": c.heavy, "failure": None,
                    "metrics": {**metrics, "quality": quality},
                    "seconds": {"artefact": 2.0 * len(c.recipe.passes), "build": machine.seconds(c, 0) - 0.6,
                                "judge": 1.0, "0": 0.6, "1": 4.0},
                }
            )  # fmt: skip
    path = tmp_path / "synthetic.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_recorder_can_be_imported() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "record_table.py"
    spec = importlib.util.spec_from_file_location("bench_record", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    short = module.screening({"ms": [2.0, 1.99, 2.2], "n": 40})
    assert (short.lo, short.value, short.hi, short.n) == (1.9, 2.0, 2.2, 40)
    long = module.long_reading([{"ms": [x, 0, 0], "n": 10} for x in (2.0, 5.0, 2.2)])
    assert (long.lo, long.value, long.hi, long.n) == (2.0, 2.2, 5.0, 30)


def test_events_are_kept_and_a_torn_line_is_not_in_the_way(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "record_table.py"
    spec = importlib.util.spec_from_file_location("bench_record", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    file = tmp_path / "events"
    assert module.Events(file).once("a", lambda: {"x": 1}) == {"x": 1}
    with file.open("a") as torn:
        torn.write('{"key": "b", "va')
    again = module.Events(file)
    assert again.once("a", lambda: {"x": 2}) == {"x": 1}
    assert again.once("b", lambda: {"x": 3}) == {"x": 3}


def test_artefacts_and_judgements_are_paid_for_once(bench: ModuleType, table: Path) -> None:
    rows = bench.read([table])["bert"]
    replay = bench.Replay(rows, LOSSY)
    same = [r for r in rows if str(r.candidate.recipe) == "simplify" and r.candidate.recipe.backend == "onnxruntime"]
    first, second = (replay.cost(r, 0) for r in same[:2])
    assert first - second == pytest.approx(2.0 + 1.0)
    assert replay.cost(same[0], 1) == pytest.approx(4.0)


def test_a_trial_that_does_not_fit_the_budget_gives_nothing(bench: ModuleType, table: Path) -> None:
    rows = bench.read([table])["bert"]
    replay = bench.Replay(rows, LOSSY)
    assert replay.run(rows[0].candidate, 0, budget=1.0) is None
    assert replay.spent == 1.0


def test_what_fails_quality_is_worth_nothing_and_is_not_timed(bench: ModuleType, table: Path) -> None:
    rows = bench.read([table])["bert"]  # static quantization has cosine 0.9 here
    replay = bench.Replay(rows, LOSSY)
    bad = next(r for r in rows if "static" in str(r.candidate.recipe))
    assert replay.value(bad.candidate) == math.inf
    result = replay.run(bad.candidate, 1, budget=100.0)
    assert result is not None
    assert "latency_p50" not in result[0]
    assert replay.value(None) == math.inf


def test_the_exhaustive_best_is_the_smallest_long_reading(bench: ModuleType, table: Path) -> None:
    rows = bench.read([table])["bert"]
    seconds, best = bench.whole(rows, parse_goals(["cosine >= 0.99"]))
    good = [r for r in rows if r.quality["cosine"].value >= 0.99]
    assert best == min(r.readings[1]["latency_p50"].value for r in good)
    assert seconds > sum(4.0 for _ in good)


def test_the_whole_comparison_on_a_synthetic_table(
    bench: ModuleType, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resnet = [line for line in table.read_text().splitlines() if json.loads(line)["model"] == "resnet"]
    table.write_text("\n".join(resnet))
    monkeypatch.setattr(bench, "SHARES", (0.20,))
    monkeypatch.setattr(bench, "tpe", bench.random)  # Optuna is only there where benchmarks are run
    monkeypatch.setattr(sys, "argv", ["search.py", str(table), "--seeds", "3"])
    assert bench.main() == 0
    shown = capsys.readouterr().out
    assert "72 recorded trials of 1 models; 3 seeds" in shown
    assert shown.rstrip().endswith("within 2% of the best at 20% of the cost: met")


def test_picks_are_judged_by_the_truth_that_no_method_sees(bench: ModuleType, table: Path) -> None:
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    first = lines[0]
    first["metrics"]["truth"] = {"latency_p50": {**first["metrics"]["1"]["latency_p50"], "value": 1e-3}}
    table.write_text("\n".join(map(json.dumps, lines)))
    rows = bench.read([table])[first["model"]]
    goals = parse_goals(["min latency_p50"])
    replay = bench.Replay(rows, goals)
    assert replay.value(rows[0].candidate) == 1e-3
    metrics, _, _ = replay.run(rows[0].candidate, 1, 1e6)
    assert metrics["latency_p50"].value > 1e-3


def test_a_missed_target_is_an_error(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("portolan", "+ ledger", "random 0", "random 1", "tpe 0", "tpe 1")
    late = {(n, s): [0.05 if n == "portolan" else 0.2] * 3 for n in names for s in bench.SHARES}
    spread = {("net", "min latency"): "3.8 ms ±0.4"}
    assert bench.verdict({("net", "min latency"): late}, spread) == 1
    assert "above 2%: net: min latency (the best recipe's own starts: 3.8 ms ±0.4)" in capsys.readouterr().out
    near = {(n, s): [0.0 if n == "portolan" else 0.2] * 3 for n in names for s in bench.SHARES}
    half = {(n, s): [0.03 if n == "portolan" else 0.2] * 3 for n in names for s in bench.SHARES}
    both = {("net", "min latency"): near, ("other", "min latency"): half}
    assert bench.verdict(both, dict.fromkeys(both, "")) == 1, "a mean of 1.5 % does not hide a case with 3 %"
    assert bench.verdict({("net", "min latency"): near}, spread) == 0
    worse = {(n, s): [0.01 if n == "portolan" else 0.0] * 3 for n in names for s in bench.SHARES}
    assert bench.verdict({("net", "min latency"): worse}, spread) == 1
    assert "missed: not better than both baselines" in capsys.readouterr().out


def test_without_a_table_it_says_how_to_record_one(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    monkeypatch.setattr(sys, "argv", ["search.py", str(empty)])
    assert bench.main() == 2
    assert "record_table.py" in capsys.readouterr().err
