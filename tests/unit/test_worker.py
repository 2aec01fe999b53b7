from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from portolan.core.backend import Executable
from portolan.errors import UnknownName, UsageError, WorkerCrashed, WorkerError, WorkerTimeout
from portolan.worker import Worker
from portolan.worker.operations import Operations
from portolan.worker.transport import command


def test_a_worker_answers() -> None:
    with Worker() as worker:
        assert worker.ask("hello", timeout=30).fields == {"ready": True}


def test_another_interpreter_needs_nothing_installed(tmp_path: Path) -> None:
    """It finds this package alone, wherever it is started."""
    with Worker(python=[sys.executable, "-I"]) as worker:
        assert worker.ask("hello", timeout=30).fields["ready"] is True


def test_errors_come_back_as_their_own_class() -> None:
    with Worker() as worker:
        with pytest.raises(WorkerError, match="a worker cannot do `dance`"):
            worker.ask("dance", timeout=30)
        with pytest.raises(UsageError, match="no backend named `onnxruntme`") as caught:
            worker.ask("probe", timeout=30, backend="onnxruntme", target={})
        assert not isinstance(caught.value, UnknownName)
        assert worker.ask("hello", timeout=30).fields["ready"] is True


def test_a_worker_that_is_killed_says_so() -> None:
    with Worker() as worker:
        worker.ask("hello", timeout=30)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerCrashed, match="crashed with SIGKILL during `hello`"):
            worker.ask("hello", timeout=30)


def test_a_worker_that_does_not_answer_is_killed() -> None:
    with Worker() as worker:
        worker.ask("hello", timeout=30)
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(WorkerTimeout, match="no answer to `hello` within"):
            worker.ask("hello", timeout=0.2)
        assert not Path(f"/proc/{worker.pid}").exists()


def test_large_tensors_need_not_fit_a_pipe() -> None:
    array = np.arange(3_000_000, dtype=np.float32)
    with Worker() as worker:
        assert worker.ask("inputs", timeout=60, tensors={"0/x": array}).fields["count"] == 1


def test_workers_do_not_outlive_a_killed_controller(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from portolan.worker import Worker
        worker = Worker()
        worker.ask("hello", timeout=30)
        print(worker.pid, flush=True)
        sys.stdin.read()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as p:
        assert p.stdout is not None
        pid = int(p.stdout.readline())
        p.kill()
        p.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and _state(pid) != "Z" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _state(pid) in ("Z", "gone")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "gone"


def test_a_folder_of_look_alikes_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    monkeypatch.chdir(tmp_path)
    with Worker() as worker:
        assert worker.ask("hello", timeout=30).fields["ready"] is True


def test_the_command_of_another_interpreter_starts_with_its_argv() -> None:
    assert command(["ssh", "host", "python3"], 1)[:3] == ["ssh", "host", "python3"]


def test_timed_runs_go_on_with_the_input_after_the_last_one() -> None:
    """Else a fast arm would be timed on all of the inputs, and a slow one on the first few."""

    class Recording(Executable):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            self.seen.append(int(inputs["x"]))
            return {}

        def save(self, folder: Path) -> None:
            raise NotImplementedError

    operations, recording = Operations(), Recording()
    operations._executable = recording
    operations.inputs({f"{i}/x": np.array(i) for i in range(3)}, count=3)
    for runs in (2, 2, 1):
        assert len(operations.time({}, 0.0, max_runs=runs, min_runs=runs)[1]["ns"]) == runs
    assert recording.seen == [0, 1, 2, 0, 1]
    operations.inputs({"0/x": np.array(7)}, count=1)
    operations.time({}, 0.0, max_runs=1)
    assert recording.seen[-1] == 7
