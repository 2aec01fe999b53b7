"""`deploy`: the files that run a bundle on a platform, filled in from what was measured. One file per platform."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from portolan.bundle import Bundle, open_bundle
from portolan.core.backend import on_processor
from portolan.core.registry import PLATFORMS
from portolan.deployment import _files as files
from portolan.deployment._facts import Choices, Facts
from portolan.deployment._platform import Emitted, Platform
from portolan.errors import NoBackend, PortolanError, UsageError

__all__ = ["Choices", "Emitted", "Facts", "Platform", "deploy"]


def deploy(
    bundle: Path, platforms: Sequence[str], choices: Choices, *, out: Path | None, force: bool, dry_run: bool
) -> dict[str, Any]:
    """Writes a folder per platform; the object of the contract. See `portolan.api.deploy`.

    Raises:
        NoBackend: the bundle's recipe runs on a GPU, which no file of ours asks a platform for.
    """
    if not platforms:
        raise UsageError("no platform is named", hint=f"name one with `--to`: {', '.join(PLATFORMS.names())}")
    wanted = {name: platform(name) for name in platforms}
    with open_bundle(bundle) as opened:
        if not on_processor(opened.options):
            raise NoBackend(
                f"the bundle runs on device `{opened.options['device']}`, and `deploy` writes files for processors",
                hint="pack a recipe for the processor (`device=cpu`), or `portolan serve` the bundle where the GPU is",
            )
        facts = Facts(opened, choices)
        top = out or Path(f"deploy-{facts.label}")
        emitted = {name: found.emit(facts) for name, found in wanted.items()}
        listed = {name: files.listing(opened, found) for name, found in emitted.items()}
        for name in emitted:
            files.check_free(top / name, listed[name], force)
        if not dry_run:
            _write(opened, emitted, top)
        return {
            "bundle": str(bundle),
            "sha256": opened.sha256,
            "name": facts.label,
            "out": str(top),
            "facts": facts.to_json(),
            "platforms": [_told(name, found, listed[name], top / name) for name, found in emitted.items()],
        }


def platform(name: str) -> Platform:
    """The platform of that name.

    Raises:
        UnknownName: there is none.
        PortolanError: a plug-in that is something else.
    """
    found = PLATFORMS.get(name)
    if not isinstance(found, Platform):
        raise PortolanError(
            f"the platform `{name}` is a `{type(found).__name__}`, not a `portolan.deployment.Platform`",
            hint="reinstall the package that provides it, or remove it",
        )
    return found


def _write(bundle: Bundle, emitted: dict[str, Emitted], top: Path) -> None:
    """All of them, or none: they are complete before the first is moved to its place."""
    with files.staged(top) as place:
        for name, found in emitted.items():
            (place / name).mkdir()
            files.write(bundle, found, place / name)
        for name in emitted:
            files.publish(place / name, top / name)


def _told(name: str, found: Emitted, listed: list[str], folder: Path) -> dict[str, Any]:
    import shlex

    place = shlex.quote(str(folder))
    return {
        "name": name,
        "folder": str(folder),
        "files": listed,
        "next": [line.replace("{folder}", place) for line in found.next],
        "notes": list(found.notes),
    }
