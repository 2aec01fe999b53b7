"""What the flags become: the keywords of the Python API, the same names and meanings."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from scripted import PLAN, STUDY, Api, run

DEFAULTS = {
    "goals": (), "data": None, "metric": None, "shapes": None, "study": None, "backend": None, "passes": None,
    "recipe": None, "budget": None, "jobs": 1, "seed": 0, "target": "local", "price": None, "dry_run": False,
}  # fmt: skip


def test_optimize_without_flags(api: Api) -> None:
    run("optimize", "m.onnx")
    assert api.calls[-1][:2] == ("optimize", ("m.onnx",))
    assert api.keywords == DEFAULTS


def test_optimize_with_every_flag(api: Api) -> None:
    api.answers["optimize"] = PLAN
    args = (
        "optimize", "m.onnx", "-g", "latency_p95 < 8ms", "--goal", "min size", "--data", "val/",  "--metric",
        "f.py:top5",
        "--shapes", "x:1x3,y:2", "--shapes", "in:0:4x4", "--backend", "openvino, torch", "--backend", "reference",
        "--passes", "quantize,simplify", "--price", "1USD", "--recipe", "r.toml", "--jobs", "2",
        "--budget", "300s, 40 trials",
        "--seed", "7", "-t", "local", "--study", "s", "--dry-run",
    )  # fmt: skip
    assert run(*args).code == 0
    assert api.keywords == {
        "goals": ("latency_p95 < 8ms", "min size"), "data": "val/", "metric": "f.py:top5",
        "shapes": {"x": (1, 3), "y": (2,), "in:0": (4, 4)}, "backend": ["openvino", "torch", "reference"],
        "passes": ["quantize", "simplify"], "recipe": "r.toml", "budget": "300s, 40 trials", "jobs": 2, "seed": 7,
        "target": "local", "study": "s", "price": "1USD", "dry_run": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "positional", "keywords"),
    [
        (("inspect", "m", "--shapes", "x:1x3"), ("m",), {"shapes": {"x": (1, 3)}, "target": "local"}),
        (("inspect", "m", "--shapes", "x:batchx3"), ("m",), {"shapes": {"x": ("batch", 3)}, "target": "local"}),
        (
            ("deploy", "b", "--to", "docker,kserve", "--to", "triton", "--replicas", "1..4", "--scale-on", "qps"),
            ("b",),
            {
                "to": ["docker", "kserve", "triton"], "replicas": (1, 4), "scale_on": "qps", "out": None,
                "service": None, "image": None, "storage_uri": None, "force": False, "dry_run": False,
            },
        ),
        (
            (
                "deploy", "b", "--to", "docker", "--replicas", "2", "-o", "o", "--service", "n", "--image", "i:1",
                "--storage-uri", "s3://b", "--force", "--dry-run",
            ),
            ("b",),
            {
                "to": ["docker"], "replicas": (2, 2), "scale_on": None, "out": "o", "service": "n", "image": "i:1",
                "storage_uri": "s3://b", "force": True, "dry_run": True,
            },
        ),
        (("env",), ("list",), {"force": False, "dry_run": False}),
        (("env", "remove", "iree", "tvm", "--force"), ("remove", "iree", "tvm"), {"force": True, "dry_run": False}),
        (("doctor",), ("local",), {"bench": False}),
        (("doctor", "far", "--bench"), ("far",), {"bench": True}),
        (("doctor", "-t", "far"), ("far",), {"bench": False}),
        (
            (
                "compress", "m", "--pass", "simplify", "--pass", "quantize(bits=8, mode=static)", "-o", "q.onnx",
                "--force",
            ),
            ("m",),
            {
                "passes": ["simplify", "quantize(bits=8, mode=static)"], "out": "q.onnx", "data": None, "shapes": None,
                "seed": 0, "force": True, "dry_run": False,
            },
        ),
        (
            ("bench", "a", "b@openvino(threads=1)", "--backend", "openvino", "--budget", "20s", "--seed", "3"),
            ("a", "b@openvino(threads=1)"),
            {"data": None, "shapes": None, "backend": ["openvino"], "budget": "20s", "native": False, "seed": 3,
             "target": "local"},
        ),
        (
            ("target", "add", "arm", "--emulate", "aarch64", "--cpu", "cortex-a72", "--mirror", "http://m", "--latest"),
            ("add", "arm"),
            {"emulate": "aarch64", "cpu": "cortex-a72", "mirror": "http://m", "latest": True, "force": False,
             "dry_run": False},
        ),
        (
            ("report", "s1", "s2", "-o", "r.html", "--force"),
            ("s1", "s2"),
            {"out": "r.html", "force": True, "dry_run": False},
        ),
        (("report",), (), {"out": "report.html", "force": False, "dry_run": False}),
        (
            ("pack", "s", "--name", "n", "--trial", "4", "-o", "b", "--backend", "torch", "--data", "d.npz"),
            ("s",),
            {
                "out": "b", "name": "n", "trial": 4, "backend": "torch", "data": "d.npz", "shapes": None,
                "target": "local", "force": False, "dry_run": False,
            },
        ),
        (("pack", "--check", "b.portolan", "--native"), ("b.portolan",), {"native": True, "target": "local"}),
        (("pack", "--check", "b", "-t", "haswell"), ("b",), {"native": False, "target": "haswell"}),
    ],
)  # fmt: skip
def test_flags_become_keywords(
    args: tuple[str, ...], positional: tuple[str, ...], keywords: dict[str, Any], api: Api
) -> None:
    assert run(*args).code == 0
    assert api.calls[-1][1] == positional
    assert api.keywords == keywords


def test_a_report_of_nothing_named_takes_the_studies_that_are_here(api: Api, place: Path) -> None:
    for name in ("study-b", "study-a"):
        (place / name).mkdir()
        (place / name / "ledger.sqlite").touch()
    (place / "other").mkdir()
    run("report")
    assert api.calls[-1][1] == ("study-a", "study-b")


def test_the_next_command_names_the_study_from_here(api: Api, place: Path) -> None:
    api.answers["optimize"] = {**STUDY, "study": str(place / "study here")}
    assert "next: portolan report 'study here'    portolan pack 'study here'" in run("optimize", "m").out
    api.answers["optimize"] = {**STUDY, "study": "/else/where"}
    assert "portolan report /else/where" in run("optimize", "m").out


def test_a_dry_report_asks_for_one(api: Api) -> None:
    run("report", "a", "b", "--dry-run")
    assert api.calls == [("report", ("a", "b"), {"out": "report.html", "force": False, "dry_run": True})]


def test_the_scripted_api_has_the_keywords_of_the_real_one() -> None:
    from portolan import api as real

    for verb in (
        "inspect",
        "doctor",
        "optimize",
        "compress",
        "bench",
        "report",
        "pack",
        "check",
        "deploy",
        "env",
        "open",
        "target",
    ):
        ours = inspect.signature(getattr(Api, verb)).parameters.values()
        theirs = inspect.signature(getattr(real, verb)).parameters
        assert {p.name for p in ours if p.kind is p.KEYWORD_ONLY} <= set(theirs), verb
