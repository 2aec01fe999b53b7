"""The verbs that manage what runtimes live in, and where models run."""

from __future__ import annotations

from typing import Literal

from portolan.api.result import Progress, Result, silent


def env(
    action: Literal["list", "add", "repair", "remove"] = "list",
    *names: str,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Environments of their own for backends whose packages clash. Nothing but `add` and `repair` installs anything.

    Args:
        action: `list`; `add` makes an environment, `repair` makes it anew, `remove` removes it.
        names: of environments; for `list` all by default.
        force: `remove` also one that is in use.
        dry_run: say what would be installed or removed, write nothing.
        progress: told what is going on.

    Raises:
        UnknownName: no such environment, or action.
        UsageError: no name, or an environment that is not there or in use.
        NoBackend: it could not be installed.
    """
    from portolan import environments

    return Result("env", environments.act(action, names, force=force, dry_run=dry_run, progress=progress or silent))


def target(
    action: Literal["list", "add", "remove", "show"] = "list",
    name: str | None = None,
    *,
    emulate: str | None = None,
    cpu: str | None = None,
    mirror: str | None = None,
    latest: bool = False,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Targets that are not this machine. Nothing but `add` fetches anything.

    Args:
        action: `list` tells all, `show` one; `add` makes one, `remove` removes it.
        name: what the target is called.
        emulate: for `add`: `haswell`, `aarch64`, `riscv64`, `wasm` or `webgpu`.
        cpu: for `add`: the processor to emulate, where the kind has several.
        mirror: for `add`: where Debian's packages are fetched from.
        latest: for `add`: take the versions that the mirror has now, in place of the pinned ones.
        force: for `add`: make anew what is there.
        dry_run: say what would be fetched or removed, write nothing.
        progress: told what is going on.

    Raises:
        UsageError: a name or flag that does not fit, or a target that exists or is not there.
        NoBackend: something that it needs is missing or cannot be fetched, or it does not run.
    """
    from portolan import emulation

    wish = emulation.Wish(name or "", emulate, cpu, mirror, latest, force)
    return Result("target", emulation.act(action, name, wish, progress or silent, dry_run=dry_run))
