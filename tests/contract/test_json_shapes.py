"""The checks of the contract's objects can themselves fail."""

from __future__ import annotations

import json_shapes
import pytest

METRIC = {"value": 6.9, "unit": "ms", "lo": 6.8, "hi": 7.0, "n": 312, "kind": "measured"}
RECIPE = {"passes": [], "backend": "onnxruntime", "options": {}, "target": "local", "serving": {}}
TRIAL = {"id": 1, "recipe": RECIPE, "status": "ok", "reason": None, "metrics": {}, "pareto": True, "met": True}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "guessed"}, "kind"),
        ({"unit": "s"}, "unit"),
        ({"lo": 8.0}, "upside down"),
        ({"n": 3.5}, r"\$\.n"),
        ({"value": True}, "bool"),
    ],
)
def test_a_wrong_metric_is_told(change: dict, told: str) -> None:
    json_shapes.metric(METRIC, "$", "latency_p95")
    with pytest.raises(json_shapes.Misshapen, match=told):
        json_shapes.metric({**METRIC, **change}, "$", "latency_p95")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"status": "refused"}, "without a reason"),
        ({"status": "failed", "reason": "it crashed"}, "yet met"),
        ({"status": "odd"}, "status"),
        ({"metrics": {"speed": METRIC}}, "no metric"),
        ({"recipe": {**RECIPE, "passes": [{}]}}, r"passes\[0\].name is missing"),
        ({"recipe": None}, "recipe"),
    ],
)
def test_a_wrong_trial_is_told(change: dict, told: str) -> None:
    json_shapes.trial(TRIAL, "$")
    with pytest.raises(json_shapes.Misshapen, match=told):
        json_shapes.trial({**TRIAL, **change}, "$")


def test_a_study_that_is_met_without_a_best_trial_is_told() -> None:
    study = {
        "study": "s", "goals": [], "met": True, "baseline": TRIAL, "trials": [TRIAL], "best": None, "closest": None,
        "seconds": 1.0, "measurements": 1,
    }  # fmt: skip
    with pytest.raises(json_shapes.Misshapen, match="disagree"):
        json_shapes.study(study)


def test_a_deployment_without_its_facts_is_told() -> None:
    facts = {"replicas": [1, 1], "max_batch": 1, "deadline": None, "cpus": 2, "profiled": False}
    facts |= {"latency": METRIC, "memory": None, "cold_start": None}
    data = {"bundle": "b", "sha256": "0", "name": "n", "out": "o", "facts": facts, "platforms": []}
    json_shapes.deployment(data)
    for wrong in ({**facts, "latency": {}}, {**facts, "cpus": None}):
        with pytest.raises(json_shapes.Misshapen, match="facts"):
            json_shapes.deployment({**data, "facts": wrong})


def test_a_failure_with_another_code_than_the_exit_code_is_told() -> None:
    error = {"error": {"code": 3, "message": "m", "where": None, "hint": None}}
    json_shapes.failure(error, 3)
    with pytest.raises(json_shapes.Misshapen, match="code"):
        json_shapes.failure(error, 4)
