"""The log: whole JSON lines, never in the way of the server, whatever happens to the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from portolan.serving.journal import Journal


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def test_events_and_accesses_are_json_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log", access=True, now=lambda: 0.5)
    journal.event("ready", model="a\nb", path=Path("x"))
    journal.access(model="m", status=200, id="\ud800")
    journal.close()
    assert lines(tmp_path / "log") == [
        {"time": "1970-01-01T00:00:00.500000+00:00", "event": "ready", "model": "a\nb", "path": "x"},
        {"time": "1970-01-01T00:00:00.500000+00:00", "event": "request", "model": "m", "status": 200, "id": "?"},
    ]


def test_accesses_are_kept_only_if_asked_for(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log")
    journal.access(model="m")
    journal.event("stopped")
    journal.close()
    assert [line["event"] for line in lines(tmp_path / "log")] == ["stopped"]


def test_a_file_that_was_moved_away_is_begun_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log")
    journal.event("one")
    until(lambda: len(lines(tmp_path / "log")) == 1)
    (tmp_path / "log").rename(tmp_path / "log.1")
    journal.event("two")
    until(lambda: (tmp_path / "log").exists() and len(lines(tmp_path / "log")) == 1)
    journal.close()
    assert lines(tmp_path / "log.1")[0]["event"] == "one"
    assert lines(tmp_path / "log")[0]["event"] == "two"


def test_a_full_disk_loses_lines_and_says_how_many_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, full, room = os.write, [False], [10]

    def write(fd: int, data: bytes) -> int:
        if not full[0]:
            return whole(fd, data)
        if room:  # the last block takes a part of the line
            return whole(fd, bytes(data)[: room.pop()])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "write", write)
    journal = Journal(tmp_path / "log")
    journal.event("before")
    until(lambda: (tmp_path / "log").read_text().count("\n") == 1)
    full[0] = True
    for i in range(3):
        journal.event("lost", number=i)
    until(lambda: journal.lost == 3)
    full[0] = False
    journal.event("after")
    journal.close()
    found = (tmp_path / "log").read_text().splitlines()
    whole_lines = [json.loads(line) for line in found if line.startswith('{"time"') and line.endswith("}")]
    assert [line["event"] for line in whole_lines] == ["before", "after", "log_lines_lost"]
    assert whole_lines[-1]["lines"] == 3


def test_a_real_full_device_stops_nothing(tmp_path: Path) -> None:
    journal = Journal(Path("/dev/full"))
    for i in range(100):
        journal.event("tick", number=i)
    until(lambda: journal.lost == 100)
    journal.close()


def test_a_pipe_that_nobody_reads_holds_up_nobody() -> None:
    script = (
        "import time\nfrom portolan.serving.journal import Journal\n"
        "journal = Journal(access=True)\nbegin = time.monotonic()\n"
        "for i in range(40_000): journal.access(text='x' * 200)\n"
        "print(journal.lost > 0, flush=True)\nimport os; os._exit(0)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read() == b"True\n", "it ends although its stderr is never read, and drops what is too much"
    process.communicate(timeout=30)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
