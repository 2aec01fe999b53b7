"""What ONNX's node tests said of each backend's operators, as it was measured and is kept in the package.

`tools/conformance.py` writes it. It is a rule for the versions it was measured with, and says nothing of others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

FILE = "conformance.json"


@dataclass(frozen=True)
class Counts:
    """Of the cases of one operator that ONNX Runtime itself passes, how many ended in which way."""

    passed: int
    failed: int
    unsupported: int

    @property
    def cases(self) -> int:
        """All of them."""
        return self.passed + self.failed + self.unsupported


@dataclass(frozen=True)
class Measured:
    """One backend's results.

    Attributes:
        versions: of the distributions that decide them.
        options: that differ from the defaults.
        total: over all cases, those of several operators included.
        operators: the counts of each operator that has cases of its own.
        lacking: operators of which every case was refused for want of the operator itself. Cases may be refused for
            much else that a model need not have: their element type, sizes that are inputs, an old operator set.
    """

    versions: Mapping[str, str]
    options: Mapping[str, Any]
    total: Counts
    operators: Mapping[str, Counts]
    lacking: tuple[str, ...] = ()

    def holds(self, versions: Mapping[str, str]) -> bool:
        """Whether it says something of these versions; a build's own mark (`+cpu`) does not matter."""
        return _plain(versions) == _plain(self.versions)

    def lacks(self, operators: Mapping[str, int], versions: Callable[[], Mapping[str, str]]) -> str | None:
        """The first of a model's operators that it lacks; None for other versions than measured. These are asked for
        only if there is one: reading them takes a millisecond, and a search asks a thousand times.
        """
        lacking = next((o for o in operators if o in self.lacking), None)
        return lacking if lacking is not None and self.holds(versions()) else None


def _plain(versions: Mapping[str, str]) -> dict[str, str]:
    return {name: version.partition("+")[0] for name, version in versions.items()}


@cache
def table() -> Mapping[str, Measured]:
    """Results by backend."""
    return parse(json.loads(data()))


def data() -> str:
    """The file that the tool wrote."""
    return (resources.files("portolan.core") / FILE).read_text(encoding="utf-8")


def parse(data: Mapping[str, Any]) -> dict[str, Measured]:
    """Reads what the tool wrote."""
    return {
        name: Measured(
            one["versions"],
            one["options"],
            Counts(*one["total"]),
            {operator: Counts(*counts) for operator, counts in one["operators"].items()},
            tuple(one["lacking"]),
        )
        for name, one in data["backends"].items()
    }


def refusal(backend: str, operators: Mapping[str, int], versions: Callable[[], Mapping[str, str]]) -> str | None:
    """Why `backend`, in the versions that it says, cannot run a model of these operators; None if nothing was found."""
    measured = table().get(backend)
    lacking = None if measured is None else measured.lacks(operators, versions)
    return f"`{backend}` has no operator `{lacking}`" if lacking else None
