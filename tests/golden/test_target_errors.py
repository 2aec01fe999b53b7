"""Every error of targets that are not this machine, word for word.

After a wanted change: `PORTOLAN_UPDATE_GOLDEN=1 pytest tests/golden/test_target_errors.py`, and read the diff.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import portolan
from portolan.core.target import Target
from portolan.emulation import debian
from portolan.targets import _added
from support import errors

GOLDEN = Path(__file__).with_name("target_errors.txt")
Place = Path


def record(root: Place, **change: Any) -> Path:
    """A target `old` whose emulator is there, and does nothing."""
    folder = root / "targets" / "old"
    folder.mkdir(parents=True)
    (folder / "qemu").symlink_to("/bin/false")
    reach = ("{folder}/qemu", "-cpu", "x", "{python}")
    target = Target("old", "emulated", "aarch64", (), 1, 2**30, display="x", reach=reach).to_json()
    data = {"format": 1, "emulate": "aarch64", "made": "2026", "size": 7, "packages": {}, "target": target} | change
    (folder / _added.RECORD).write_text(json.dumps(data))
    return folder


def add(root: Place, kind: str = "aarch64", **rest: Any) -> None:
    portolan.target("add", "new", emulate=kind, **rest)


def tool(root: Place, name: str, script: str) -> None:
    path = root / "tools" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def with_qemu(root: Place, kind: str, version: str) -> None:
    tool(root, f"qemu-{kind}", f"echo qemu version {version}")
    add(root, kind if kind != "x86_64" else "haswell")


def with_apt(root: Place, said: str) -> None:
    tool(root, "qemu-aarch64", "echo qemu version 10.0.0")
    tool(root, "apt-get", f'for word in "$@"; do [ "$word" = update ] && exit 0; done; echo "{said}" >&2; exit 100')
    add(root)


def with_node(root: Place, npm: str | None) -> None:
    tool(root, "node", "echo v20.0.0")
    if npm is not None:
        tool(root, "npm", f'echo "npm error {npm}" >&2; exit 1')
    add(root, "wasm")


def gone(root: Place) -> None:
    (record(root) / "qemu").unlink()
    portolan.bench("demo:digits", target="old")


def dead(root: Place) -> None:
    record(root)
    portolan.bench("demo:digits", target="old")


def unreadable(root: Place) -> None:
    record(root, format=7)
    portolan.doctor("old")


def unwritable(root: Place) -> None:
    (root / "targets").write_text("a file")
    tool(root, "node", "echo v20.0.0")
    add(root, "wasm")


WRONG: dict[str, Callable[[Place], Any]] = {
    "a target that nobody knows": lambda root: portolan.bench("demo:digits", target="haswel"),
    "an action that nobody knows": lambda root: portolan.target("ad", "new"),  # type: ignore[arg-type]
    "no name": lambda root: portolan.target("add", emulate="wasm"),
    "no kind": lambda root: portolan.target("add", "new"),
    "a kind that nobody knows": lambda root: add(root, "arch64"),
    "a processor that nobody knows": lambda root: add(root, cpu="neoverse-v2"),
    "a processor where there is no choice": lambda root: add(root, "wasm", cpu="v8"),
    "a name of a folder": lambda root: portolan.target("add", "../up", emulate="wasm"),
    "the name of this machine": lambda root: portolan.target("add", "local", emulate="wasm"),
    "a target that is there": lambda root: (record(root), portolan.target("add", "old", emulate="wasm")),
    "removing what is not there": lambda root: portolan.target("remove", "new"),
    "no emulator": lambda root: add(root, "aarch64"),
    "an emulator that is too old": lambda root: with_qemu(root, "aarch64", "7.2.22"),
    "no network": lambda root: with_apt(root, "E: Could not resolve 'deb.debian.org'"),
    "a version that is gone": lambda root: with_apt(root, "E: Version '1' for 'debconf' was not found"),
    "no Node": lambda root: add(root, "wasm"),
    "no npm": lambda root: with_node(root, None),
    "npm that fails": lambda root: with_node(root, "network request to the registry failed"),
    "no browser": lambda root: add(root, "webgpu"),
    "a folder that is a file": unwritable,
    "an emulator that was removed": gone,
    "a target that does not answer": dead,
    "a record of another version": unreadable,
    "goals on time": lambda root: (record(root), portolan.optimize("m", goals=["latency_p95 < 8ms"], target="old")),
    "times of an emulator": lambda root: (record(root), portolan.doctor("old", bench=True)),
}


def told(name: str, root: Place) -> str:
    return errors.told(name, lambda: WRONG[name](root), root, "HERE")


def test_every_error_word_for_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "_KEYRING", Path(__file__))
    said = []
    for i, name in enumerate(WRONG):
        root = tmp_path / str(i)
        (root / "tools").mkdir(parents=True)
        monkeypatch.setenv(_added.VARIABLE, str(root / "targets"))
        monkeypatch.setenv("PATH", str(root / "tools"))
        said.append(told(name, root))
    text = "\n".join(said)
    if os.environ.get("PORTOLAN_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
