"""A study's folder: what is built appears whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from portolan.core.scratch import Scratch
from portolan.errors import DiskFull, ModelError, PortolanError, UsageError
from portolan.study.workspace import Workspace

_KILLED = """
import os, signal, sys
from pathlib import Path
from portolan.study.workspace import Workspace
def make(out):
    (out / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
Workspace(Path(sys.argv[1])).build("artefact", "k", make)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    found = Workspace(tmp_path / "study")
    yield found
    found.close()


def write(text: str, calls: list[str] | None = None) -> Any:
    def make(out: Path) -> dict[str, str]:
        assert list(out.iterdir()) == []
        (out / "file").write_text(text)
        if calls is not None:
            calls.append(text)
        return {"said": text}

    return make


def left(workspace: Workspace) -> list[str]:
    """What lies in the folder besides the ledger."""
    return sorted(p.name for p in workspace.folder.iterdir() if not p.name.startswith("ledger"))


def test_what_was_built_is_not_built_again(workspace: Workspace) -> None:
    calls: list[str] = []
    folder, facts = workspace.build("artefact", "k", write("one", calls))
    assert (folder / "file").read_text() == "one"
    assert facts == {"said": "one"}
    assert workspace.build("artefact", "k", write("two", calls)) == (folder, facts)
    assert calls == ["one"]
    assert left(workspace) == ["artefact"]


def test_kinds_and_keys_are_apart(workspace: Workspace) -> None:
    built = {workspace.build(kind, key, write("x"))[0] for kind in ("artefact", "compiled") for key in ("a", "b")}
    assert len(built) == 4


def test_a_later_process_finds_it(workspace: Workspace) -> None:
    built = workspace.build("artefact", "k", write("one"))
    other = Workspace(workspace.folder)
    assert other.build("artefact", "k", write("two")) == built
    other.close()


@pytest.mark.parametrize("error", [ModelError("no"), RuntimeError("no"), KeyboardInterrupt()])
def test_what_fails_leaves_nothing(workspace: Workspace, error: BaseException) -> None:
    def make(out: Path) -> dict[str, str]:
        (out / "half").write_text("half")
        raise error

    with pytest.raises(type(error)):
        workspace.build("artefact", "k", make)
    assert left(workspace) == ["artefact"]
    assert list((workspace.folder / "artefact").iterdir()) == []
    assert workspace.build("artefact", "k", write("one"))[1] == {"said": "one"}


def test_a_killed_process_leaves_nothing_that_counts(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False, timeout=60)
    assert ran.returncode == -9
    assert len(list(tmp_path.glob(".building-*"))) == 1
    workspace = Workspace(tmp_path)
    assert list(tmp_path.glob(".building-*")) == []
    folder, _ = workspace.build("artefact", "k", write("one"))
    assert [p.name for p in folder.iterdir()] == ["file"]
    workspace.close()


def test_of_two_builders_one_wins(workspace: Workspace) -> None:
    """Both get the same files, whoever was first, and no scratch is left."""
    both, found = threading.Barrier(2, timeout=30), []

    def build(who: str) -> None:
        def make(out: Path) -> dict[str, str]:
            (out / "file").write_text(who)
            both.wait()
            return {"said": who}

        found.append(workspace.build("artefact", "k", make))

    threads = [threading.Thread(target=build, args=(who,)) for who in ("left", "right")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 2
    assert found[0] == found[1]
    folder, facts = found[0]
    assert (folder / "file").read_text() == facts["said"]
    assert left(workspace) == ["artefact"]


def test_scratch_of_the_living_is_kept(tmp_path: Path) -> None:
    with Scratch(".building-", tmp_path) as held:
        (tmp_path / ".building-left" / "files").mkdir(parents=True)
        Workspace(tmp_path).close()
        assert list(tmp_path.glob(".building-*")) == [held.path]


def test_a_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "study").write_text("x")
    with pytest.raises(UsageError, match=r"study` is not a folder"):
        Workspace(tmp_path / "study")


@pytest.mark.parametrize(
    ("code", "kind", "message", "hint"),
    [
        (errno.ENOSPC, DiskFull, "the disk is full: `{}` could not be written", "free some space"),
        (errno.EDQUOT, DiskFull, "the disk is full: `{}` could not be written", "free some space"),
        (errno.EACCES, UsageError, "`{}` cannot be written", "--study DIR"),
        (errno.EROFS, UsageError, "`{}` cannot be written", "--study DIR"),
        (errno.EIO, PortolanError, "`{}` could not be written: Input/output error", ""),
    ],
)
def test_what_the_system_refuses_is_put_into_words(
    workspace: Workspace, code: int, kind: type[PortolanError], message: str, hint: str
) -> None:
    def make(out: Path) -> dict[str, str]:
        raise OSError(code, os.strerror(code), str(out))

    with pytest.raises(kind) as caught:
        workspace.build("artefact", "k", make)
    assert type(caught.value) is kind
    assert caught.value.message == message.format(workspace.folder / "artefact" / "k")
    assert hint in (caught.value.hint or "")
    assert left(workspace) == ["artefact"]
