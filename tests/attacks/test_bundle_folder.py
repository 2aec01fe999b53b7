"""Attempts to break a bundle through its folder: links, devices, strangers, names.

`reseal` makes every digest right again, so that what is refused here is refused for what it is, not for a checksum.
"""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portolan.bundle import open_bundle
from portolan.bundle.names import check_names, name_fault
from portolan.errors import PortolanError, VerificationFailed
from support.bundles import make_bundle, refused, reseal

# Links, devices, strangers among the files


def test_a_symbolic_link_to_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes((folder / "compiled/weights.npz").read_bytes())
    (folder / "compiled/weights.npz").unlink()
    (folder / "compiled/weights.npz").symlink_to(tmp_path / "secret")
    refused(folder, "`compiled/weights.npz` in `product` is a symbolic link")


def test_a_symbolic_link_to_a_folder(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "compiled", tmp_path / "elsewhere")
    (folder / "compiled").symlink_to(tmp_path / "elsewhere")
    refused(folder, "`compiled` in `product` is a symbolic link")


def test_a_hard_link(folder: Path, tmp_path: Path) -> None:
    os.link(folder / "compiled/weights.npz", tmp_path / "other-name")
    error = refused(folder, "is a hard link")
    assert "cp -r" in str(error.hint)


def test_a_fifo_is_not_opened(folder: Path) -> None:
    os.mkfifo(folder / "compiled/pipe")
    refused(folder, "is a device or another special file")


def test_a_socket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "compiled")
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("plug")
        refused(folder, "is a device or another special file")


def test_the_folder_itself_may_be_reached_through_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(folder)
    with open_bundle(tmp_path / "latest") as bundle:
        assert bundle.manifest.name == "product"


@pytest.mark.parametrize("name", ["compiled/evil.so", "notes.txt", ".DS_Store", "compiled/__init__.py", "golden/a b"])
def test_a_file_too_many(folder: Path, name: str) -> None:
    (folder / name).write_text("x")
    refused(folder, "is not in the manifest|is not a portable name")


def test_an_empty_folder_too_many(folder: Path) -> None:
    (folder / "compiled/empty").mkdir()
    refused(folder, "is an empty folder")


def test_a_folder_that_is_too_deep(folder: Path) -> None:
    (folder / "/".join(["compiled", *"abcdefghij"])).mkdir(parents=True)
    refused(folder, "is too long")


@pytest.mark.parametrize(
    "name", ["compiled/weights.npz", "golden/outputs.npz", "recipe.toml", "compiled/compiled.json"]
)
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"`{name}` is in the manifest and not in the bundle")


def test_a_file_that_cannot_be_read_any_more(folder: Path) -> None:
    with open_bundle(folder) as bundle:
        (folder / "recipe.toml").unlink()
        with pytest.raises(VerificationFailed, match="cannot be read"):
            bundle.read("recipe.toml")
        (folder / "golden/inputs.npz").write_bytes(b"short")
        with pytest.raises(VerificationFailed, match="changed while it was read"):
            bundle.read("golden/inputs.npz")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), bits=st.integers(1, 255))
def test_any_byte_of_any_file_flipped(tmp_path: Path, data: st.DataObject, bits: int) -> None:
    folder = tmp_path / "product"
    if not folder.exists():
        make_bundle(tmp_path)
    path = data.draw(st.sampled_from(sorted(p for p in folder.rglob("*") if p.is_file())))
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    path.write_bytes(good[:at] + bytes([good[at] ^ bits]) + good[at + 1 :])
    try:
        with pytest.raises(PortolanError) as caught:
            open_bundle(folder)
    finally:
        path.write_bytes(good)
    assert caught.value.exit_code in (2, 6)
    assert caught.value.message.isprintable()
    open_bundle(folder).close()


# Names


@settings(max_examples=500)
@given(st.text(st.characters(codec="utf-8"), max_size=40) | st.from_regex(r"[a-z./\\: ~-]{1,30}", fullmatch=True))
def test_an_accepted_name_stays_inside(name: str) -> None:
    if name_fault(name) is not None:
        return
    root = Path("/bundle")
    assert name.isascii()
    assert (root / name).is_relative_to(root)
    assert os.path.normpath(root / name) == f"/bundle/{name}"  # noqa: TID251 - a second opinion
    assert not any(part.startswith((".", "~")) or part.endswith((".", " ")) for part in name.split("/"))


@settings(max_examples=300)
@given(st.lists(st.from_regex(r"[abAB]/?[abAB]?", fullmatch=True), min_size=2, max_size=4))
def test_accepted_names_never_meet(names: list[str]) -> None:
    """On no file system: accepted lists stay as many files when case is ignored, and none is another's folder."""
    try:
        check_names(names, "list")
    except VerificationFailed:
        return
    low = [name.lower() for name in names]
    assert len(set(low)) == len(low)
    assert not any(a != b and b.startswith(f"{a}/") for a in low for b in low)


@pytest.mark.parametrize(
    "name",
    ["../../evil", "/etc/cron.d/evil", "compiled/../../evil", "compiled/CON", "compiled/a\\b", "manifest.json", "x"],
)
def test_names_in_the_manifest(folder: Path, name: str) -> None:
    def add(data: dict[str, Any]) -> None:
        data["files"] = sorted(
            [*data["files"], {"path": name, "bytes": 1, "sha256": "0" * 64}], key=lambda entry: entry["path"]
        )

    error = refused(reseal(folder, add), "the name|has no place in a bundle")
    assert str(error.where).startswith("manifest.json: $.files")
