"""Making, listing and removing targets. A target is whole, or it is not there.

It is put together in a folder with another name, asked to answer a small model, and renamed. What was fetched for it
lies apart until then, so that a command that was interrupted, however hard, goes on where it was when it is repeated.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from portolan.core.locks import lock
from portolan.core.scratch import Scratch, sweep
from portolan.core.target import Target
from portolan.emulation import check
from portolan.emulation.fill import Filled, Order, fill, planned
from portolan.emulation.kinds import KINDS, MIRROR, Kind
from portolan.emulation.wheels import pinned
from portolan.errors import DiskFull, PortolanError, UnknownName, UsageError, no_space
from portolan.targets import _added

_DOWNLOADS, _SCRATCH, _OLD, _LOCK = ".fetched", ".making-", ".removed-", ".lock"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """What was asked for."""

    name: str
    emulate: str | None
    cpu: str | None = None
    mirror: str | None = None
    latest: bool = False
    force: bool = False


def add(wish: Wish, say: Say, *, dry_run: bool = False) -> dict[str, Any]:
    """Makes a target; its record as plain data.

    Raises:
        UsageError, UnknownName: a name, kind or processor that does not fit, or a target that exists.
        NoBackend: what it needs is missing or cannot be fetched, or it does not run.
        VerificationFailed: it runs, and answers wrongly.
    """
    kind, cpu = _checked(wish)
    if dry_run:
        return {"name": wish.name, "emulate": kind.name, "folder": str(_added.root() / wish.name), **planned(kind, cpu)}
    with _explained(), _alone(say):
        for prefix in (_SCRATCH, _OLD):
            sweep(_added.root(), prefix)
        order = Order(kind, cpu, _added.root() / _DOWNLOADS, wish.mirror or MIRROR, wish.latest, say)
        _make(wish.name, order, force=wish.force)
        # Kept until now so that nothing is fetched twice; from here on it is only bytes.
        for folder in order.used:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            (_added.root() / _DOWNLOADS).rmdir()
    return _added.read(wish.name).to_json()


def listed() -> list[dict[str, Any]]:
    """Every added target; one that cannot be read has the reason in place of the rest."""
    rows: list[dict[str, Any]] = []
    for name in _added.names():
        try:
            rows.append(show(name))
        except PortolanError as error:
            rows.append({"name": name, "folder": str(_added.root() / name), "reason": error.message, "fix": error.hint})
    return rows


def show(name: str) -> dict[str, Any]:
    """One added target. Where other Python packages would be put there now, `outdated` says which, and `fix` how."""
    found = _added.read(name)
    data = found.to_json()
    if outdated := _outdated(found):
        data |= {"outdated": outdated, "fix": f"portolan target add {name} --emulate {found.emulate} --force"}
    return data


def _outdated(found: _added.Added) -> list[str]:
    """Python packages of another version than is pinned now, and those that came since the target was made."""
    kind = KINDS.get(found.emulate)
    wanted = pinned(kind.wheels) if kind is not None and kind.wheels else {}
    pairs = ((name, found.packages.get(name, "absent"), version) for name, version in wanted.items())
    return [f"{name} {here} for {version}" for name, here, version in pairs if here != version]


def remove(name: str, *, dry_run: bool = False) -> dict[str, Any]:
    """Removes an added target; what it was, as far as that can be read.

    Raises:
        UsageError, UnknownName: there is none.
    """
    if name not in _added.names():
        _added.read(name)  # says that there is none, and what is near
    folder = _added.root() / name
    found = {"name": name, "folder": str(folder), "size": _size(folder)}
    if not dry_run:
        with _explained():
            _drop(folder)
    return found


def _checked(wish: Wish) -> tuple[Kind, str | None]:
    _added.check_name(wish.name)
    if wish.emulate is None:
        raise UsageError(
            f"`portolan target add {wish.name}` does not say what to emulate", hint=f"--emulate {'|'.join(KINDS)}"
        )
    if wish.emulate not in KINDS:
        raise UnknownName("kind of target", wish.emulate, KINDS)
    kind = KINDS[wish.emulate]
    if wish.cpu is not None and wish.cpu not in kind.cpus:
        if not kind.cpus:
            raise UsageError(f"`{kind.name}` has no choice of processors", hint="leave out --cpu")
        raise UnknownName(f"processor of `{kind.name}`", wish.cpu, kind.cpus)
    if (_added.root() / wish.name).exists() and not wish.force:
        raise UsageError(
            f"the target `{wish.name}` exists", hint=f"--force makes it anew; `portolan target show {wish.name}`"
        )
    return kind, wish.cpu or next(iter(kind.cpus), None)


def _make(name: str, order: Order, *, force: bool) -> None:
    root = _added.root()
    with Scratch(_SCRATCH, root) as held:
        scratch = held.path
        filled = fill(order, scratch)
        reach = [_added.resolved(part, scratch) for part in filled.reach]
        order.say("asking it what it is, and for the answer of a small model")
        seen = check.observed(reach, name)
        # What is installed there, and what emulates it: all of it decides answers.
        target = replace(seen, **{**filled.facts, "runtimes": {**seen.runtimes, **filled.facts.get("runtimes", {})}})
        versions = check.answers(reach, replace(target, reach=tuple(reach)), filled.backend)
        _record(name, order.kind, filled, target, versions, scratch)
        scratch.chmod(0o755)
        if force:
            _drop(root / name)
        scratch.rename(root / name)


def _record(name: str, kind: Kind, filled: Filled, target: Target, versions: dict[str, str], folder: Path) -> None:
    data = {
        "format": _added.FORMAT,
        "name": name,
        "emulate": kind.name,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "size": _size(folder),
        "packages": {**versions, **filled.packages},
        "target": {**target.to_json(), "reach": list(filled.reach)},
    }
    (folder / _added.RECORD).write_text(json.dumps(data, indent=1, sort_keys=True), encoding="utf-8")


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def _drop(folder: Path) -> None:
    """Removes a target: its name goes first, so that what is left of a removal never looks like a target."""
    if not folder.exists():
        return
    with Scratch(_OLD, folder.parent) as away:
        folder.rename(away.path / folder.name)


@contextlib.contextmanager
def _alone(say: Say) -> Iterator[None]:
    """One `target add` at a time: two would fetch into the same folder."""
    root = _added.root()
    root.mkdir(parents=True, exist_ok=True)
    with (root / _LOCK).open("w") as file:
        if not lock(file.fileno()):
            say("waiting for another `portolan target add`")
            lock(file.fileno(), wait=math.inf)
        yield


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = error.filename or _added.root()
        if no_space(error):
            raise DiskFull(f"the disk is full: `{place}` could not be written") from error
        raise UsageError(
            f"`{place}` cannot be written: {error.strerror}", hint=f"name another folder: {_added.VARIABLE}=DIR"
        ) from error
