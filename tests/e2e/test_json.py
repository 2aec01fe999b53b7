"""What `--json` prints when nothing is scripted but the backend, against the shapes of the contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from click.testing import CliRunner

import portolan
from contract import json_shapes
from portolan import comparison
from portolan.cli.app import app
from support.studies import Lab, labelled, shorten

Told = Callable[..., Any]


@pytest.fixture
def told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Told:
    """Runs a command with `--json`: the one object on stdout, and the exit code that was expected."""
    import functools

    shorten(monkeypatch.setattr, 1)
    short = functools.partial(comparison.race, blocks=2, block_seconds=0.02, warm_up=0.02)
    monkeypatch.setattr(comparison, "race", short)
    monkeypatch.setattr(comparison, "MOST_STARTS", 1)
    lab.script(fast={"latency_ms": 1.0}, bad={"behaviour": "raise"})

    def run(*words: object, code: int = 0) -> Any:
        ran = CliRunner().invoke(app, [*map(str, words), "--json"])
        assert ran.exit_code == code, ran.stderr
        data = json.loads(ran.stdout)
        if code == 0:
            json_shapes.BY_VERB[str(words[0])](data)
        else:
            json_shapes.failure(data, code)
        return data

    return run


def test_from_a_model_to_a_bundle(lab: Lab, told: Told) -> None:
    data = labelled(lab.folder / "data.npz", rows=300)
    seen = told("inspect", lab.model)
    assert seen["operators"] == {"MatMul": 1}
    assert seen["parameters"] == 32
    assert [row["name"] for row in told("doctor")["backends"] if row["ready"]]

    search = ["optimize", lab.model, "--backend", "fake", "--recipe", '{"passes": []}', "--data", data]
    study = told(*search, "-g", "accuracy_drop <= 5%", "-g", "min latency_p50", "-g", "min size", "--study", "study")
    assert study["best"]["recipe"]["options"] == {"variant": "fast"}
    assert {t["status"] for t in study["trials"]} == {"ok", "failed"}
    assert {"latency_p50", "size", "memory", "cold_start", "compile_time", "accuracy"} <= set(study["best"]["metrics"])
    assert study["measurements"] > 0

    made = told("compress", lab.model, "--pass", "simplify", "-o", "small.onnx")
    assert Path(made["model"]).is_file()
    assert made["metrics"]["size"]["value"] > 0
    raced = told("bench", f"{lab.model}@fake", f"{lab.model}@fake(variant=fast)", "--budget", "20s")
    assert [(row["a"], row["b"]) for row in raced["ratios"]] == [(raced["arms"][1]["name"], raced["arms"][0]["name"])]

    packed = told("pack", "study", "-o", "tiny.portolan")
    assert packed["verified"] is True
    assert "manifest.json" in packed["files"]
    checked = told("pack", "--check", "tiny.portolan")
    assert (checked["sha256"], checked["verified"]) == (packed["sha256"], True)
    assert told("report", "study", "-o", "r.html") == {"report": "r.html"}
    assert told("deploy", "tiny.portolan", "--to", "docker")["sha256"] == packed["sha256"]
    told("optimize", "nowhere.onnx", code=2)
    told("report", "study", "-o", "r.html", code=2)
    told("pack", "--check", "r.html", code=2)

    study = portolan.open("study")
    for result in (
        study, study.best, portolan.load(lab.model), portolan.inspect(lab.model), portolan.doctor(),
        portolan.compress(lab.model, passes=["simplify"], dry_run=True),
        portolan.pack("study", out="other", dry_run=True),
        portolan.report("study", out="r.html", force=True, dry_run=True),
    ):  # fmt: skip
        shows_itself(result)
        with pytest.raises(AttributeError):
            result.name = "another"
    with portolan.open("tiny.portolan") as bundle:
        shows_itself(bundle)


KERNEL = """
from portolan import kernel, shapes

@kernel
def halves(x: "i") -> "i":
    return 0.5 * x[i]

shapes(halves, i=64)
"""


@pytest.mark.skipif(not any(map(which, ("gcc", "clang", "cc"))), reason="needs a C compiler")
def test_a_kernel(lab: Lab, told: Told) -> None:
    (lab.folder / "ops.py").write_text(KERNEL)
    (planned,) = told("kernel", "ops.py", "--dry-run")["kernels"]
    assert planned["seconds_tuning"] is None
    (made,) = told("kernel", "ops.py", "-o", "out")["kernels"]
    assert made["max_abs_error"] < 1e-6
    assert made["gflops"] > 0
    assert made["gbytes_per_s"] > 0
    assert Path(made["artefact"]).is_file()
    told("kernel", "nowhere.py", code=2)


def shows_itself(result: Any) -> None:
    """As the contract says of everything that Python gives: plain data, one line, and a table for notebooks."""
    json.dumps(result.to_json())
    assert "\n" not in repr(result)
    assert result._repr_html_().startswith("<table>")
