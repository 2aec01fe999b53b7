"""Making, repairing and removing environments: the one place where Portolan installs anything, on an explicit verb.

What they are made from lies beside this file, one requirements file each; see portolan.core.environments for what
makes one whole. Packages are installed without their dependencies, since the file names them all, and from wheels
alone, so no package's own code runs; pip finds them where the user's pip is told to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from portolan.core import environments
from portolan.environments import install
from portolan.errors import UnknownName, UsageError

ACTIONS = ("list", "add", "repair", "remove")


def act(
    action: str, names: Sequence[str], *, force: bool, dry_run: bool, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Does `action` to the environments `names`, one after another; the object of `portolan env`.

    Raises:
        UnknownName: no such action or environment; nothing was done.
        UsageError: no name.
        NoBackend: an environment could not be installed; those before it are there.
    """
    if action not in ACTIONS:
        raise UnknownName("action of `env`", action, ACTIONS)
    if not names and action != "list":
        raise UsageError(f"`env {action}` needs a name", hint=f"known: {', '.join(environments.names())}")
    plans = [environments.plan(name) for name in names or environments.names()]
    for plan in plans if not dry_run else ():
        if action == "add":
            install.add(plan.name, progress)
        elif action == "repair":
            install.repair(plan.name, progress)
        elif action == "remove":
            install.remove(plan.name, force=force)
    return {
        "action": action,
        "root": str(environments.root()),
        "environments": [_row(plan) for plan in plans],
    }


def _row(plan: environments.Plan) -> dict[str, Any]:
    found = environments.find(plan.name)
    state = {} if found is None else found.to_json()
    packages = [{"name": pin.name, "version": pin.version, "licence": pin.licence} for pin in plan.pins]
    return {**state, "about": plan.about, "packages": packages}
