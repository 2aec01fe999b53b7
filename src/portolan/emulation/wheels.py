"""Python packages for another processor, fetched by pip from pins with hashes, and unpacked into a folder."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path

from portolan.emulation.commands import run
from portolan.emulation.kinds import PINS
from portolan.errors import NoBackend

_HINT = "check the network and repeat the command: what was fetched is kept"
_PLATFORMS = ("manylinux_2_35", "manylinux_2_28", "manylinux_2_27", "manylinux2014", "manylinux_2_17")


def install(file: str, arch: str, downloads: Path, site: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Unpacks the pinned wheels of CPython 3.13 on Linux for `arch` into `site`; the version of each.

    Raises:
        NoBackend: pip is missing, or the packages cannot be fetched.
    """
    if importlib.util.find_spec("pip") is None:
        raise NoBackend("pip is not installed beside Portolan", hint=f"{sys.executable} -m ensurepip")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    versions = pinned(file)
    downloads.mkdir(parents=True, exist_ok=True)
    say(f"fetching {len(versions)} Python packages for {arch}")
    wanted = ["--no-deps", "--require-hashes", "-r", str(PINS / file)]
    run(
        [*pip, "download", "-q", *place(arch), *wanted, "-d", str(downloads)],
        doing="fetching Python packages", folder=downloads, hint=_HINT,
    )  # fmt: skip
    here = ["--no-index", "--find-links", str(downloads), "--target", str(site)]
    run(
        [*pip, "install", "-q", *place(arch), *wanted, *here],
        doing="unpacking Python packages", folder=downloads, hint=_HINT,
    )  # fmt: skip
    return versions


def place(arch: str) -> list[str]:
    """The words that tell pip which Python and which machine the wheels are for."""
    return [
        *("--only-binary", ":all:", "--python-version", "3.13", "--implementation", "cp"),
        *(word for abi in ("cp313", "abi3", "none") for word in ("--abi", abi)),
        *(word for name in _PLATFORMS for word in ("--platform", f"{name}_{arch}")),
    ]


def pinned(file: str) -> dict[str, str]:
    """The version of each package in a file of pins."""
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", (PINS / file).read_text(encoding="utf-8"), re.MULTILINE))
