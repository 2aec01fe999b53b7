"""How the command line speaks: streams, verdicts, quiet, colour, tracebacks, interrupts, and the flags' names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import json_shapes
import pytest
import scripted
from scripted import Api, run

from portolan import errors
from portolan.cli.app import VERBS, app
from portolan.cli.console import Answer, Console, Line

EVERY = {
    "inspect": ("inspect", "m"),
    "doctor": ("doctor",),
    "optimize": ("optimize", "m"),
    "compress": ("compress", "m", "--pass", "quantize"),
    "bench": ("bench", "m"),
    "report": ("report",),
    "pack": ("pack", "s"),
    "target": ("target",),
}
FAILURES = {
    errors.PortolanError: 1, errors.UsageError: 2, errors.GoalsNotMet: 3, errors.NoBackend: 4, errors.ModelError: 5,
    errors.UnsupportedOperator: 5, errors.VerificationFailed: 6, errors.NoResult: 7, errors.WorkerTimeout: 1,
    errors.Interrupted: 130,
}  # fmt: skip


def commands() -> list[click.Command]:
    ctx = click.Context(app)
    return [command for name in VERBS if (command := app.get_command(ctx, name)) is not None]


@pytest.mark.parametrize("verb", EVERY)
def test_the_last_line_is_the_verdict_and_the_one_before_what_to_type(verb: str, api: Api) -> None:
    lines = run(*EVERY[verb]).out.splitlines()
    assert "next:" not in lines[-1]
    assert all(not line.startswith("next:") for line in lines[:-2])
    if len(lines) > 1 and lines[-2].startswith("next:"):
        assert "portolan" in lines[-2] or "pip" in lines[-2]


@pytest.mark.parametrize("verb", EVERY)
def test_quiet_leaves_stderr_empty_and_stdout_as_it_is(verb: str, api: Api) -> None:
    loud, quiet = run(*EVERY[verb]), run(*EVERY[verb], "-q")
    assert quiet.err == ""
    assert quiet.out == loud.out


@pytest.mark.parametrize(("error", "code"), FAILURES.items())
def test_every_class_of_failure_has_its_code_and_object(error: type[errors.PortolanError], code: int, api: Api) -> None:
    api.answers["optimize"] = error("it `broke`", hint="mend it")
    plain = run("optimize", "m")
    assert (plain.code, plain.out) == (code, "")
    assert "error: it `broke`\nhint: mend it\n" in plain.err
    ran = run("optimize", "m", "--json", "-q")
    assert (ran.code, ran.err) == (code, "")
    json_shapes.failure(ran.json, code)
    assert ran.json["error"]["hint"] == "mend it"


def test_usage_errors_are_objects_too(api: Api) -> None:
    ran = run("optimize", "m", "--bakend", "x", "--json")
    json_shapes.failure(ran.json, 2)
    assert ran.err == ""


def test_ctrl_c_is_130(api: Api) -> None:
    api.answers["optimize"] = KeyboardInterrupt()
    ran = run("optimize", "m", "--json", "-q")
    assert ran.code == 130
    json_shapes.failure(ran.json, 130)


def saved(place: Path) -> Path:
    return place.parent / "home/.local/state/portolan/last-error.txt"


def test_a_traceback_is_saved_named_with_v_and_shown_with_vv(api: Api, place: Path) -> None:
    api.answers["optimize"] = TypeError("oh")
    first = run("optimize", "m")
    assert first.code == 1
    assert "Traceback" not in first.err
    assert "TypeError: oh" in saved(place).read_text()
    assert f"traceback: {saved(place)}" in run("optimize", "m", "-v").err
    for flags in (("-vv",), ("-v", "-v"), ("--verbose", "--verbose")):
        assert "Traceback (most recent call last)" in run("optimize", "m", *flags).err
    assert run("optimize", "m", "--json", "-q").json["error"]["message"] == "a bug in Portolan: `TypeError: oh`"


def test_an_expected_error_leaves_no_traceback(api: Api, place: Path) -> None:
    api.answers["optimize"] = errors.ModelError("no")
    run("optimize", "m", "-v")
    assert not saved(place).exists()
    assert "ModelError" in run("optimize", "m", "-vv").err


def test_a_state_folder_that_cannot_be_written(api: Api, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(place))
    api.answers["optimize"] = TypeError("oh")
    told = run("optimize", "m", "-v").err
    path = re.search(r"traceback: (\S+)", told)
    assert path is not None
    assert "TypeError: oh" in Path(path[1]).read_text()
    monkeypatch.setattr("tempfile.tempdir", str(place / "nowhere"))
    assert run("optimize", "m", "-v").code == 1


def test_notes_and_progress_go_to_stderr(api: Api) -> None:
    ran = run("optimize", "m")
    assert ran.err == "screening 3 of 18\n"
    api.answers["optimize"] = {**scripted.STUDY, "notes": ["using backend `openvino`, fastest of 3 in a 2 s probe"]}
    assert "using backend `openvino`" in run("optimize", "m").err
    assert "using backend" not in run("optimize", "m").out


def test_colour_only_where_asked(api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Answer([Line("best", "bold"), Line("refused", "dim")], "done", next=["portolan report"], notes=["chosen"])
    Console(color=True).answer({}, lambda: answer)
    seen = capsys.readouterr()
    assert "\x1b[1mbest" in seen.out
    assert "\x1b[2mnext: portolan report" in seen.out
    assert "\x1b[2mchosen" in seen.err
    Console(color=None).answer({}, lambda: answer)
    assert "\x1b" not in "".join(capsys.readouterr())
    monkeypatch.setenv("NO_COLOR", "1")
    assert Console().color is False


def test_a_terminal_gets_one_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    if_terminal = """
import os, pty, sys
pid, fd = pty.fork()
if pid == 0:
    from portolan.cli.console import Console
    with Console().progress() as progress:
        progress("screening [3] of 18")
        import time
        progress("racing 4 recipes")
    os._exit(0)
seen = b""
while True:
    try:
        part = os.read(fd, 4096)
    except OSError:
        break
    if not part:
        break
    seen += part
_, status = os.waitpid(pid, 0)
sys.stdout.buffer.write(seen)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    env = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", if_terminal], capture_output=True, env=env, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert b"\x1b[2K" in ran.stdout  # the line is erased in the end


def test_a_reader_that_leaves_early_is_no_error(api: Api) -> None:
    code = """
import sys
from portolan.cli.console import Answer, Console, Line
sys.exit(Console().answer({}, lambda: Answer([Line("x")] * 99999, "v")))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    reader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert reader.stdout is not None
    assert reader.stderr is not None
    reader.stdout.readline()
    reader.stdout.close()
    told = reader.stderr.read()
    reader.stderr.close()
    assert reader.wait(timeout=60) == 0
    assert told == b""


def test_a_stream_that_knows_no_star(api: Api) -> None:
    code = "from portolan.cli.console import *; c = Console.early([]); c.raw('★ best')"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "latin-1"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "? best\n")


def test_flags_are_long_and_kebab_case_and_few_are_short() -> None:
    short = set()
    for command in commands():
        for param in command.params:
            if isinstance(param, click.Option):
                long = [o for o in param.opts if o.startswith("--")]
                assert long, param
                assert all(re.fullmatch(r"--[a-z]+(-[a-z]+)*", o) for o in long)
                short |= {o for o in param.opts if not o.startswith("--")}
    assert short <= {"-o", "-t", "-g", "-q", "-v", "-h"}


def test_the_same_flag_means_the_same_everywhere() -> None:
    said: dict[str, set[str]] = {}
    for command in commands():
        for param in command.params:
            if isinstance(param, click.Option):
                said.setdefault(max(param.opts, key=len), set()).add(
                    f"{type(param.type).__name__} {param.help} {param.is_flag}"
                )
    differ = {flag for flag, helps in said.items() if len(helps) > 1}
    assert differ <= {"--out", "--backend"}  # what is written differs, and `pack` takes one backend


def test_what_writes_has_a_dry_run() -> None:
    writers = {c.name for c in commands() if any("--dry-run" in p.opts for p in c.params)}
    assert writers == {"optimize", "compress", "kernel", "report", "pack", "deploy", "env", "target"}


def test_version_and_module() -> None:
    from portolan import __version__

    assert run("--version").out == f"portolan {__version__}\n"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-m", "portolan", "optimise"], capture_output=True, text=True, env=env, check=False, timeout=60
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "error: no command named `optimise`\nhint: did you mean `optimize`?\n"
