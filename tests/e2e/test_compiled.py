"""The server as a wheel installs it, compiled by mypyc: it passes the tests that the interpreted one passes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.site import environment, wheel

ROOT = Path(__file__).parents[2]
UNITS = ("arena", "batches", "cores", "guard", "kept", "rollout", "scheduler", "turns")
UNITS += ("serving_feeds", "serving_http", "serving_protocol")
#: It waits for ten seconds, whoever reads what the clients send.
PATIENT = "tests/attacks/test_serving_malformed.py::test_slow_clients_are_sent_away_and_hold_up_nobody"
CORE = [
    *(f"tests/unit/test_{name}.py" for name in UNITS),
    *("tests/e2e/test_serve.py", "tests/e2e/test_serve_large.py", "tests/e2e/test_models_in_process.py"),
    "tests/attacks/test_serving_malformed.py",
    f"--deselect={PATIENT}",
]
OTHERS = [
    *("tests/e2e/test_serve_doors.py", "tests/e2e/test_gateway.py", "tests/attacks/test_serving_faults.py"),
    PATIENT,
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the wheel comes before everything else."""
    folder = tmp_path_factory.mktemp("compiled")
    return environment(wheel(ROOT, folder, PORTOLAN_COMPILE="1", MYPYC_OPT_LEVEL="0"), folder)


def run(site: dict[str, str], tests: Sequence[str]) -> None:
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-p",
        "no:cacheprovider",
        "-m",
        "not interpreted and not slow",
        *tests,
    ]
    plain = {key: value for key, value in site.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(argv, cwd=ROOT, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_the_modules_are_the_compiled_ones(site: dict[str, str]) -> None:
    code = "from portolan.serving import front, http, version; print(http.__file__, version.__file__, front.__file__)"
    done = subprocess.run([sys.executable, "-c", code], env=site, capture_output=True, text=True, check=True)
    http, version, front = map(Path, done.stdout.split())
    assert (http.suffix, version.suffix, front.suffix) == (".so", ".so", ".py")
    assert {path.parents[2] for path in (http, version, front)} == {Path(site["PYTHONPATH"].split(os.pathsep)[0])}


@pytest.mark.timeout(600)
def test_it_passes_the_tests_of_the_core(site: dict[str, str]) -> None:
    run(site, CORE)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_passes_the_other_tests_of_the_server(site: dict[str, str]) -> None:
    run(site, OTHERS)


@pytest.mark.slow
def test_a_compiler_that_fails_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    asked = {"PORTOLAN_COMPILE": "1", "CC": "/bin/false", "TMPDIR": str(tmp_path)}
    with pytest.raises(AssertionError, match="PORTOLAN_COMPILE=0 leaves it interpreted"):
        wheel(ROOT, tmp_path, **asked)
    assert not list(tmp_path.glob("portolan-build-*"))


@pytest.mark.parametrize("asked", [{"PORTOLAN_COMPILE": "0"}, {"CC": "/no/compiler"}])
def test_a_wheel_for_every_machine_holds_no_machine_code(
    asked: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PORTOLAN_COMPILE", raising=False)
    place = wheel(ROOT, tmp_path, **asked)
    assert (place / "portolan" / "serving" / "http.py").is_file()
    assert not list(place.rglob("*.so"))
    (about,) = place.glob("portolan-*.dist-info/WHEEL")
    assert "Tag: py3-none-any" in about.read_text()
