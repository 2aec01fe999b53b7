"""A user's own metric: `file.py:function`, taking `(outputs, labels)` and returning a number, higher is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from portolan.core import userfile
from portolan.core.files import sha256
from portolan.errors import UsageError

Outputs = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class UserMetric:
    """A metric of the user, with what it returns checked.

    Attributes:
        name: `file.py:function`, for messages.
        function: takes the outputs (name to array, first axis the samples) and the labels.
        sha256: hash of the file, since what another version of it said is not what this one says.
    """

    name: str
    function: Callable[..., Any]
    sha256: str = ""

    def __call__(self, outputs: Outputs, labels: np.ndarray[Any, Any]) -> float:
        """The metric's value.

        Raises:
            UsageError: the function raised, or did not return one finite number.
        """
        # A function may import its neighbours only when it is called.
        with userfile.importing_from(userfile.split(self.name)[0].resolve().parent), userfile.blamed_on(self.name):
            value = self.function(outputs, labels)
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


def load_metric(source: str | Path) -> UserMetric:
    """Loads `file.py:function`.

    Raises:
        UsageError: the text has another form; the file is missing or fails when imported.
        UnknownName: it has no such function.
    """
    found = userfile.function(source)
    path, _ = userfile.split(source)
    return UserMetric(str(source), found, sha256(path))
