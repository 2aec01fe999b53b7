"""What goes into a target's folder, kind by kind, and the argv prefix that starts a Python there."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portolan.backends._engine import SETTINGS, VARIABLE, Web
from portolan.core import chromium, environments
from portolan.emulation import npm
from portolan.emulation.commands import need
from portolan.emulation.debian import Debian, unpack
from portolan.emulation.kinds import Kind, megabytes, pins
from portolan.emulation.qemu import emulator, on_path
from portolan.emulation.wheels import install
from portolan.errors import NoBackend
from portolan.targets._added import FOLDER, PYTHON

_DEBIAN = {"aarch64": "arm64", "riscv64": "riscv64"}


@dataclass(frozen=True)
class Order:
    """What is to be made, and from where; `used` are the folders of what was fetched for it."""

    kind: Kind
    cpu: str | None
    downloads: Path
    mirror: str
    latest: bool
    say: Callable[[str], None]
    used: list[Path] = field(default_factory=list)

    def folder(self, name: str) -> Path:
        """A folder for what is fetched."""
        self.used.append(self.downloads / name)
        return self.used[-1]

    def debian(self, arch: str) -> Debian:
        """Debian's archive for a processor."""
        self.folder(arch)
        return Debian(self.downloads, arch, self.mirror, latest=self.latest, say=self.say)


@dataclass(frozen=True)
class Filled:
    """A folder with all that a target needs.

    Attributes:
        reach: the argv prefix, with the words of `targets._added` for the folder and for this interpreter.
        packages: what was fetched, with its version.
        facts: what is known of the target and not seen from within.
        backend: what answers the first model.
    """

    reach: tuple[str, ...]
    packages: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)
    backend: str = "onnxruntime"


def fill(order: Order, folder: Path) -> Filled:
    """Fetches and unpacks what `order` needs into the empty `folder`.

    Raises:
        NoBackend: something is missing here, or cannot be fetched.
    """
    if order.kind.npm:
        return _web(order, folder)
    return _own_root(order, folder) if order.kind.root else _same_root(order, folder)


def planned(kind: Kind, cpu: str | None) -> dict[str, Any]:
    """What `fill` would fetch, as plain data for `--dry-run`; nothing is asked of the network."""
    fetched: list[str] = []
    found = on_path(kind) if kind.emulator else None
    if kind.emulator and (found is None or found[1] < kind.oldest):
        fetched.append(f"qemu-user, {megabytes(pins('qemu-amd64.txt'))}")
    if kind.root:
        packages = pins(kind.root)
        fetched.append(f"{len(packages)} packages of Debian for {kind.arch}, {megabytes(packages)}")
    if kind.wheels:
        fetched.append(f"Python packages for {kind.arch}")
    if kind.npm:
        fetched.append("the npm packages of ONNX Runtime Web, 148 MB unpacked")
    return {"cpu": cpu, "fetches": fetched}


def _same_root(order: Order, folder: Path) -> Filled:
    """This interpreter and its packages, under another processor of the same family."""
    kind = order.kind
    if platform.machine() != kind.arch:
        raise NoBackend(
            f"`{kind.name}` runs the interpreter of this machine, which is {platform.machine()} and not {kind.arch}",
            hint=f"add it on a machine that is {kind.arch}",
        )
    path, version = emulator(kind, folder, order.debian)
    reach = (_placed(path, folder), "-cpu", str(order.cpu), PYTHON)
    return Filled(reach, {"qemu-user": version}, _emulated(order, version))


def _own_root(order: Order, folder: Path) -> Filled:
    """A root of Debian's with its Python, and packages beside it."""
    kind = order.kind
    path, version = emulator(kind, folder, order.debian)
    debian = order.debian(_DEBIAN[kind.arch])
    packages = pins(kind.root)
    unpack(debian.fetch(packages), folder / "root")
    versions = {"qemu-user": version, **debian.versions(packages)}
    # This machine's environments are for this machine's processor.
    settings = {environments.VARIABLE: f"{FOLDER}/envs"}
    if kind.wheels:
        wheels = order.folder(f"wheels-{kind.arch}")
        versions |= install(kind.wheels, kind.arch, wheels, folder / "site", order.say)
        settings["PYTHONPATH"] = f"{FOLDER}/site"
    if kind.libraries:
        settings["LD_LIBRARY_PATH"] = ":".join(kind.libraries)
    reach = (
        *(_placed(path, folder), "-cpu", str(order.cpu), "-L", f"{FOLDER}/root"),
        *(word for key, value in settings.items() for word in ("-E", f"{key}={value}")),
        f"{FOLDER}/root/{kind.python}",
    )
    return Filled(reach, versions, _emulated(order, version))


def _emulated(order: Order, version: str) -> dict[str, Any]:
    return {"display": f"{order.cpu} under qemu-user {version}", "runtimes": {"qemu-user": version}}


def _web(order: Order, folder: Path) -> Filled:
    """ONNX Runtime Web, and which program runs it: Node, or a browser that is installed."""
    kind = order.kind
    program = browser() if kind.browser else need("node", "install Node.js 20 or newer: apt-get install nodejs")
    version = npm.install(folder, order.say)
    (folder / SETTINGS).write_text(json.dumps({"engine": kind.name, "program": program}), encoding="utf-8")
    engine = Web(folder, kind.name, program).engine_version() or "unknown"
    packages = {"onnxruntime-web": version, "chromium" if kind.browser else "node": engine}
    facts: dict[str, Any] = {
        "arch": kind.arch, "features": ("simd128",), "runtimes": {"onnxruntime-web": version},
        "accelerators": ("WebGPU",) if kind.browser else (),
        "display": f"ONNX Runtime Web in {engine}" if kind.browser else f"ONNX Runtime Web under Node {engine}",
    }  # fmt: skip
    return Filled(("/usr/bin/env", f"{VARIABLE}={FOLDER}", PYTHON), packages, facts, "onnxruntime-web")


def browser() -> str:
    """The path of a browser that Chromium's flags are for.

    Raises:
        NoBackend: none is installed.
    """
    if (path := chromium.found()) is not None:
        return path
    raise NoBackend(f"no browser is installed: none of {', '.join(chromium.NAMES)}", hint="apt-get install chromium")


def _placed(path: Path | str, folder: Path) -> str:
    """The path as a record keeps it."""
    return f"{FOLDER}/{Path(path).relative_to(folder)}" if Path(path).is_relative_to(folder) else str(path)
