"""The simulated accelerator, installed by pip: found, held to the contract, sharing models with the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.site import EXAMPLES, installed


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With the package installed."""
    return installed("systolic", tmp_path_factory.mktemp("accelerator"))


@pytest.fixture(scope="module")
def int8(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in int8."""
    folder = tmp_path_factory.mktemp("int8")
    portolan(env, folder, "compress", "demo:digits", "--pass", "quantize(mode=static)", "-o", "digits.onnx")
    return folder / "digits.onnx"


def portolan(env: dict[str, str], folder: Path, *args: str, code: int = 0) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "portolan", *args, "--json"],
        env=env, cwd=folder, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_doctor_finds_it(env: dict[str, str], tmp_path: Path) -> None:
    rows = {row["name"]: row for row in portolan(env, tmp_path, "doctor")["backends"]}
    assert (rows["systolic"]["ready"], rows["systolic"]["version"]) == (True, "0.1.0")


def test_it_keeps_the_contract(env: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    done = subprocess.run(
        [*command, str(EXAMPLES / "systolic" / "test_systolic.py")],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


def test_bench_estimates_it_and_times_the_rest(env: dict[str, str], int8: Path, tmp_path: Path) -> None:
    found = portolan(env, tmp_path, "bench", str(int8), "--backend", "onnxruntime,systolic", "--budget", "6s")
    arms = {arm["name"].rpartition("@")[2]: arm["metrics"]["latency_p50"] for arm in found["arms"]}
    assert arms["onnxruntime"]["kind"] == "measured"
    assert (arms["systolic"]["kind"], arms["systolic"]["n"], arms["systolic"]["lo"]) == ("estimated", None, None)
    assert found["ratios"] == []
    assert "was not timed: its latency is the simulation's estimate of the chip's share" in found["notes"][0]


def test_what_is_estimated_is_not_called_measured(env: dict[str, str], int8: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "portolan", "bench", str(int8), "--backend", "systolic", "--budget", "3s"],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "measured 0 of 1 arms, estimated 1"
    assert "~" in done.stdout


def test_a_search_refuses_what_cannot_be_measured(env: dict[str, str], int8: Path, tmp_path: Path) -> None:
    goals = ("-g", "min latency_p50", "--backend", "systolic", "--dry-run")
    found = portolan(env, tmp_path, "optimize", str(int8), *goals, code=4)
    assert "simulated" in json.dumps(found)


def test_its_bundle_answers_as_the_model_does(env: dict[str, str], int8: Path, tmp_path: Path) -> None:
    found = portolan(env, tmp_path, "pack", str(int8), "--backend", "systolic", "-o", "digits.portolan")
    assert found["verified"]
