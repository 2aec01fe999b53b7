"""What a target can run and what is missing: the facts behind `portolan doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portolan.core import interpreters
from portolan.core.backend import Backend
from portolan.core.registry import BACKENDS, PASSES
from portolan.core.target import Target
from portolan.errors import PortolanError


def examine(target: Target, elsewhere: Mapping[str, Backend] | None = None) -> dict[str, Any]:
    """The doctor object of the contract; no runtime is imported.

    A plug-in that cannot be loaded, or whose probe fails, is a backend that is not ready, with that as its reason.

    Args:
        target: this machine, or another.
        elsewhere: backends that answer for an interpreter that the user named, or for another machine.
    """
    asked = elsewhere or {}
    rows = [(_searched(name), _backend(name, target, asked.get(name))) for name in BACKENDS.names()]
    return {
        "target": target.to_json(),
        # One that is never searched is news only where it works: nobody misses the fake.
        "backends": [row for searched, row in rows if searched or row["ready"]],
        "passes": [_pass(name) for name in PASSES.names()],
    }


def _searched(name: str) -> bool:
    try:
        return bool(BACKENDS.get(name).searched)
    except (PortolanError, AttributeError):  # `_backend` has the reason
        return True


def _backend(name: str, target: Target, elsewhere: Backend | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "ready": False, "version": None, "reason": None, "fix": None}
    row["devices"] = {}
    own = interpreters.environment(name)
    row["environment"] = None if own is None else own.to_json()
    try:
        support = (elsewhere or BACKENDS.get(name)).probe(target)
    except PortolanError as error:
        return row | {"reason": error.message, "fix": error.hint}
    except Exception as error:  # someone else's code: what it does wrong is its own row's news
        return row | {"reason": f"its probe failed: {type(error).__name__}: {error}"}
    found = {key: getattr(support, key) for key in ("ready", "version", "reason", "fix")}
    devices = {
        device: {key: getattr(on, key) for key in ("ready", "reason", "fix")} for device, on in support.devices.items()
    }
    return row | found | {"devices": devices}


def _pass(name: str) -> dict[str, Any]:
    try:
        found = PASSES.get(name)
        defaults = {key: parameter.default for key, parameter in found.schema.parameters.items()}
        return {"name": name, "about": found.about, "needs": found.needs(defaults), "reason": None}
    except PortolanError as error:
        return {"name": name, "about": None, "needs": None, "reason": error.message}
    except Exception as error:
        return {"name": name, "about": None, "needs": None, "reason": f"{type(error).__name__}: {error}"}
