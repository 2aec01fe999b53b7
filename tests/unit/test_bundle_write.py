"""Writing is all or nothing: nothing is overwritten unasked, nothing half-made is left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from portolan.bundle import open_bundle, write_bundle
from portolan.bundle.manifest import FileEntry
from portolan.bundle.write import Source, publish, write_sources
from portolan.errors import DiskFull, UsageError, VerificationFailed
from support.bundles import bundle_sha256, make_bundle, make_parts

FORMS = ("out", "out.portolan")


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "built" not in path.parts}


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_overwritten_without_force(tmp_path: Path, form: str) -> None:
    out = make_bundle(tmp_path, form)
    before = bundle_sha256(out)
    with pytest.raises(UsageError, match="exists") as caught:
        make_bundle(tmp_path, form, name="second")
    assert "--force" in str(caught.value.hint)
    assert bundle_sha256(out) == before
    write_bundle(out, make_parts(tmp_path / "built", name="second"), force=True)
    with open_bundle(out) as bundle:
        assert bundle.manifest.name == "second"
    assert not [name for name in listing(tmp_path) if name.startswith(".")]


def test_force_replaces_bundles_only(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "folder.portolan").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    (tmp_path / "dangling.portolan").symlink_to(tmp_path / "nowhere")
    for name in ("home", "file", "folder.portolan", "link", "dangling.portolan"):
        with pytest.raises(UsageError, match="is not a bundle, so `--force` does not replace it"):
            write_bundle(tmp_path / name, make_parts(tmp_path / "built"), force=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert (write_bundle(tmp_path / "empty", make_parts(tmp_path / "built"), force=True) / "manifest.json").is_file()


def test_there_is_no_folder_to_write_into(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        write_bundle(tmp_path / "none" / "p.portolan", make_parts(tmp_path / "built"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full: `.*` could not be written"),
        (errno.EROFS, "cannot be written: Read-only"),
        (errno.EDQUOT, "the disk is full"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, number: int, words: str, force: bool
) -> None:
    parts = make_parts(tmp_path / "built")
    if force:
        make_bundle(tmp_path, form)
    before = listing(tmp_path)

    def full(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError if number == errno.EROFS else DiskFull, match=words):
        write_bundle(tmp_path / form, parts, force=force)
    assert listing(tmp_path) == before
    monkeypatch.undo()
    if force:
        open_bundle(tmp_path / form).close()


def test_no_folder_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = make_parts(tmp_path / "built")

    def full(*args: Any, **options: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(DiskFull, match="the disk is full"):
        write_bundle(tmp_path / "p.portolan", parts)


def test_the_old_bundle_comes_back_when_the_new_one_cannot_be_moved(tmp_path: Path) -> None:
    out = make_bundle(tmp_path, "out")
    before = bundle_sha256(out)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        publish(place / "not-made", out, force=True)
    assert bundle_sha256(out) == before


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_bundle(tmp_path, "made.portolan")
    out = tmp_path / "out.portolan"
    monkeypatch.setattr("portolan.bundle.write.check_out", lambda path, force: path.write_text("mine"))
    with pytest.raises(UsageError, match="exists"):
        publish(made, out, force=False)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("form", FORMS)
def test_killed_in_the_middle(tmp_path: Path, form: str) -> None:
    """The process dies after half of a file: no bundle of that name exists, whole or half."""
    code = f"""
import os, signal
from pathlib import Path
from portolan.bundle.manifest import FileEntry
from portolan.bundle.write import Source, write_sources
def chunks():
    yield b"x" * 10
    os.kill(os.getpid(), signal.SIGKILL)
write_sources(Path({str(tmp_path / form)!r}), [Source(FileEntry("compiled/model", 20, "0" * 64), chunks)], force=False)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / form).exists()
    make_bundle(tmp_path, form)
    open_bundle(tmp_path / form).close()


def test_a_source_that_changes_while_it_is_copied(tmp_path: Path) -> None:
    contents = iter([b"other", b"other"])
    source = Source(FileEntry("compiled/model", 5, "0" * 64), lambda: [next(contents)])
    with pytest.raises(VerificationFailed, match="`compiled/model` changed while it was packed"):
        write_sources(tmp_path / "out", [source], force=False)
    assert not list(tmp_path.iterdir())


def test_compiled_files_that_cannot_be_shipped(tmp_path: Path) -> None:
    parts = make_parts(tmp_path / "built")
    (tmp_path / "built" / "link").symlink_to("/etc/passwd")
    with pytest.raises(UsageError, match="`compiled/link` is a link or a special file"):
        write_bundle(tmp_path / "p", parts)
    (tmp_path / "built" / "link").unlink()
    (tmp_path / "built" / "a:b").write_text("x")
    with pytest.raises(UsageError, match="these parts make no valid bundle: the name `compiled/a:b` is not a portable"):
        write_bundle(tmp_path / "p", parts)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match="is empty"):
        make_bundle(tmp_path, compiled=tmp_path / "nothing")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"golden_outputs": {"y": np.zeros((5, 3))}}, "the golden outputs are y, and the model's are label, y"),
        ({"golden_inputs": {"z": np.zeros((5, 4))}}, "the golden inputs are `z`, and the model's are `x`"),
        ({"golden_inputs": {"x": np.zeros((0, 4), np.float32)}}, "no whole number of calls of 1"),
        ({"golden_inputs": {"x": np.full((5, 4), np.nan, np.float32)}}, "the golden input `x` holds NaN"),
        ({"golden_inputs": {"x": np.array([object()])}}, "has type object, which a bundle cannot hold"),
        ({"created": "today"}, "no valid bundle: expected a time"),
        ({"name": "two\nlines"}, "no valid bundle: expected text of one line"),
        ({"environment": {"load": float("nan")}}, "no valid bundle: Out of range float values"),
        ({"environment": {"load": Path("x")}}, "no valid bundle: Object of type"),
        ({"licence": "x" * 2_000_000}, "no valid bundle: `manifest.json` has more than"),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_bundle(tmp_path, **changes)
    assert listing(tmp_path) == set()


def test_the_workers_own_compiled_json_is_kept(tmp_path: Path) -> None:
    (tmp_path / "built").mkdir()
    raw = b'{"backend": "tiny", "options": {"threads": 3}, "facts": {"device": "cpu"}}'
    (tmp_path / "built" / "compiled.json").write_bytes(raw)
    with open_bundle(make_bundle(tmp_path)) as bundle:
        assert bundle.options == {"threads": 3}
        assert bundle.read("compiled/compiled.json") == raw


def test_hard_linked_sources_are_copied(tmp_path: Path) -> None:
    """Backends save by linking; a bundle shares no bytes with what lies elsewhere."""
    parts = make_parts(tmp_path / "built")
    os.link(tmp_path / "built" / "weights.npz", tmp_path / "twin")
    open_bundle(write_bundle(tmp_path / "p", parts)).close()
