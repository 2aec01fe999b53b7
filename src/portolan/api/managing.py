"""The verb that manages what runtimes live in."""

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
