"""The emulator: the one on the path where it is new enough, else Debian's, unpacked beside the target."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from portolan.emulation.commands import run
from portolan.emulation.debian import Debian, unpack
from portolan.emulation.kinds import Kind, pins
from portolan.errors import NoBackend

_DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}


def on_path(kind: Kind) -> tuple[str, tuple[int, int]] | None:
    """The emulator on the path and its version, old or new; None where there is none."""
    path = shutil.which(kind.emulator)
    if path is None:
        return None
    said = run(
        [path, "--version"], doing=f"asking `{path}` for its version", folder=Path("/"), hint="reinstall qemu-user"
    )
    match = re.search(r"version (\d+)\.(\d+)", said)
    return (path, (int(match[1]), int(match[2]))) if match else None


def emulator(kind: Kind, folder: Path, archive: Callable[[str], Debian]) -> tuple[Path | str, str]:
    """The emulator of `kind` and its version; a fetched one lies in `folder`.

    Raises:
        NoBackend: it is missing or too old, and cannot be fetched.
    """
    found = on_path(kind)
    if found is not None and found[1] >= kind.oldest:
        return found[0], ".".join(map(str, found[1]))
    own = _DEBIAN.get(platform.machine())
    if own is None or shutil.which("apt-get") is None:
        wanted = ".".join(map(str, kind.oldest))
        have = f"is version {'.'.join(map(str, found[1]))}" if found else "is not installed"
        raise NoBackend(
            f"`{kind.emulator}` {have}, and `{kind.name}` needs {wanted} or newer",
            hint="install `qemu-user` with your system's package manager",
        )
    debian = archive(own)
    pinned = pins(f"qemu-{own}.txt")
    scratch = folder / "qemu-unpacked"
    unpack(debian.fetch(pinned), scratch)
    (scratch / "usr" / "bin" / kind.emulator).rename(folder / kind.emulator)
    shutil.rmtree(scratch)  # one emulator of forty: the others are 400 MB
    return folder / kind.emulator, debian.versions(pinned)["qemu-user"]
