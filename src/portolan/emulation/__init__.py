"""Making targets that are not this machine: the packages they need, fetched only when `portolan target add` says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from portolan.emulation.kinds import KINDS
from portolan.emulation.make import Wish, add, listed, remove, show
from portolan.errors import UnknownName, UsageError

__all__ = ["ACTIONS", "KINDS", "Wish", "act"]

ACTIONS = ("list", "add", "show", "remove")


def act(
    action: str, name: str | None, wish: Wish, say: Callable[[str], None], *, dry_run: bool = False
) -> dict[str, Any]:
    """What `portolan target` answers.

    Raises:
        UnknownName: no such action, kind, processor or target.
        UsageError: a name is missing, or does not fit.
        NoBackend: a target cannot be made here.
    """
    if action not in ACTIONS:
        raise UnknownName("action of `portolan target`", action, ACTIONS)
    if action == "list":
        return {"action": action, "targets": listed() if name is None else [show(name)]}
    if name is None:
        raise UsageError(f"`portolan target {action}` needs a name", hint=f"portolan target {action} NAME")
    if action == "show":
        return {"action": action, "targets": [show(name)]}
    if action == "remove":
        return {"action": action, "targets": [remove(name, dry_run=dry_run)]}
    return {"action": action, "targets": [add(wish, say, dry_run=dry_run)]}
