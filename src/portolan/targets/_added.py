"""Targets that `portolan target add` made: where they are, and what their records say.

One folder each, which appears under its name only when it is whole; `portolan.emulation` makes them. A record names the
interpreter of Portolan and its own folder by a word, so that neither a move nor another environment spoils it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from portolan.core.folders import data_folder
from portolan.core.registry import TARGETS
from portolan.core.target import Target
from portolan.errors import PortolanError, UnknownName, UsageError, nearest

VARIABLE = "PORTOLAN_TARGETS_DIR"
RECORD = "target.json"
FORMAT = 1
#: Words in `reach` that stand for a path.
FOLDER, PYTHON = "{folder}", "{python}"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Added:
    """A target as it was made.

    Attributes:
        name: what the user calls it.
        emulate: the kind it was made as, such as `aarch64`.
        folder: where it lies.
        target: what it is, and how to reach it.
        packages: what was installed for it, each with its version.
        made: when, in UTC.
        size: bytes on disk.
    """

    name: str
    emulate: str
    folder: Path
    target: Target
    packages: Mapping[str, str]
    made: str
    size: int

    def to_json(self) -> dict[str, Any]:
        """What `target show` and `target list` give."""
        return {
            "name": self.name,
            "emulate": self.emulate,
            "folder": str(self.folder),
            "made": self.made,
            "size": self.size,
            "packages": dict(self.packages),
            "target": self.target.to_json(),
        }


def root() -> Path:
    """The folder of all added targets: PORTOLAN_TARGETS_DIR, or `portolan/targets` in the user's data folder."""
    return data_folder("targets", VARIABLE)


def names() -> list[str]:
    """The names of the added targets."""
    return sorted(path.parent.name for path in root().glob(f"*/{RECORD}") if _NAME.fullmatch(path.parent.name))


def known() -> list[str]:
    """Every target's name: this machine, plug-ins' and added ones."""
    return [*TARGETS.names(), *(name for name in names() if name not in TARGETS.names())]


def check_name(name: str) -> None:
    """Raises a UsageError for a name that no target can be added under."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"`{name}` is no name for a target", hint="use letters, digits, `-`, `_` and `.`")
    if name in TARGETS.names():
        raise UsageError(f"`{name}` is a target already", hint="choose another name")


def find(name: str) -> Target:
    """The target of that name: detected where it is this machine, read where it was added.

    Raises:
        UnknownName, UsageError: there is none.
        PortolanError: its record cannot be read, or what it needs is gone.
    """
    if name in TARGETS.names():
        found: Target = TARGETS.get(name).detect()
        return found
    target = read(name).target
    gone = next((part for part in target.reach if part.startswith("/") and not Path(part).exists()), None)
    if gone is not None:
        raise PortolanError(
            f"the target `{name}` is no longer whole: `{gone}` is gone",
            hint=f"portolan target add {name} --emulate {read(name).emulate} --force",
        )
    return target


def read(name: str) -> Added:
    """The added target of that name.

    Raises:
        UnknownName, UsageError: there is none.
        PortolanError: its record cannot be read.
    """
    if not _NAME.fullmatch(name) or not (root() / name / RECORD).is_file():
        raise _unknown(name)
    path = root() / name / RECORD
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}, expected {FORMAT}")
        target = Target.from_json(data["target"])
        reach = tuple(resolved(part, path.parent) for part in target.reach)
        return Added(
            name, str(data["emulate"]), path.parent, replace(target, id=name, reach=reach),
            {str(key): str(value) for key, value in data["packages"].items()}, str(data["made"]), int(data["size"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PortolanError(
            f"the record of the target `{name}` cannot be read: {error}",
            hint=f"portolan target remove {name}, and add it again",
            where=str(path),
        ) from error


def resolved(part: str, folder: Path) -> str:
    """A part of a record's `reach` with the paths in place of the words."""
    return part.replace(FOLDER, str(folder)).replace(PYTHON, sys.executable)


def _unknown(name: str) -> UsageError:
    every = known()
    if nearest(name, every).startswith("did you mean"):
        return UnknownName("target", name, every)
    return UsageError(
        f"no target named `{name}`",
        hint=f"known: {', '.join(every)}; `portolan target add {name} --emulate KIND` adds one",
    )
