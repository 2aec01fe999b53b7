"""Backends in environments of their own keep the contract there, where somebody has made those environments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import portolan
from support.envs import made_environment

HERE = Path(__file__).parent / "elsewhere"
NAMES = sorted(path.stem.removeprefix("on_") for path in HERE.glob("on_*.py"))
#: Pytest and what the contract compares with are lent by this interpreter, behind the environment's own packages.
RUN = "import sys; sys.path += sys.argv[1].split(':'); import pytest; sys.exit(pytest.main(sys.argv[2:]))"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(900)
def test_it_keeps_the_contract(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    python = made_environment(name, monkeypatch).python
    lent = ":".join(path for path in sys.path if path.endswith("site-packages"))
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(HERE), "-c", os.devnull]
    command = [str(python), "-P", "-c", RUN, lent, str(HERE / f"on_{name}.py"), *options]
    source = str(Path(portolan.__file__).parents[1])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": source}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
