"""Programs that must leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from portolan.core.running import tied

OWNER = """
import subprocess, sys
from portolan.core.running import tied
running = subprocess.Popen(tied(["sleep", "600"]))
print(running.pid, flush=True)
running.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends processes with their parents on Linux only")
def test_a_tied_program_ends_with_the_process_that_started_it_however_that_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        sleeping = int(owner.stdout.readline())
        _wait(lambda: Path(f"/proc/{sleeping}/cmdline").read_bytes().startswith(b"sleep\x00"))
        owner.send_signal(signal.SIGKILL)
    _wait(lambda: not _runs(sleeping))


def test_a_tied_program_is_the_process_that_was_started_and_gets_its_arguments_as_they_are() -> None:
    words = ["a b", "--flag='x'", "ünï"]
    program = [sys.executable, "-c", "import os, sys; print(os.getpid(), sys.argv[1:])", *words]
    with subprocess.Popen(tied(program), stdout=subprocess.PIPE, text=True) as running:
        said, _ = running.communicate(timeout=30)
    assert said == f"{running.pid} {words}\n"


def test_a_tied_program_that_is_not_there_cannot_be_started() -> None:
    with pytest.raises(FileNotFoundError, match="/not/there"):
        subprocess.run(tied(["/not/there"]), timeout=30, check=False)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One whose new parent has not asked for its end yet is over all the same.
    return ") Z " not in Path(f"/proc/{pid}/stat").read_text()


def _wait(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not done():
        assert time.monotonic() < until
        time.sleep(0.05)
