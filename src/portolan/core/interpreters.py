"""Which interpreter a backend or a pass's library lives in: this one, or the one that PORTOLAN_PYTHON_<NAME> names."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import subprocess

from portolan.errors import UsageError

_SECONDS = 60.0
_ASK = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"


def variable(name: str) -> str:
    """The environment variable that names the interpreter of `name`."""
    return f"PORTOLAN_PYTHON_{name.upper().replace('-', '_')}"


def python_for(name: str) -> list[str] | None:
    """The argv of the interpreter that `name` lives in; None for this one.

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


def missing(module: str) -> bool:
    """Whether `module` is neither here nor said to be elsewhere."""
    return python_for(module) is None and importlib.util.find_spec(module) is None


def version(module: str) -> str:
    """The version of the distribution `module` in the interpreter it lives in; why not, where it does not answer."""
    python = python_for(module)
    if python is None:
        try:
            return importlib.metadata.version(module)
        except importlib.metadata.PackageNotFoundError:
            return "missing"
    try:
        done = subprocess.run([*python, "-c", _ASK, module], capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no answer: {type(error).__name__}"
    return done.stdout.strip() or "missing"
