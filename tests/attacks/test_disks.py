"""Disks that are full or read-only: real ones, small file systems mounted in a namespace of the test's own."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from portolan.errors import DiskFull, UsageError
from portolan.study.workspace import Workspace
from support.studies import Lab, events, sound

WORDS = ["-g", "min latency_p50", "-g", "min size", "--json"]
#: A mount namespace; a user namespace too where that takes one.
SPACE = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]


def _mounts() -> bool:
    try:
        done = subprocess.run([*SPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, timeout=20)
    except OSError:
        return False
    return done.returncode == 0


needs_mounts = pytest.mark.skipif(not _mounts(), reason="this machine lets nobody mount a tmpfs")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


class Shell:
    """Runs a script in a mount namespace; `portolan WORDS > NAME` is told apart by its answer files."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.lines = ["set -u"]

    def mount(self, folder: str, size: str, more: str = "") -> None:
        self.lines += [f"mkdir -p {folder}", f"mount -t tmpfs -o size={size} tmpfs {folder}", more]

    def portolan(self, name: str, words: list[object]) -> None:
        command = shlex.join(self.lab.command(*words, starts=1))
        self.lines.append(f"{command} > {name}.out 2> {name}.err; echo $? > {name}.code")

    def run(self) -> None:
        env = {**os.environ, **self.lab.env}
        script = "\n".join(self.lines)
        done = subprocess.run(
            [*SPACE, "sh", "-c", script], cwd=self.lab.folder, env=env, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr

    def answer(self, name: str) -> tuple[int, dict[str, Any], str]:
        folder = self.lab.folder
        code = int((folder / f"{name}.code").read_text())
        return code, json.loads((folder / f"{name}.out").read_text()), (folder / f"{name}.err").read_text()


@needs_mounts
@pytest.mark.parametrize(("leave", "size"), [(0, 0), (80, 0), (500, 2**20)], ids=["at once", "soon", "in a worker"])
def test_a_full_disk_stops_the_study_and_loses_nothing(lab: Lab, leave: int, size: int) -> None:
    """With so many KiB left; freed space, and the same command goes on."""
    lab.script(fast={"latency_ms": 2.0, "size": size})
    words = lab.optimize_words("-g", "min latency_p50", "--json")
    shell = Shell(lab)
    shell.mount("study", "3m")
    shell.lines.append(f"head -c {(3072 - leave) * 1024} /dev/zero > study/fill")
    shell.portolan("full", words)
    shell.lines.append("rm study/fill")
    shell.portolan("freed", words)
    shell.lines.append("cp -r study after")
    shell.run()
    code, told, err = shell.answer("full")
    assert code == 1, (told, err)
    assert told["error"]["message"].startswith("the disk is full: ")
    assert told["error"]["hint"] == "free some space and repeat the command: what was measured before is kept"
    code, told, err = shell.answer("freed")
    assert code == 0, (told, err)
    assert [t["status"] for t in told["trials"]] == ["ok", "ok"]
    sound(lab.folder / "after")
    keys = [key for key, _ in events(lab.folder / "after", "screened")]
    assert len(keys) == len(set(keys))


@needs_mounts
def test_a_read_only_study_and_a_read_only_cache(lab: Lab) -> None:
    lab.script(fast={"latency_ms": 2.0})
    shell = Shell(lab)
    shell.mount("cache", "1m", "mount -o remount,ro cache")
    shell.portolan("cache", lab.optimize_words(*WORDS[:-1]))
    shell.mount("new", "1m", "mount -o remount,ro new")
    shell.portolan("new", lab.optimize_words(*WORDS, study="new/study"))
    shell.mount("old", "9m", "cp -r study old/ && mount -o remount,ro old")
    shell.portolan("again", lab.optimize_words(*WORDS, study="old/study"))
    shell.portolan("report", ["report", "old/study", "-o", "r.html", "--json"])
    shell.run()

    err = (lab.folder / "cache.err").read_text()
    assert (lab.folder / "cache.code").read_text() == "0\n", err
    assert "later studies will not learn from this one" in err
    for name, place in (("new", "new/study"), ("again", "old/study")):
        code, told, err = shell.answer(name)
        assert code == 2, (told, err)
        assert place in told["error"]["message"]
        assert told["error"]["message"].endswith("cannot be written")
        assert told["error"]["hint"] == "name a folder that can be written: --study DIR"
    assert (lab.folder / "report.code").read_text() == "0\n", (lab.folder / "report.err").read_text()
    assert (lab.folder / "r.html").stat().st_size > 1000


def test_a_folder_that_cannot_take_its_name_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up at the last moment; nothing half built stays."""

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    workspace = Workspace(tmp_path / "study")
    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(DiskFull, match=r"the disk is full: `.*key` could not be written") as caught:
        workspace.build("compiled", "key", lambda out: {"a": 1})
    monkeypatch.undo()
    assert caught.value.exit_code == 1
    assert not list((tmp_path / "study").glob(".building-*"))
    assert workspace.build("compiled", "key", lambda out: {"a": 2})[1] == {"a": 2}
    workspace.close()


def test_a_study_folder_that_is_a_file(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in lab.env.items():
        monkeypatch.setenv(name, value)
    (lab.folder / "study").write_text("in the way")
    with pytest.raises(UsageError, match="study` is not a folder"):
        lab.optimize()
    (lab.folder / "other").mkdir()
    (lab.folder / "other" / "ledger.sqlite").write_text("this is not a database, whatever its name says" * 20)
    with pytest.raises(UsageError, match="is not a ledger") as caught:
        lab.optimize(study=lab.folder / "other")
    assert "--study" in str(caught.value.hint)
