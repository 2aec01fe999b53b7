"""Environments of their own for packages that clash: where they are, what they hold, and whether they are whole.

One requirements file per environment, `portolan/environments/NAME.txt`, in which the backend NAME lives: every package
pinned, its licence behind it. `portolan env add NAME` makes the environment (`portolan.environments` does the work);
the rest of Portolan only looks, with nothing but the file system, so that `doctor` and `--help` stay quick.

An environment is whole when its stamp is there, which is written last, its interpreter still is, and it holds the very
versions of the requirements file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from portolan.core.folders import data_folder
from portolan.core.locks import lock
from portolan.errors import PortolanError, UnknownName

VARIABLE = "PORTOLAN_ENVS"
STAMP = "portolan-env.json"
#: The requirements files.
PLANS = Path(__file__).resolve().parents[1] / "environments"
_PIN = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[^\s;#]+)\s*#\s*(?P<licence>.+)")
_SHOWN = 3

State = Literal["absent", "ready", "half installed", "broken", "other versions"]


@dataclass(frozen=True)
class Pin:
    """One package of a requirements file."""

    name: str
    version: str
    licence: str


@dataclass(frozen=True)
class Plan:
    """What an environment is made from.

    Attributes:
        name: of the environment and of the backend that lives in it.
        about: one line.
        path: the requirements file.
        pins: its packages, the runtime first: the whole closure, since nothing else is installed.
        options: lines for pip, such as another index.
    """

    name: str
    about: str
    path: Path
    pins: tuple[Pin, ...]
    options: tuple[str, ...] = ()

    @property
    def licences(self) -> dict[str, str]:
        """The licence of each package."""
        return {pin.name: pin.licence for pin in self.pins}


@dataclass(frozen=True)
class Found:
    """An environment as it is on disk.

    Attributes:
        state: `ready` is the only one that is used.
        reason: why it is not used; None where it is.
        fix: the command that changes that.
        version: of the first package of the plan, as it is there.
        size: bytes, counted when it was made; None where nothing says.
    """

    name: str
    folder: Path
    state: State
    reason: str | None = None
    fix: str | None = None
    version: str | None = None
    size: int | None = None

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def site(self) -> Path:
        """Where its packages are."""
        return next(iter(sorted(self.folder.glob("lib/python3*/site-packages"))), self.folder / "lib")

    def to_json(self) -> dict[str, Any]:
        """The environment as plain data."""
        keys = ("name", "state", "reason", "fix", "version", "size")
        return {key: getattr(self, key) for key in keys} | {"folder": str(self.folder)}


def root() -> Path:
    """The folder of all environments: PORTOLAN_ENVS, or `portolan/envs` in the user's data folder."""
    return data_folder("envs", VARIABLE)


def names() -> list[str]:
    """Every environment that can be made."""
    return sorted(path.stem for path in PLANS.glob("*.txt"))


def plan(name: str) -> Plan:
    """What the environment `name` is made from.

    Raises:
        UnknownName: there is no such environment.
        PortolanError: a line of its file pins nothing, or names no licence.
    """
    path = PLANS / f"{name}.txt"
    if name not in names():
        raise UnknownName("environment", name, names())
    about, pins, options = "", [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if found := _PIN.fullmatch(line.strip()):
            pins.append(Pin(**found.groupdict()))
        elif line.startswith("--"):
            options.append(line.strip())
        elif line.startswith("#"):
            about = about or line.lstrip("# ")
        elif line.strip():
            raise PortolanError(
                f"`{line.strip()}` is no pinned requirement",
                hint="write `name==version  # licence`",
                where=f"{path.name}:{number}",
            )
    return Plan(name, about, path, tuple(pins), tuple(options))


def find(name: str) -> Found | None:
    """The environment of the backend `name` as it is; None where none can be made for it."""
    if not re.fullmatch(r"[\w-]+", name) or not (PLANS / f"{name}.txt").is_file():
        return None
    found, add, repair = Found(name, root() / name, "absent"), f"portolan env add {name}", f"portolan env repair {name}"
    if not found.folder.is_dir():
        return dataclasses.replace(found, fix=add)
    size = _stamped(found.folder)
    if size is None:
        return dataclasses.replace(
            found, state="half installed", reason=f"the environment `{name}` is half installed", fix=repair
        )
    here, wanted = installed(found.site), plan(name)
    found = dataclasses.replace(found, size=size, version=here.get(normal(wanted.pins[0].name)))
    if not found.python.exists():
        reason = f"the interpreter of the environment `{name}` is gone"
        return dataclasses.replace(found, state="broken", reason=reason, fix=repair)
    if wrong := differences(wanted, here):
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        reason = f"the environment `{name}` {', '.join(wrong[:_SHOWN])}{more}"
        return dataclasses.replace(found, state="other versions", reason=reason, fix=repair)
    return dataclasses.replace(found, state="ready")


def differences(wanted: Plan, here: dict[str, str]) -> list[str]:
    """What an environment lacks, or has in another version, in words."""
    wrong = []
    for pin in wanted.pins:
        got = here.get(normal(pin.name))
        if got is None:
            wrong.append(f"lacks `{pin.name}`")
        elif got != pin.version and got.partition("+")[0] != pin.version:
            wrong.append(f"has `{pin.name}` {got} where {pin.version} is wanted")
    return wrong


def installed(site: Path) -> dict[str, str]:
    """The version of each package in a folder, by its normalised name; read from file names alone."""
    stems = (path.name.removesuffix(".dist-info").partition("-") for path in site.glob("*.dist-info"))
    return {normal(name): version for name, _, version in stems}


def normal(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def gone(python: Sequence[str] | None) -> str | None:
    """The environment that the interpreter `python` was in, where it is no longer whole; None otherwise."""
    if not python:
        return None
    folder = Path(python[0]).parent.parent
    known = folder.parent == root() and (PLANS / f"{folder.name}.txt").is_file()
    return folder.name if known and not (folder / STAMP).is_file() else None


def hold() -> None:
    """Marks the environment that this process runs in as used, until the process ends. Elsewhere it does nothing."""
    with contextlib.suppress(OSError):
        # Never closed: the kernel lets go of the lock when the process is gone, however it ends.
        lock(os.open(Path(sys.prefix) / STAMP, os.O_RDONLY), shared=True)


def _stamped(folder: Path) -> int | None:
    try:
        data = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        return int(data["size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
