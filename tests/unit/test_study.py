"""Study: what `optimize` gives back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from portolan.core.measurement import Measurement
from portolan.core.recipe import Recipe, Step
from portolan.errors import GoalsNotMet, NoResult
from portolan.search.candidate import Candidate
from portolan.study.runner import Runner
from portolan.study.study import Study
from portolan.study.trial import Trial
from support.padded import LENGTH, encoder, sentences

BASE = Trial(0, Recipe(), "ok", metrics={"latency_p50": Measurement(10.0, "ms", 9.9, 10.1, 50)}, met=True, pareto=True)
FAST = Trial(
    1,
    Recipe((Step("quantize", {"mode": "<b>static</b>"}),), "openvino"),
    "ok",
    metrics={"latency_p50": Measurement(5.0, "ms", 4.9, 5.1, 50), "size": Measurement(2048, "B")},
    met=True,
    seconds=1.5,
    stages=("screened", "raced"),
    command="portolan bench m.onnx",
)
SLOW = Trial(2, Recipe(), "ok", reason="too slow", metrics={"latency_p50": Measurement(20.0, "ms")})
GONE = Trial(3, Recipe(), "failed", reason="it crashed")


def study(best: Trial | None, closest: Trial | None = None, name: str = "net") -> Study:
    data: dict[str, Any] = {
        "name": name,
        "goals": ["latency_p50 < 8ms", "min size"],
        "met": best is not None,
        "baseline": BASE.to_json(),
        "best": None if best is None else best.to_json(),
        "closest": None if closest is None else closest.to_json(),
        "trials": [t.to_json() for t in (BASE, FAST, SLOW, GONE)],
    }
    return Study(Path("study-net"), data)


def test_what_it_says() -> None:
    found = study(FAST)
    assert (found.name, found.met, found.goals) == ("net", True, ["latency_p50 < 8ms", "min size"])
    assert found.baseline == BASE
    assert found.best == FAST
    assert found.trials == [BASE, FAST, SLOW, GONE]
    assert found.closest is None
    assert found.to_json() == found.data
    assert found.to_json() is not found.data


def test_goals_that_are_not_met_name_the_closest() -> None:
    found = study(None, SLOW)
    with pytest.raises(GoalsNotMet) as caught:
        _ = found.best
    assert caught.value.closest == SLOW == found.closest
    assert caught.value.exit_code == 3
    assert caught.value.message == "no trial met `latency_p50 < 8ms` and `min size`"
    assert caught.value.hint == "closest: trial 2 (too slow); loosen a limit, or add time with --budget"


def test_nothing_valid_is_no_result() -> None:
    with pytest.raises(NoResult) as caught:
        _ = study(None).best
    assert (caught.value.exit_code, caught.value.message) == (7, "no trial gave a valid result")
    assert "--budget" in (caught.value.hint or "")


def test_repr_is_one_line() -> None:
    assert repr(study(FAST)).startswith("Study('net', 4 trials, best Trial(1, quantize(")
    assert "latency_p50=5.0 ms ±0.1 (n=50), size=2.00 KiB" in repr(study(FAST))
    assert repr(study(None, SLOW)) == "Study('net', 4 trials, goals not met)"
    assert repr(GONE) == "Trial(3, -, onnxruntime, failed)"


def test_html_shows_valid_trials_and_escapes_names() -> None:
    page = study(FAST, name="<script>alert(1)</script>")._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<b>" not in page
    assert "quantize(mode=&lt;b&gt;static&lt;/b&gt;)" in page
    assert page.count("<tr>") == 1 + 3
    assert "<tr><td>★</td><td>1</td>" in page
    assert "★" not in study(None, SLOW)._repr_html_()


def test_a_trial_survives_json() -> None:
    for trial in (BASE, FAST, SLOW, GONE):
        assert Trial.from_json(trial.to_json()) == trial


def test_newer_metrics_replace_older_ones() -> None:
    newer = BASE.with_metrics({"size": Measurement(1, "B"), "latency_p50": Measurement(9.0, "ms")}, "raced")
    assert newer.metrics == {"latency_p50": Measurement(9.0, "ms"), "size": Measurement(1, "B")}
    assert newer.stages == ("raced",)
    assert newer.with_metrics({}, "raced").stages == ("raced",)
    assert BASE.metrics.keys() == {"latency_p50"}


def test_the_work_of_a_trimmed_model_is_what_is_left_of_its_lengths(tmp_path: Path) -> None:
    """The roofline would not believe it otherwise. Attention takes the square of a length."""
    model = encoder(tmp_path / "net.onnx")
    task = SimpleNamespace(flops=1000.0, model=model)
    runner = SimpleNamespace(task=task, feeds=[sentences([length]) for length in (LENGTH, LENGTH // 2)])
    for steps, work in (((), 1000.0), ((Step("trim"),), 250.0), ((Step("trim"), Step("quantize")), 250.0)):
        candidate = Candidate(Recipe(steps, "onnxruntime"))
        assert Runner._work(runner, candidate) == work  # type: ignore[arg-type]
