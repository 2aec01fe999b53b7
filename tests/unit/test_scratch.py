"""Temporary folders: whose they are, and who removes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from portolan.core import locks, scratch
from portolan.core.scratch import Scratch, sweep
from portolan.measure.lock import lock_path
from portolan.worker import Worker

OWNER = """
import sys
from pathlib import Path
from portolan.core.scratch import Scratch
held = Scratch("left-", Path(sys.argv[1]))
(held.path / "weights").write_text("x")
print(held.path, flush=True)
sys.stdin.read()
"""


def owner(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_it_goes_when_it_is_closed_and_closing_again_is_nothing(tmp_path: Path) -> None:
    with Scratch("a-", tmp_path) as held:
        assert (held.path.stat().st_mode & 0o777) == 0o700
        (held.path / "deep").mkdir()
        (held.path / "deep" / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []
    held.close()


def test_what_was_renamed_stays(tmp_path: Path) -> None:
    with Scratch("a-", tmp_path) as held:
        (held.path / "file").write_text("x")
        held.path.rename(tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    sweep(tmp_path, "final")
    assert list(tmp_path.iterdir()) == [], "nobody holds it any more"


def test_only_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    process, folder = owner(tmp_path)
    with process:
        sweep(tmp_path, "left-")
        assert (folder / "weights").exists(), "its owner lives"
        process.kill()
    assert (folder / "weights").exists(), "a killed process removes nothing"
    sweep(tmp_path, "other-")
    assert (folder / "weights").exists()
    with Scratch("left-", tmp_path) as held:
        assert [*tmp_path.iterdir()] == [held.path]


def test_what_a_process_was_given_is_held_after_its_owner(tmp_path: Path) -> None:
    """A server's front answers what it took when the supervisor is killed: its files are not swept meanwhile."""
    held = Scratch("left-", tmp_path)
    heir = subprocess.Popen(["sleep", "60"], pass_fds=held.descriptors)
    for handle in held.descriptors:
        os.close(handle)  # as the kernel does with those of a killed process
    held.close.detach()
    sweep(tmp_path, "left-")
    assert held.path.exists()
    heir.kill()
    heir.wait()
    sweep(tmp_path, "left-")
    assert not held.path.exists()


def test_a_folder_that_cannot_be_listed_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "iterdir", hidden)
    with Scratch("hidden-", tmp_path) as held:
        assert held.path.exists()
    assert not held.path.exists()


def test_a_process_that_ends_in_order_leaves_nothing(tmp_path: Path) -> None:
    process, folder = owner(tmp_path)
    assert folder.exists()
    process.communicate("")
    assert list(tmp_path.iterdir()) == []


def test_a_fork_removes_nothing(tmp_path: Path) -> None:
    with Scratch("a-", tmp_path) as held:
        child = os.fork()
        if child == 0:
            held.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert held.path.exists()


def test_links_and_files_of_such_a_name_are_let_be(tmp_path: Path) -> None:
    """The temporary folder is shared: whoever can write there must not choose what is removed."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "a-link").symlink_to(precious)
    (tmp_path / "a-file").write_text("x")
    sweep(tmp_path, "a-")
    assert {path.name for path in tmp_path.iterdir()} == {"precious", "a-link", "a-file"}


def test_without_locks_nothing_is_taken_for_left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> bool:
        raise OSError("no locks here")

    monkeypatch.setattr(scratch, "lock", none)
    left = tmp_path / "a-left"
    left.mkdir()
    with Scratch("a-", tmp_path) as held:
        sweep(tmp_path, "a-")
        assert held.path.exists()
        assert left.exists()
    assert [*tmp_path.iterdir()] == [left]


def test_one_that_is_swept_as_it_is_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def late(handle: int) -> bool:
        folder = next(path for path in tmp_path.iterdir() if path not in made)
        made.append(folder)
        if len(made) == 1:
            folder.rmdir()  # another process holds the lock no longer: it has removed it
        return locks.lock(handle)

    monkeypatch.setattr(scratch, "lock", late)
    with Scratch("a-", tmp_path) as held:
        assert len(made) == 2
        assert held.path == made[1]
        assert held.path.exists()


def test_a_worker_writes_where_it_is_removed_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    with Worker() as worker:
        worker.ask("hello", timeout=60)
        said = Path(f"/proc/{worker.pid}/environ").read_bytes().decode().split("\0")
        told = dict(line.partition("=")[::2] for line in said if line)
        folder = Path(told["TMPDIR"])
        assert folder.parent == tmp_path
        (folder / "unpacked").write_text("x")
        assert Path(told["PORTOLAN_TMPDIR"]) == tmp_path, "where it meets the others, as the lock of measuring"
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_measuring_is_the_same_in_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = lock_path()
    with Scratch("a-", tmp_path) as held:
        for name, value in held.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(scratch.tempfile, "tempdir", None)
        assert scratch.tempfile.gettempdir() == str(held.path)
        assert lock_path() == outside
