"""Every error that the command line itself can give: text, hint and exit code, compared with a snapshot."""

from __future__ import annotations

import errno
from pathlib import Path

import click
import pytest
from scripted import Api, run

from golden import FOLDER, check, transcript
from portolan import errors

USAGE: dict[str, tuple[str, ...]] = {
    "unknown-command": ("optimise", "m.onnx"),
    "unknown-command-far": ("zebra",),
    "no-command": (),
    "unknown-flag-of-portolan": ("--verison",),
    "unknown-flag": ("optimize", "m.onnx", "--bakend", "openvino"),
    "unknown-flag-far": ("inspect", "m.onnx", "--zebra"),
    "unknown-short-flag": ("inspect", "-x", "m.onnx"),
    "flag-of-another-command": ("inspect", "m.onnx", "--jobs", "2"),
    "flag-without-value": ("optimize", "m.onnx", "--budget"),
    "switch-with-value": ("optimize", "m.onnx", "--dry-run=yes"),
    "missing-model": ("inspect",),
    "missing-arms": ("bench",),
    "missing-pass": ("compress", "m.onnx"),
    "too-many-arguments": ("inspect", "a.onnx", "b.onnx"),
    "unknown-backend": ("optimize", "m.onnx", "--backend", "onnxruntime,opnvino"),
    "unknown-pass": ("compress", "m.onnx", "--pass", "quantise(bits=8)"),
    "unknown-pass-in-passes": ("optimize", "m.onnx", "--passes", "simplfy"),
    "options-where-names-belong": ("optimize", "m.onnx", "--passes", "quantize(bits=8)"),
    "two-passes-in-one-flag": ("compress", "m.onnx", "--pass", "simplify,quantize"),
    "two-backends-where-one-fits": ("pack", "m.onnx", "--backend", "openvino,torch"),
    "empty-backend": ("optimize", "m.onnx", "--backend", ","),
    "open-bracket": ("compress", "m.onnx", "--pass", "quantize(bits=8"),
    "unknown-metric": ("optimize", "m.onnx", "-g", "latency_p59 < 8ms"),
    "unreadable-goal": ("optimize", "m.onnx", "-g", "be quick"),
    "goal-with-a-wrong-unit": ("optimize", "m.onnx", "-g", "latency_p95 < 8 MiB"),
    "goal-at-no-load": ("optimize", "m.onnx", "-g", "latency_p99 < 50ms at 0 qps"),
    "goal-without-a-load": ("optimize", "m.onnx", "-g", "min size at 200 qps"),
    "bad-shape": ("inspect", "m.onnx", "--shapes", "x:1x3x0"),
    "shape-without-name": ("inspect", "m.onnx", "--shapes", "1x3"),
    "shape-twice": ("inspect", "m.onnx", "--shapes", "x:1x3", "--shapes", "x:2x3"),
    "seed-is-no-number": ("optimize", "m.onnx", "--seed", "many"),
    "jobs-of-zero": ("optimize", "m.onnx", "--jobs", "0"),
    "trial-is-no-number": ("pack", "study", "--trial", "best"),
    "unknown-shell": ("completion", "fsh"),
    "rate-of-nothing": ("serve", "b.portolan", "--max-rate", "0"),
    "share-above-one": ("serve", "b.portolan", "--otlp-share", "150%"),
    "request-size-without-unit": ("serve", "b.portolan", "--max-request", "64"),
    "pack-of-nothing": ("pack",),
    "pack-and-check": ("pack", "study", "--check", "b.portolan"),
    "deploy-nowhere": ("deploy", "b.portolan"),
    "unknown-platform": ("deploy", "b.portolan", "--to", "docker,trition"),
    "replicas-upside-down": ("deploy", "b.portolan", "--to", "docker", "--replicas", "4..1"),
    "replicas-is-no-range": ("deploy", "b.portolan", "--to", "docker", "--replicas", "many"),
    "unknown-way-to-scale": ("deploy", "b.portolan", "--to", "kserve", "--scale-on", "qsp"),
    "config-is-missing": ("inspect", "m.onnx", "--config", "nowhere.toml"),
}
CONFIG: dict[str, tuple[str, tuple[str, ...]]] = {
    "config-is-no-toml": ("seed = 1\nbackend = [\n", ("optimize", "m.onnx")),
    "config-has-bad-text": ("[optimize]\nbudget = 300s\n", ("optimize", "m.onnx")),
    "config-unknown-key": ("seed = 1\n\nbakend = 'openvino'\n", ("optimize", "m.onnx")),
    "config-unknown-key-of-command": ("[optimize]\nseed = 1\nbudgt = '3s'\n", ("optimize", "m.onnx")),
    "config-key-of-another-command": ("[inspect]\nbudget = '3s'\n", ("optimize", "m.onnx")),
    "config-unknown-table": ("[optimise]\nseed = 1\n", ("optimize", "m.onnx")),
    "config-flag-as-table": ("[budget]\nseconds = 3\n", ("optimize", "m.onnx")),
    "config-command-as-value": ("optimize = 3\n", ("optimize", "m.onnx")),
    "config-underscore": ("dry_run = true\n", ("optimize", "m.onnx")),
    "config-list-where-one-fits": ("seed = [1, 2]\n", ("optimize", "m.onnx")),
    "config-date": ("budget = 2024-01-01\n", ("optimize", "m.onnx")),
    "config-bad-value": ("\n[optimize]\njobs = 'all'\n", ("optimize", "m.onnx")),
    "config-unknown-backend": ("backend = ['openvno']\n", ("optimize", "m.onnx")),
    "config-bad-goal": ("[optimize]\ngoal = 'fast'\n", ("optimize", "m.onnx")),
    "config-switch-is-no-bool": ("[optimize]\ndry-run = 'perhaps'\n", ("optimize", "m.onnx")),
}
RAISED: dict[str, tuple[tuple[str, ...], BaseException]] = {
    "goals-not-met": (("pack", "s"), errors.GoalsNotMet("no trial met `min size`", hint="loosen a limit")),
    "no-backend": (("bench", "m.onnx"), errors.NoBackend("`torch` is not ready", hint="pip install 'portolan[torch]'")),
    "model-error": (("inspect", "m.onnx"), errors.ModelError("`m.onnx` is no ONNX file", where="byte 0")),
    "verification-failed": (("pack", "--check", "b"), errors.VerificationFailed("`model.onnx` has another checksum")),
    "no-result": (("optimize", "m.onnx"), errors.NoResult("no valid result in the budget", hint="--budget 600s")),
    "worker-error": (("bench", "m.onnx"), errors.WorkerCrashed("the worker died of signal 11")),
    "interrupted-by-the-study": (("optimize", "m.onnx"), errors.Interrupted("stopped after 3 trials; all are saved")),
    "ctrl-c": (("optimize", "m.onnx"), KeyboardInterrupt()),
    "ctrl-c-of-a-race": (("bench", "m.onnx"), KeyboardInterrupt()),
    "disk-full": (("optimize", "m.onnx"), OSError(errno.ENOSPC, "No space left on device", "/place/file")),
    "bug": (("optimize", "m.onnx"), TypeError("an integer is required")),
    "click-error": (("report",), click.ClickException("Could not do it.")),
}


@pytest.mark.parametrize("name", USAGE)
def test_usage(name: str, api: Api) -> None:
    check(f"errors/{name}", transcript(USAGE[name], run(*USAGE[name])))
    assert api.calls == []


@pytest.mark.parametrize("name", CONFIG)
def test_configuration(name: str, api: Api, place: Path) -> None:
    text, args = CONFIG[name]
    (place / "portolan.toml").write_text(text)
    check(f"errors/{name}", f"# portolan.toml\n{text}\n{transcript(args, run(*args))}")
    assert api.calls == []


@pytest.mark.parametrize("name", RAISED)
def test_raised_by_the_api(name: str, api: Api) -> None:
    args, error = RAISED[name]
    for verb in ("optimize", "pack", "check", "inspect", "bench", "report"):
        api.answers[verb] = error
    check(f"errors/{name}", transcript(args, run(*args)))


def test_a_mistyped_variable(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTOLAN_BUDGTE", "3s")
    check("errors/environment-unknown", transcript(("optimize", "m.onnx"), run("optimize", "m.onnx")))
    assert api.calls == []


def test_a_bad_variable(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTOLAN_OPTIMIZE_SEED", "x")
    check("errors/environment-bad-value", transcript(("optimize", "m.onnx"), run("optimize", "m.onnx")))
    assert api.calls == []


def test_a_configuration_that_is_no_text(api: Api, place: Path) -> None:
    (place / "portolan.toml").write_bytes(b"\xff\xfe")
    check("errors/config-is-binary", transcript(("inspect", "m"), run("inspect", "m")))


def test_a_report_that_would_overwrite(api: Api, place: Path) -> None:
    from portolan import reports

    (place / "report.html").write_text("mine")
    with pytest.raises(errors.UsageError) as caught:
        reports.write([], "report.html", dry_run=True)
    api.answers["report"] = caught.value
    check("errors/report-exists", transcript(("report", "--dry-run"), run("report", "--dry-run")))
    assert (place / "report.html").read_text() == "mine"


def test_no_snapshot_is_left_over() -> None:
    ours = {"environment-unknown", "environment-bad-value", "config-is-binary", "report-exists"}
    assert {p.stem for p in (FOLDER / "errors").iterdir()} == {*USAGE, *CONFIG, *RAISED, *ours}
