from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import portolan
from portolan.measure.lock import lock_path, measuring

HOLDER = """
import sys
from pathlib import Path
from portolan.measure.lock import measuring
with measuring(10, Path(sys.argv[1])) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock until its stdin closes."""
    path = tmp_path / "lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(Path(portolan.__file__).parents[1])},
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "True"
    yield path, process
    process.kill()
    process.wait()
    process.stdout.close()
    if process.stdin is not None:
        process.stdin.close()


def test_two_processes_do_not_hold_it_at_once(holder):
    path, process = holder
    with measuring(0.0, path) as held:
        assert held is False
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
    with measuring(0.0, path) as held:
        assert held is True


def test_a_killed_holder_frees_it(holder):
    path, process = holder
    process.send_signal(signal.SIGKILL)
    process.wait()
    with measuring(0.0, path) as held:
        assert held is True


def test_waiting_ends_when_the_holder_ends(holder):
    path, process = holder
    assert process.stdin is not None
    process.stdin.close()
    with measuring(60.0, path) as held:
        assert held is True
    assert process.wait() == 0


def test_it_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), measuring(0.0, tmp_path / "lock"):
        raise KeyError
    with measuring(0.0, tmp_path / "lock") as held:
        assert held is True


def test_holding_it_twice_in_one_process_does_not_deadlock(tmp_path):
    with measuring(0.0, tmp_path / "lock") as outer, measuring(0.0, tmp_path / "lock") as inner:
        assert (outer, inner) == (True, False)


def test_timing_goes_on_where_no_lock_can_be_had(tmp_path):
    with measuring(0.0, tmp_path / "missing" / "lock") as held:
        assert held is False
    (tmp_path / "folder").mkdir()
    with measuring(0.0, tmp_path / "folder") as held:
        assert held is False


def test_timing_goes_on_where_the_system_has_no_locks(tmp_path, monkeypatch):
    def refuse(handle, operation):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with measuring(0.0, tmp_path / "lock") as held:
        assert held is False
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with measuring(0.0, tmp_path / "lock") as held:
        assert held is False


def test_a_link_put_in_its_place_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    (tmp_path / "lock").symlink_to(victim)
    with measuring(0.0, tmp_path / "lock") as held:
        assert held is False
    assert not victim.exists()


def test_the_file_is_per_user(tmp_path):
    assert lock_path(tmp_path).parent == tmp_path
    assert lock_path().name.startswith("portolan-")
