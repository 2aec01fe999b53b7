"""The benchmark that says who wins where: what it makes of a search and of a race, without running either."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "race_runtimes.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark's module."""
    spec = importlib.util.spec_from_file_location("race_runtimes", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "race_runtimes", module)
    spec.loader.exec_module(module)
    return module


def trial(backend: str, ms: float | None, **more: Any) -> dict[str, Any]:
    metrics = {} if ms is None else {"latency_p50": {"value": ms}}
    recipe = {"passes": [], "backend": backend, "options": {}}
    return {"recipe": recipe, "status": "ok", "met": True, "metrics": metrics, "reason": None, **more}


def ratio(backend: str, verdict: str) -> dict[str, Any]:
    return {
        "a": f"b/{backend}.portolan",
        "b": "b/fast.portolan",
        "metric": "latency_p50",
        "ratio": 2.0,
        "verdict": verdict,
    }


def row(*verdicts: tuple[str, float, str]) -> dict[str, Any]:
    arms = [{"name": "b/fast.portolan", "metrics": {"latency_p50": {"value": 1.0}}}]
    arms += [{"name": f"b/{name}.portolan", "metrics": {"latency_p50": {"value": ms}}} for name, ms, _ in verdicts]
    return {
        "versions": {"fast": "1", "slow": "2"}, "host": "a machine", "date": "2026-01-01", "budget": "4min",
        "chosen": {"backend": "fast"}, "arms": arms, "ratios": [ratio(name, what) for name, _, what in verdicts],
        "noise": {}, "out": {"broken": "it has no operator `X` | of any kind"},
    }  # fmt: skip


def test_each_backend_is_entered_with_its_fastest_exact_trial(script: ModuleType) -> None:
    trials = [
        trial("fast", 3.0), trial("fast", 2.0), trial("fast", 1.0, met=False), trial("broken", None, status="failed"),
        trial("late", None, status="refused", reason="no operator"), trial("late", None, reason="another"),
    ]  # fmt: skip
    best = script.best_of_each(trials)
    assert {name: t["metrics"]["latency_p50"]["value"] for name, t in best.items()} == {"fast": 2.0}
    out = script.out_of_it(trials, ["fast", "late", "unseen"], best)
    assert out == {"late": "no operator", "unseen": "not reached in the budget"}
    bf16 = trial("soft", None, status="refused", reason="changes outputs")
    bf16["recipe"]["options"] = {"precision": "bf16"}
    assert script.out_of_it([bf16], ["soft"], best) == {"soft": "not reached in the budget"}


def test_the_page_names_winners_ties_and_who_is_not_in_it(script: ModuleType) -> None:
    rows = {"vit": row(("slow", 2.0, "slower"), ("same", 0.99, "no significant difference"))}
    text = script.page(rows)
    assert "| model | fast | same | slow | chosen | slower than |" in text
    assert "| vit | 1 | **0.99** = | 2 | fast | none |" in text
    assert "| vit | broken | it has no operator `X` / of any kind |" in text
    assert "--budget 4min --write" in text


def test_it_fails_where_the_answer_is_slower_than_a_backend(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "runtimes.json"
    monkeypatch.setattr(sys, "argv", ["race_runtimes.py", str(tmp_path), "vit"])
    kept.write_text(json.dumps({"vit": row(("slow", 2.0, "slower"))}))
    assert script.main() == 0
    kept.write_text(json.dumps({"vit": row(("slow", 0.5, "faster"))}))
    assert script.main() == 1
