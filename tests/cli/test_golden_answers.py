"""What each command prints, from contract-shaped objects, and every help text, compared with snapshots."""

from __future__ import annotations

import copy
from typing import Any

import json_shapes
import pytest
import scripted
from scripted import Api, run

from golden import check, transcript
from portolan.cli.app import VERBS


def _with(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(data), **changes}


def _done(action: str, which: int) -> dict[str, Any]:
    rows = scripted.ENVIRONMENTS["environments"][which : which + 1]
    return _with(scripted.ENVIRONMENTS, action=action, environments=rows)


def _same_study() -> dict[str, Any]:
    verdict = {"ratio": 0.998, "lo": 0.98, "hi": 1.02, "verdict": "no significant difference"}
    return _with(scripted.STUDY, ratios=[{**scripted.RATIO, **verdict}])


def _unlabelled() -> dict[str, Any]:
    study = _with(scripted.STUDY, goals=["latency_p95 < 8ms", "cosine >= 0.99", "max throughput"])
    for trial in study["trials"]:
        for name in ("accuracy", "accuracy_drop"):
            trial["metrics"].pop(name, None)
        if trial["status"] == "ok":
            trial["metrics"]["cosine"] = scripted.metric("cosine", 0.9991, 0.0002, 64)
            trial["metrics"]["throughput"] = scripted.metric("throughput", 212.0, 3.0, 40)
    study["baseline"], study["best"] = study["trials"][0], study["trials"][3]
    study["data"]["synthetic"] = True
    return study


def _many() -> dict[str, Any]:
    study = _with(scripted.STUDY)
    for i in range(20, 34):
        study["trials"].append(_with(scripted.SECOND, id=i))
        reason = f"reason {i % 6}"
        study["trials"].append(scripted.trial(None, scripted.recipe("torch"), status="refused", reason=reason))
    study["skipped"] = {"cosine is 0.97 with the same arithmetic, and the goal is cosine >= 0.99": 28, "a: nothing": 3}
    late, cut = "the budget was over before its turn", "the budget was over while it was being built or measured"
    study["untried"] = [{"recipe": scripted.recipe("torch", scripted.INT8), "reason": cut}]
    study["untried"] += [{"recipe": scripted.recipe(name), "reason": late} for name in ("tvm", "iree")]
    return study


def _no_trials() -> dict[str, Any]:
    failed = scripted.trial(0, scripted.recipe(), status="failed", reason="out of memory at 2.0 GiB")
    return _with(scripted.UNMET, trials=[failed], closest=None, baseline=failed)


def _baseline_wins() -> dict[str, Any]:
    base = {**scripted.BASELINE, "met": True, "reason": None}
    return _with(scripted.STUDY, goals=["min latency_p50"], best=base, baseline=base, trials=[base], ratios=[])


def _served() -> dict[str, Any]:
    study = _with(scripted.STUDY, goals=["latency_p99 < 50ms at 200 qps", "accuracy_drop <= 1%"], ratios=[], noise=None)
    best = study["trials"][3]
    batches = {"1": scripted.metric("latency_p95", 0.0069), "8": scripted.metric("latency_p95", 0.0212)}
    recipe = best["recipe"]
    profile = {"quantile": 0.95, "unit": "s", "batches": batches}
    profiles = [{"trial": 14, "recipe": recipe, "note": None, "profile": profile}]
    study["serving"] = {"loads": [200.0], "choices": [], "runs": [], "profiles": profiles}
    serving = {"max_batch": 8, "replicas": [2, 2], "deadline": 0.05}
    best["recipe"], best["stages"] = {**recipe, "serving": serving}, ["loaded"]
    words = {"passes": "quantize(mode=static)", "backend": "openvino(threads=2)"}
    best["label"] = {**words, "serving": "batch 8, 2 replicas, deadline 50 ms"}
    best["metrics"]["latency_p99@200qps"] = {**scripted.metric("latency_p99", 31.5, 4.0, 1800)}
    base = study["trials"][0]
    base["stages"] = ["screened", "loaded"]
    base["metrics"]["latency_p99@200qps"] = {**scripted.metric("latency_p99", 91.0, 9.0, 1800)}
    crashed = study["trials"][2]
    crashed["reason"] = "cannot hold 200 qps: 31.0% of the calls got no answer (too late to be answered in time)"
    study["baseline"], study["best"] = base, best
    return study


def _three_arms(verdict: str | None = None) -> dict[str, Any]:
    data = _with(scripted.COMPARISON)
    third = {**data["ratios"][0], "a": "m.onnx@torch", "ratio": 1.3, "lo": 1.2, "hi": 1.4, "verdict": "slower"}
    data["ratios"].append(third)
    data["arms"].append({"name": "m.onnx@torch", "metrics": {"latency_p50": scripted.metric("latency_p50", 0.051)}})
    data["arms"].append({"name": "m.onnx@odd", "metrics": {}, "reason": "the worker died of signal 6 (SIGABRT)"})
    for ratio in data["ratios"]:
        ratio["verdict"] = verdict or ratio["verdict"]
    return data


def _two_starts() -> dict[str, Any]:
    data = _with(scripted.COMPARISON)
    data["ratios"][0] |= {"lo": 1e-5, "hi": 50591.0, "verdict": "no significant difference", "starts": 2}
    data["noise"] |= {"lo": 0.001, "hi": 1200.0}
    return data


CASES: dict[str, tuple[tuple[str, ...], str, Any]] = {
    "optimize": (("optimize", "resnet50.onnx"), "optimize", scripted.STUDY),
    "optimize-not-met": (("optimize", "resnet50.onnx"), "optimize", scripted.UNMET),
    "optimize-same-speed": (("optimize", "resnet50.onnx"), "optimize", _same_study()),
    "optimize-served": (("optimize", "resnet50.onnx"), "optimize", _served()),
    "optimize-unlabelled": (("optimize", "resnet50.onnx"), "optimize", _unlabelled()),
    "optimize-many": (("optimize", "resnet50.onnx"), "optimize", _many()),
    "optimize-many-verbose": (("optimize", "resnet50.onnx", "-v"), "optimize", _many()),
    "optimize-nothing-valid": (("optimize", "resnet50.onnx"), "optimize", _no_trials()),
    "optimize-baseline-wins": (("optimize", "resnet50.onnx"), "optimize", _baseline_wins()),
    "optimize-dry-run": (("optimize", "resnet50.onnx", "--dry-run"), "optimize", scripted.PLAN),
    "inspect": (("inspect", "my model.onnx"), "inspect", scripted.INSPECTION),
    "inspect-unknown-size": (
        ("inspect", "m.onnx"),
        "inspect",
        _with(scripted.INSPECTION, flops=None, bytes_moved=None, operators={}, notes=[]),
    ),
    "inspect-elsewhere": (
        ("inspect", "m.onnx", "-t", "arm"),
        "inspect",
        _with(
            scripted.INSPECTION,
            target=scripted.ARM,
            backends=[
                {"name": "onnxruntime", "takes": True, "reason": None},
                {"name": "openvino", "takes": False, "reason": "the package `openvino` is not installed"},
            ],
        ),
    ),
    "doctor": (("doctor",), "doctor", scripted.EXAMINATION),
    "doctor-verbose": (("doctor", "-v"), "doctor", scripted.EXAMINATION),
    "doctor-bench": (
        ("doctor", "--bench"),
        "doctor",
        _with(scripted.EXAMINATION, ceilings=scripted.CEILINGS, payoffs=scripted.PAYOFFS),
    ),
    "doctor-nothing-ready": (
        ("doctor",),
        "doctor",
        _with(scripted.EXAMINATION, backends=scripted.EXAMINATION["backends"][1:], passes=[]),
    ),
    "compress": (("compress", "resnet50.onnx", "--pass", "quantize"), "compress", scripted.COMPRESSION),
    "compress-dry-run": (
        ("compress", "resnet50.onnx", "--pass", "quantize", "--dry-run"),
        "compress",
        _with(scripted.COMPRESSION, metrics={}),
    ),
    "bench": (("bench", "m.onnx"), "bench", scripted.COMPARISON),
    "bench-three": (("bench", "m.onnx"), "bench", _three_arms()),
    "bench-three-same": (("bench", "m.onnx"), "bench", _three_arms("no significant difference")),
    "bench-two-starts": (("bench", "m.onnx"), "bench", _two_starts()),
    "bench-restless": (
        ("bench", "m.onnx"),
        "bench",
        _with(scripted.COMPARISON, noise={**scripted.NOISE, "aa_ratio": 1.2, "lo": 1.1, "hi": 1.3, "ok": False}),
    ),
    "bench-one": (
        ("bench", "m.onnx"),
        "bench",
        _with(
            scripted.COMPARISON,
            arms=scripted.COMPARISON["arms"][:1],
            ratios=[],
            noise={"aa_ratio": None, "lo": None, "hi": None, "ok": False},
        ),
    ),
    "bench-all-failed": (
        ("bench", "m.onnx"),
        "bench",
        _with(scripted.COMPARISON, arms=[{"name": "m.onnx", "metrics": {}, "reason": "it hung"}], ratios=[]),
    ),
    "bench-emulated": (("bench", "m-f32.onnx", "m-int8.onnx", "-t", "arm"), "bench", scripted.ELSEWHERE),
    "bench-emulated-crash": (
        ("bench", "m.onnx", "-t", "arm"),
        "bench",
        _with(
            scripted.ELSEWHERE, arms=[{"name": "m.onnx", "metrics": {}, "reason": "crashed with SIGILL during `run`"}]
        ),
    ),
    "target-list": (("target",), "target", scripted.TARGETS),
    "target-list-empty": (("target", "list"), "target", {"action": "list", "targets": []}),
    "target-show": (("target", "show", "arm"), "target", {"action": "show", "targets": [scripted.ADDED]}),
    "target-show-older": (("target", "show", "older"), "target", {"action": "show", "targets": [scripted.OLDER]}),
    "target-add": (
        ("target", "add", "arm", "--emulate", "aarch64"),
        "target",
        {"action": "add", "targets": [scripted.ADDED]},
    ),
    "target-add-dry-run": (
        ("target", "add", "arm", "--emulate", "aarch64", "--dry-run"),
        "target",
        {
            "action": "add",
            "targets": [
                {
                    "name": "arm",
                    "emulate": "aarch64",
                    "folder": "/targets/arm",
                    "cpu": "neoverse-v1",
                    "fetches": ["qemu-user, 71.1 MB", "26 packages of Debian for aarch64, 14.5 MB"],
                }
            ],
        },
    ),
    "target-remove": (
        ("target", "remove", "arm"),
        "target",
        {"action": "remove", "targets": [{"name": "arm", "folder": "/targets/arm", "size": 263 * 2**20}]},
    ),
    "report": (("report", "study-resnet50", "-o", "out.html"), "pack", None),
    "report-dry-run": (("report", "study-resnet50", "--dry-run"), "pack", None),
    "pack": (("pack", "study-resnet50"), "pack", scripted.PACKING),
    "pack-dry-run": (
        ("pack", "study-resnet50", "--dry-run"),
        "pack",
        _with(scripted.PACKING, files=[], sha256=None, verified=False),
    ),
    "pack-not-verified": (("pack", "study-resnet50"), "pack", _with(scripted.PACKING, verified=False)),
    "deploy": (("deploy", "resnet50.portolan", "--to", "docker,triton"), "deploy", scripted.DEPLOYMENT),
    "deploy-dry-run": (
        ("deploy", "resnet50.portolan", "--to", "docker", "--to", "triton", "--dry-run"),
        "deploy",
        scripted.DEPLOYMENT,
    ),
    "env": (("env",), "env", scripted.ENVIRONMENTS),
    "env-verbose": (("env", "list", "-v"), "env", scripted.ENVIRONMENTS),
    "env-add": (("env", "add", "litert"), "env", _done("add", 1)),
    "env-add-dry-run": (("env", "add", "iree", "--dry-run"), "env", _done("add", 0)),
    "env-remove": (("env", "remove", "iree"), "env", _done("remove", 0)),
    "pack-check": (("pack", "--check", "resnet50.portolan"), "check", scripted.PACKING),
}


@pytest.mark.parametrize("name", CASES)
def test_answer(name: str, api: Api) -> None:
    args, verb, data = CASES[name]
    api.answers[verb] = data
    check(f"answers/{name}", transcript(args, run(*args)))


@pytest.mark.parametrize("name", [n for n in CASES if "dry-run" not in n and not n.startswith("report")])
def test_json_is_the_object_alone(name: str, api: Api) -> None:
    args, verb, data = CASES[name]
    api.answers[verb] = data
    quiet = run(*args, "--json")
    assert quiet.json == data
    assert quiet.code == run(*args).code
    json_shapes.BY_VERB[args[0]](quiet.json)


def test_report_json(api: Api) -> None:
    assert run("report", "s", "-o", "x.html", "--json").json == {"report": "x.html"}


def test_numbers_that_json_lacks_are_null(api: Api) -> None:
    api.answers["inspect"] = _with(scripted.INSPECTION, flops=float("nan"), bytes_moved=float("inf"))
    found = run("inspect", "m.onnx", "--json").json
    assert found["flops"] is None
    assert found["bytes_moved"] is None


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    args = (*verb.split(), "--help")
    check(f"help/{verb or 'portolan'}", transcript(args, run(*args)))


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_of_commands_says_what_the_command_says(verb: str) -> None:
    said = run(verb, "-h").out
    assert VERBS[verb].about.lower() in " ".join(said.lower().split())
