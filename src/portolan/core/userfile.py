"""`file.py:function`: code that the user names on the command line, for data, metrics and model factories."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from portolan.errors import PortolanError, UnknownName, UsageError

_PATTERN = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)$")


def is_reference(source: object) -> bool:
    """Whether `source` has the form `file.py:function`."""
    return isinstance(source, (str, Path)) and _PATTERN.match(str(source)) is not None


def split(source: str | Path) -> tuple[Path, str]:
    """The file and the function that `file.py:function` names.

    Raises:
        UsageError: another form.
    """
    match = _PATTERN.match(str(source))
    if match is None:
        raise UsageError(f"`{source}` does not name a function", hint="write `file.py:function`")
    return Path(match["file"]), match["name"]


def function(source: str | Path) -> Callable[..., Any]:
    """Imports the file and returns the function. This runs the user's own code: only on a name the user gave.

    Raises:
        UsageError: no such file, or it fails when imported.
        UnknownName: it has no such function.
    """
    path, name = split(source)
    if not path.is_file():
        raise UsageError(
            f"there is no file `{path}`", hint="write `file.py:function`, the file relative to this folder"
        )
    path = path.resolve()
    # A name of its own keeps `model.py` here from shadowing, or being shadowed by, an installed `model`.
    module_name = f"_portolan_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"`{path}` cannot be imported", hint="write `file.py:function`")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and typing look modules up there
    with importing_from(path.parent), blamed_on(source):
        spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        own = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module_name]
        raise UnknownName(f"function in {path.name}", name, own)
    result: Callable[..., Any] = found
    return result


@contextlib.contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Lets the user's file import its neighbours, as `python file.py` would."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


@contextlib.contextmanager
def blamed_on(source: str | Path) -> Iterator[None]:
    """Turns an exception of the user's code into a UsageError that names the file's own line."""
    try:
        yield
    except PortolanError:
        raise
    except Exception as error:
        path, _ = split(source)
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == path.name]
        line = lines[-1] if lines else getattr(error, "lineno", None)
        where = f"{path}:{line}" if line else str(path)
        reason = str(error).strip().splitlines()
        raise UsageError(
            f"`{source}` raised {type(error).__name__}{f': {reason[0]}' if reason else ''}",
            hint="run the function on its own to see the whole traceback",
            where=where,
        ) from error
