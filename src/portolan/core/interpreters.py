"""Which interpreter a backend or a pass's library lives in.

The one that PORTOLAN_PYTHON_<NAME> names; else the environment of its own, where `portolan env add NAME` made one; else
this one.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from portolan.core import environments
from portolan.errors import NoBackend, UsageError

_SECONDS = 60.0
_ASK_ALL = (
    "import importlib.metadata as m, json, sys\n"
    "d = {p.metadata['Name'].lower().replace('_', '-'): p.version for p in m.distributions()}\n"
    "print(json.dumps({n: d.get(n.lower(), 'missing') for n in sys.argv[1:]}))"
)
_ASK = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"


def variable(name: str) -> str:
    """The environment variable that names the interpreter of `name`."""
    return f"PORTOLAN_PYTHON_{name.upper().replace('-', '_')}"


def named(name: str) -> list[str] | None:
    """The argv that the variable names; None where it is not set.

    Raises:
        UsageError: the variable is no command line.
    """
    text = os.environ.get(variable(name))
    try:
        return shlex.split(text) if text else None
    except ValueError as error:
        raise UsageError(
            f"`{variable(name)}` is no command line: {error}", hint="name an interpreter in it, or unset it"
        ) from error


def environment(name: str) -> environments.Found | None:
    """The environment of its own that `name` has, in whatever state; None where the variable wins or none is known."""
    return None if os.environ.get(variable(name)) else environments.find(name)


def python_for(name: str) -> list[str] | None:
    """The argv of the interpreter that `name` lives in; None for this one.

    Raises:
        UsageError: the variable is no command line.
    """
    if python := named(name):
        return python
    found = environment(name)
    return [str(found.python)] if found is not None and found.state == "ready" else None


def has(name: str, module: str) -> bool:
    """Whether `module` can be imported where `name` lives, without importing it or asking another interpreter."""
    found = environment(name)
    if found is not None and found.state == "ready":
        return importlib.machinery.PathFinder.find_spec(module.partition(".")[0], [str(found.site)]) is not None
    return importlib.util.find_spec(module) is not None


def folder(name: str, module: str) -> Path | None:
    """Where the package `module` lies where `name` lives, likewise; None where it does not."""
    found = environment(name)
    try:
        if found is not None and found.state == "ready":
            spec = importlib.machinery.PathFinder.find_spec(module, [str(found.site)])
        else:
            spec = importlib.util.find_spec(module)
    except ValueError:  # a module that somebody made by hand
        return None
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) if places else None


def distribution(name: str, package: str) -> str | None:
    """The version of a distribution where `name` lives, likewise; None where it is not installed."""
    found = environment(name)
    if found is not None and found.state == "ready":
        return environments.installed(found.site).get(environments.normal(package))
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing(module: str) -> bool:
    """Whether `module` is neither here nor said to be elsewhere."""
    return python_for(module) is None and importlib.util.find_spec(module) is None


def version(module: str) -> str:
    """The version of the distribution `module` in the interpreter it lives in; why not, where it does not answer."""
    python = named(module)
    if python is None:
        return distribution(module, module) or "missing"
    try:
        done = subprocess.run([*python, "-c", _ASK, module], capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no answer: {type(error).__name__}"
    return done.stdout.strip() or "missing"


def versions(python: Sequence[str], distributions: Sequence[str]) -> dict[str, str]:
    """The version of each distribution in the interpreter `python`, or `missing`.

    Raises:
        NoBackend: it does not answer.
    """
    try:
        done = subprocess.run(
            [*python, "-c", _ASK_ALL, *distributions], capture_output=True, text=True, timeout=_SECONDS, check=True
        )
        found: dict[str, str] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise NoBackend(
            f"the interpreter `{shlex.join(python)}` does not answer: {type(error).__name__}",
            hint="name another, or make the environment again",
        ) from error
    return found
