"""Which interpreter a backend lives in: this, an environment of its own, or what PORTOLAN_PYTHON_<BACKEND> names.

Compilers clash, so each may have an environment of its own; a worker started there needs NumPy and the runtime only.
Environments that `portolan env add` made are read from disk; an interpreter that the user named is asked.
On a target that is not this machine it is the target's own interpreter, or this machine's behind the target's emulator.
"""

from __future__ import annotations

import copy
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace

from portolan.core import registry
from portolan.core.backend import Backend, Support
from portolan.core.interpreters import named, python_for, variable
from portolan.core.target import Target
from portolan.errors import PortolanError
from portolan.targets.local import local
from portolan.worker.session import Worker

__all__ = ["backends", "elsewhere", "python_for", "python_for_compiling", "python_on"]

_PROBE_SECONDS, _FAR_SECONDS = 60.0, 300.0
_EMULATOR = "qemu-user"


def python_on(target: Target, name: str) -> list[str] | None:
    """The argv of the interpreter that the backend `name` lives in on `target`; None for this one."""
    if not target.reach:
        return python_for(name)
    *prefix, python = target.reach
    own = python_for(name) if python == sys.executable else None
    return [*prefix, *(own or [python])]


def python_for_compiling(target: Target, backend: Backend) -> list[str] | None:
    """The argv of the interpreter that compiles for `target`: this machine's where what it makes runs anywhere."""
    if backend.portable and _own_interpreter(target):
        return python_for(backend.name)
    return python_on(target, backend.name)


def _own_interpreter(target: Target) -> bool:
    """Whether another interpreter than this one runs there."""
    return bool(target.reach) and target.reach[-1] != sys.executable


def backends(target: Target, names: Sequence[str] | None = None) -> dict[str, Backend]:
    """Every backend (or the named ones), answering `probe` and `versions` for the interpreter it lives in.

    Raises:
        UnknownName: no backend of that name.
    """
    if target.reach:
        return _there(target, registry.BACKENDS.names() if names is None else names)
    found = {}
    for name in registry.BACKENDS.names() if names is None else names:
        backend = registry.backend(name)
        python = named(name)
        found[name] = backend if python is None else _elsewhere(backend, python, target)
    return found


def elsewhere(target: Target) -> dict[str, Backend]:
    """Those backends whose interpreter the user named in a variable; what is wrong with a name is their `probe`."""
    return backends(target, [name for name in registry.BACKENDS.names() if os.environ.get(variable(name))])


def _there(target: Target, names: Sequence[str]) -> dict[str, Backend]:
    """The backends as a worker on `target` finds them, all by one process."""
    found = {name: registry.backend(name) for name in names}
    answers: dict[str, tuple[Support, dict[str, str]]] = {}
    if target.arch == "wasm32":
        native = [name for name, backend in found.items() if not backend.web]
        answers |= {n: (Support(False, reason=f"`{n}` does not run as WebAssembly"), {}) for n in native}
    try:
        with Worker(python=target.reach) as worker:
            for name in (name for name in names if name not in answers):
                answers[name] = _with_converter(_probed(worker, name, target, _FAR_SECONDS), found[name], target)
    except (PortolanError, OSError) as error:
        lost = Support(False, reason=f"`{target.id}` does not answer: {error}", fix=f"portolan target show {target.id}")
        answers |= {name: (lost, {}) for name in names if name not in answers}
    # An emulator of another version may give other answers: what was measured with the old one is not taken for it.
    emulator = {n: v for n, v in target.runtimes.items() if n == _EMULATOR}
    answering = {
        name: _answering(backend, answers[name][0], answers[name][1] | (emulator if answers[name][0].ready else {}))
        for name, backend in found.items()
    }
    for backend in answering.values():
        if backend.web and target.arch == "wasm32":
            backend.searched = True  # type: ignore[misc]
    return answering


def _probed(worker: Worker, name: str, target: Target, seconds: float) -> tuple[Support, dict[str, str]]:
    fields = worker.ask("probe", timeout=seconds, backend=name, target=target.to_json()).fields
    support = Support.from_json(fields["support"])
    if _own_interpreter(target):
        # What is missing in an interpreter of its own is not mended by a command for this one.
        support = replace(support, fix=None)
    return support, dict(fields["versions"])


def _with_converter(
    answer: tuple[Support, dict[str, str]], backend: Backend, target: Target
) -> tuple[Support, dict[str, str]]:
    """What a target says of a backend, and of its converter here where it has one: both decide the answers."""
    support, versions = answer
    if not (support.ready and backend.portable and _own_interpreter(target)):
        return answer
    here = backends(local.processor(), [backend.name])[backend.name]
    converter = here.probe(local.processor())
    if not converter.ready:
        reason = f"`{backend.name}` is converted on this machine: {converter.reason}"
        return Support(False, support.version, reason, converter.fix), versions
    return support, here.versions() | versions


def _answering(backend: Backend, support: Support, versions: dict[str, str]) -> Backend:
    answer = copy.copy(backend)
    answer.probe = lambda target: support  # type: ignore[method-assign]
    answer.versions = lambda: versions  # type: ignore[method-assign]
    answer.devices = lambda target: support.devices  # type: ignore[method-assign]
    return answer


def _elsewhere(backend: Backend, python: list[str], target: Target) -> Backend:
    try:
        with Worker(python=python) as worker:
            support, versions = _probed(worker, backend.name, target, _PROBE_SECONDS)
    except (PortolanError, OSError) as error:
        reason = f"`{shlex.join(python)}` does not answer: {error}"
        support, versions = Support(False, reason=reason, fix=f"unset {variable(backend.name)}"), {}
    return _answering(backend, support, versions)
