"""Where a front end's packages are: in this interpreter, in an environment of their own, or nowhere."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from portolan.core.frontend import FrontEnd
from portolan.core.interpreters import environment, python_for
from portolan.errors import NoBackend


def absent(front_end: FrontEnd) -> list[str]:
    """Those of its modules that this interpreter lacks; nothing is imported."""
    return [module for module in front_end.modules if not found(module)]


def found(module: str) -> bool:
    """Whether this interpreter has `module`, without importing it."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def interpreter(front_end: FrontEnd) -> list[str] | None:
    """The argv of the interpreter that has its packages; None for this one, also where no other is known.

    Raises:
        UsageError: PORTOLAN_PYTHON_<NAME> is no command line.
    """
    return python_for(front_end.name) if absent(front_end) else None


def need(front_end: FrontEnd, source: object) -> None:
    """Makes sure that its packages are here.

    Raises:
        NoBackend: says which are not, and the command that installs them; or what is wrong with the environment that
            has them.
    """
    missing = absent(front_end)
    if missing:
        what = source if isinstance(source, (str, Path)) else type(source).__name__
        made = environment(front_end.name)
        if made is not None and made.reason is not None:
            raise NoBackend(f"reading `{what}` needs {' and '.join(missing)}, and {made.reason}", hint=made.fix)
        verb = "is" if len(missing) == 1 else "are"
        raise NoBackend(
            f"reading `{what}` needs {' and '.join(missing)}, which {verb} not installed", hint=front_end.fix
        )
