"""The benchmark that says who wins where: what it makes of a search and of a race, without running either."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark's module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("race_runtimes", "race_page", "race_peers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("PORTOLAN_WORKER_TIMEOUT", "300")  # which it would set
    import race_runtimes

    return race_runtimes


def trial(backend: str, ms: float | None, **more: Any) -> dict[str, Any]:
    metrics = {} if ms is None else {"latency_p50": {"value": ms}}
    recipe = {"passes": [], "backend": backend, "options": {}}
    return {"recipe": recipe, "status": "ok", "met": True, "metrics": metrics, "reason": None, **more}


def row(*verdicts: tuple[str, float, str]) -> dict[str, Any]:
    ratios = [
        {"a": name, "b": "onnxruntime", "metric": "latency_p50", "ratio": ms, "lo": ms, "hi": ms, "verdict": verdict}
        for name, ms, verdict in verdicts
    ]
    return {
        "versions": {"onnxruntime": "1", "slow": "2"}, "host": "a machine", "date": "2026-01-01",
        "budget": ["3min", "150s"], "chosen": "onnxruntime",
        "recipe": {"passes": [{"name": "trim"}], "backend": "onnxruntime", "options": {"threads": 1}},
        "times": {"onnxruntime": {"value": 1.0}} | {name: {"value": ms} for name, ms, _ in verdicts},
        "ratios": ratios, "noise": {"aa_ratio": 1.0}, "beaten": {"iree": 7.0},
        "out": {"broken": "it has no operator `X` | of any kind"},
    }  # fmt: skip


def test_each_backend_is_entered_with_its_fastest_trial(script: ModuleType) -> None:
    trials = [
        trial("fast", 3.0), trial("fast", 2.0), trial("fast", 1.0, met=False),
        trial("broken", None, status="failed", reason="it died"), trial("late", None, status="refused", reason="no"),
    ]  # fmt: skip
    best = script.best_of_each(trials)
    assert {name: script.latency(one) for name, one in best.items()} == {"fast": 2.0}
    assert script.failed(trials, ["fast", "broken", "late"], best) == {"broken": "it died"}


def test_the_slowest_stay_out_where_five_starts_of_all_do_not_fit(script: ModuleType) -> None:
    times, seconds = {"a": 1.0, "b": 3.0, "c": 2.0}, {"a": 1.5, "b": 1.5, "c": 3.5}
    assert script.fitting(times, seconds, "a", 1000.0) == ["a", "c", "b"]
    assert script.fitting(times, seconds, "b", 1000.0) == ["b", "a", "c"]
    assert script.fitting(times, seconds, "a", 45.0) == ["a", "c"]  # five times 2 + 2 + 4
    assert script.fitting(times, seconds, "a", 1.0) == ["a", "c"]


def test_the_page_names_winners_ties_and_who_is_not_in_it(script: ModuleType) -> None:
    rows = {"vit": row(("slow", 2.0, "slower"), ("same", 0.99, "no significant difference"), ("olive", 1.2, "slower"))}
    text = script.race_page.page(rows, ("bert", "vit"))
    assert "| model | answer | iree | onnxruntime | same | slow | olive | slower than |" in text
    assert "| vit | 1 | (7) | 1 | **0.99** = | 2 | 1.2 | none |" in text
    assert "| vit | broken | it has no operator `X` / of any kind |" in text
    assert "| vit | `trim` | `onnxruntime` | threads 1 |" in text
    assert "--budget 3min --race 150s --write" in text


def test_an_answer_with_passes_has_a_place_of_its_own(script: ModuleType) -> None:
    better = row(("onnxruntime", 1.0, "slower"))
    better |= {"chosen": script.ANSWER, "times": better["times"] | {script.ANSWER: {"value": 0.5}}}
    text = script.race_page.page({"vit": better}, ("vit",))
    assert "| model | answer | iree | onnxruntime | slower than |" in text
    assert "| vit | **0.5** | (7) | 1 | none |" in text
    assert {"simplify", "trim", "fuse"} <= set(script.exact())
    assert not {"quantize", "prune"} & set(script.exact())


def test_it_fails_where_the_answer_is_slower_than_a_backend(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "runtimes.json"
    (tmp_path / "runtimes-vit.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["race_runtimes.py", str(tmp_path), "vit"])
    kept.write_text(json.dumps({"vit": row(("slow", 2.0, "slower"))}))
    assert script.main() == 0
    kept.write_text(json.dumps({"vit": row(("slow", 0.5, "faster"))}))
    assert script.main() == 1
