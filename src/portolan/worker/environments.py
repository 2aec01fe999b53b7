"""Which interpreter a backend lives in: this, an environment of its own, or what PORTOLAN_PYTHON_<BACKEND> names.

Compilers clash, so each may have an environment of its own; a worker started there needs NumPy and the runtime only.
Environments that `portolan env add` made are read from disk; an interpreter that the user named is asked.
"""

from __future__ import annotations

import copy
import os
import shlex
from collections.abc import Sequence

from portolan.core import registry
from portolan.core.backend import Backend, Support
from portolan.core.interpreters import named, python_for, variable
from portolan.core.target import Target
from portolan.errors import PortolanError
from portolan.worker.session import Worker

__all__ = ["backends", "elsewhere", "python_for"]

_PROBE_SECONDS = 60.0


def backends(target: Target, names: Sequence[str] | None = None) -> dict[str, Backend]:
    """Every backend (or the named ones), answering `probe` and `versions` for the interpreter it lives in.

    Raises:
        UnknownName: no backend of that name.
    """
    found = {}
    for name in registry.BACKENDS.names() if names is None else names:
        backend = registry.backend(name)
        python = named(name)
        found[name] = backend if python is None else _elsewhere(backend, python, target)
    return found


def elsewhere(target: Target) -> dict[str, Backend]:
    """Those backends whose interpreter the user named in a variable; what is wrong with a name is their `probe`."""
    return backends(target, [name for name in registry.BACKENDS.names() if os.environ.get(variable(name))])


def _elsewhere(backend: Backend, python: list[str], target: Target) -> Backend:
    versions: dict[str, str] = {}
    try:
        with Worker(python=python) as worker:
            reply = worker.ask("probe", timeout=_PROBE_SECONDS, backend=backend.name, target=target.to_json())
        support = Support(**reply.fields["support"])
        versions = dict(reply.fields["versions"])
    except (PortolanError, OSError) as error:
        reason = f"`{shlex.join(python)}` does not answer: {error}"
        support = Support(False, reason=reason, fix=f"unset {variable(backend.name)}")
    answer = copy.copy(backend)
    answer.probe = lambda target: support  # type: ignore[method-assign]
    answer.versions = lambda: versions  # type: ignore[method-assign]
    return answer
