"""Targets on disk: found only when they are whole, and what is wrong with them is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from portolan.core.target import Target
from portolan.emulation import make, wheels
from portolan.errors import PortolanError, UnknownName, UsageError
from portolan.targets import _added


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(_added.VARIABLE, str(tmp_path / "targets"))
    return tmp_path / "targets"


def record(root: Path, name: str = "arm", **change: Any) -> Path:
    """A target as `target add` leaves it, with an emulator that is there."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "qemu").write_text("")
    reach = ("{folder}/qemu", "-cpu", "x", "{python}")
    target = Target("elsewhere", "emulated", "aarch64", ("asimd",), 2, 2**30, display="x under qemu", reach=reach)
    data = {
        "format": _added.FORMAT, "name": name, "emulate": "aarch64", "made": "2026-01-01T00:00:00+00:00", "size": 7,
        "packages": {"qemu-user": "10"}, "target": target.to_json(),
    } | change  # fmt: skip
    (folder / _added.RECORD).write_text(json.dumps(data))
    return folder


def test_the_folder_is_the_variable_or_below_the_users_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(_added.VARIABLE, str(tmp_path / "x"))
    assert _added.root() == tmp_path / "x"
    monkeypatch.delenv(_added.VARIABLE)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert _added.root() == tmp_path / "portolan" / "targets"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/somebody")
    assert _added.root() == Path("/somebody/.local/share/portolan/targets")


def test_a_target_of_other_versions_than_are_pinned_says_how_it_is_made_anew(root: Path) -> None:
    wanted = wheels.pinned("aarch64-wheels.txt")
    record(root, packages={"qemu-user": "10", **wanted})
    assert "outdated" not in make.show("arm")
    record(root, "old", packages={"qemu-user": "10", **wanted, "onnxruntime": "1.0"} | {"ncnn": "absent"})
    old = make.show("old")
    assert old["outdated"] == [f"ncnn absent for {wanted['ncnn']}", f"onnxruntime 1.0 for {wanted['onnxruntime']}"]
    assert old["fix"] == "portolan target add old --emulate aarch64 --force"
    assert make.listed() == [make.show("arm"), old]
    record(root, "other", emulate="riscv64", packages={})
    assert "outdated" not in make.show("other")


def test_a_record_is_read_with_the_paths_of_today(root: Path) -> None:
    folder = record(root)
    found = _added.find("arm")
    assert found.reach == (str(folder / "qemu"), "-cpu", "x", sys.executable)
    assert found.id == "arm"
    assert not found.timed
    moved = root / "leg"
    folder.rename(moved)
    assert _added.find("leg").reach[0] == str(moved / "qemu")
    assert _added.known() == ["local", "leg"]


def test_this_machine_is_a_target_too(root: Path) -> None:
    assert _added.find("local").timed
    assert _added.known() == ["local"]


@pytest.mark.parametrize("name", ["../arm", "a/b", "", ".hidden", "-t", "x" * 65, "local"])
def test_names_that_no_target_can_have(name: str, root: Path) -> None:
    with pytest.raises(UsageError):
        _added.check_name(name)


def test_a_name_that_is_unknown(root: Path) -> None:
    record(root)
    with pytest.raises(UnknownName) as near:
        _added.find("arn")
    assert near.value.hint == "did you mean `arm`?"
    with pytest.raises(UsageError) as far:
        _added.find("zebra")
    assert far.value.hint == "known: local, arm; `portolan target add zebra --emulate KIND` adds one"
    with pytest.raises(UsageError):
        _added.find("../arm")


def test_an_emulator_that_was_removed_is_missed_before_it_is_started(root: Path) -> None:
    folder = record(root)
    (folder / "qemu").unlink()
    with pytest.raises(PortolanError, match="no longer whole") as found:
        _added.find("arm")
    assert found.value.hint == "portolan target add arm --emulate aarch64 --force"


@pytest.mark.parametrize("change", [{"format": 2}, {"target": {}}, {"size": "much"}, {"packages": None}])
def test_a_record_of_another_kind_is_refused_and_listed_with_its_reason(change: dict[str, Any], root: Path) -> None:
    folder = record(root, **change)
    with pytest.raises(PortolanError, match="cannot be read") as found:
        _added.find("arm")
    assert found.value.where == str(folder / _added.RECORD)
    (row,) = make.listed()
    assert row["name"] == "arm"
    assert "cannot be read" in row["reason"]


def test_a_record_that_is_cut_short(root: Path) -> None:
    (record(root) / _added.RECORD).write_text('{"format": 1, "na')
    with pytest.raises(PortolanError, match="cannot be read"):
        _added.find("arm")


def test_what_is_half_made_is_no_target(root: Path) -> None:
    """A folder without a record, and the scratch folders of running and dead commands, whatever they hold."""
    (root / "half").mkdir(parents=True)
    record(root, ".making-1-abc")
    record(root, ".removed-1-abc")
    assert _added.names() == []
    with pytest.raises(UsageError):
        _added.find("half")


def test_removing(root: Path) -> None:
    folder = record(root)
    assert make.remove("arm", dry_run=True)["size"] > 0
    assert folder.exists()
    make.remove("arm")
    assert list(root.iterdir()) == []
    with pytest.raises(UsageError):
        make.remove("arm")


def test_the_fingerprint_of_an_emulated_machine_is_its_own(root: Path) -> None:
    record(root)
    assert _added.find("arm").fingerprint != _added.find("local").fingerprint
