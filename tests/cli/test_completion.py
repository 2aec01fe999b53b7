"""Completion in shells."""

from __future__ import annotations

import subprocess
from shutil import which

import click
import pytest
from click.shell_completion import ShellComplete
from scripted import Api, run

from portolan.cli.app import app


def complete(args: list[str], incomplete: str) -> list[str]:
    found = ShellComplete(app, {}, "portolan", "_PORTOLAN_COMPLETE").get_completions(args, incomplete)
    return [item.value for item in found]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_name_the_program_and_the_variable(shell: str, api: Api) -> None:
    ran = run("completion", shell)
    assert ran.code == 0
    assert f"_PORTOLAN_COMPLETE={shell}_complete" in ran.out
    assert run("completion", shell, "--json").json == {"shell": shell, "script": ran.out[:-1]}
    if found := which(shell):
        subprocess.run([found, "-n"], input=ran.out, text=True, check=True, timeout=60)


def test_names_come_from_the_registry_and_the_metrics() -> None:
    assert complete(["optimize", "m", "--backend"], "onnxruntime,op") == ["onnxruntime,openvino"]
    assert complete(["optimize", "m", "--passes"], "qu") == ["quantize"]
    assert complete(["compress", "m", "--pass"], "s") == ["simplify"]
    assert complete(["optimize", "m", "-g"], "latency_p9") == ["latency_p95", "latency_p99"]
    assert complete(["optimize", "m", "-g"], "min si") == ["min size"]
    assert complete(["optimize", "m", "-g"], "mi") == ["min"]
    assert complete(["bench"], "m.onnx@ref") == ["m.onnx@reference"]
    assert complete(["bench"], "m.on") == ["m.on"]
    assert complete([], "comp") == ["compress", "completion"]
    assert "--dry-run" in complete(["pack", "s"], "--d")


def test_every_flag_can_be_completed() -> None:
    command = app.get_command(click.Context(app), "optimize")
    assert command is not None
    assert set(complete(["optimize", "m"], "--")) == {o for p in command.params for o in p.opts if o[:2] == "--"} | {
        "--help"
    }
