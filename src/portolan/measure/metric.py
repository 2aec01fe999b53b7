"""A user's own metric: `file.py:function`, taking `(outputs, labels)` and returning a number, higher is better."""

from __future__ import annotations

import difflib
import inspect
import math
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from portolan.errors import UsageError

Outputs = Mapping[str, np.ndarray[Any, Any]]
Function = Callable[[Outputs, np.ndarray[Any, Any]], float]


@dataclass(frozen=True)
class UserMetric:
    """A metric of the user, with what it returns checked.

    Attributes:
        name: `file.py:function`, for messages.
        function: takes the outputs (name to array, first axis the samples) and the labels.
    """

    name: str
    function: Callable[..., Any]

    def __call__(self, outputs: Outputs, labels: np.ndarray[Any, Any]) -> float:
        """The metric's value.

        Raises:
            UsageError: the function raised, or did not return one finite number.
        """
        try:
            value = self.function(outputs, labels)
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"the metric `{self.name}` raised {type(error).__name__}: {error}",
                hint="it is called with the outputs (a dict of arrays, first axis the samples) and the labels",
            ) from error
        return _number(self.name, value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, np.ndarray | np.generic) and value.size == 1 and value.dtype.kind in "fiu":
        value = value.reshape(-1)[0].item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(
            f"the metric `{name}` returned {_describe(value)}, expected one number",
            hint="return a float, higher is better",
        )
    if not math.isfinite(value):
        raise UsageError(f"the metric `{name}` returned {value}", hint="return a finite number, higher is better")
    return float(value)


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {'x'.join(map(str, value.shape))} and type {value.dtype}"
    return "None" if value is None else f"a {type(value).__name__}"


def load_metric(spec: str) -> UserMetric:
    """Loads `file.py:function`.

    Raises:
        UsageError: the text has another form; the file is missing or cannot be run; it has no such function.
    """
    file, colon, name = spec.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise UsageError(f"`{spec}` does not name a metric", hint="write it as `file.py:function`")
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"the metric's file `{file}` does not exist", hint=_nearest_file(path))
    module = _run(path)
    function = vars(module).get(name)
    if not callable(function):
        raise UsageError(f"`{file}` has no function `{name}`", hint=_nearest_function(module, name))
    return UserMetric(spec, function)


def _run(path: Path) -> types.ModuleType:
    name = f"portolan_metric_{path.stem}"
    module = types.ModuleType(name)
    module.__file__ = str(path.resolve())
    before = sys.modules.get(name)
    # Dataclasses look their module up by name while the file runs.
    sys.modules[name] = module
    try:
        exec(compile(path.read_bytes(), module.__file__, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        line = getattr(error, "lineno", None) or _line(error, path)
        where = f"{path}:{line}" if line else str(path)
        raise UsageError(f"`{path}` raised {type(error).__name__}: {error}", where=where) from error
    return module


def _line(error: BaseException, path: Path) -> int | None:
    """The last line of the user's file in the traceback."""
    trace, line, wanted = error.__traceback__, None, str(path.resolve())
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == wanted:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _nearest_file(path: Path) -> str:
    names = sorted(sibling.name for sibling in path.parent.glob("*.py"))
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"did you mean `{path.parent / near[0]}`?" if near else "check the path"


def _nearest_function(module: types.ModuleType, name: str) -> str:
    known = sorted(
        key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__
    )
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"it has: {', '.join(f'`{k}`' for k in known) or 'no function'}"
