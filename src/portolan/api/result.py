"""What verbs return, and what they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Shapes = Mapping[str, tuple[int | str, ...]]
Progress = Callable[[str], None]


def silent(_: str) -> None:
    """Progress for callers that asked for none."""


@dataclass(frozen=True)
class Result:
    """What a verb found: the object of the contract, with its keys as attributes."""

    verb: str
    data: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The object of the contract."""
        return dict(self.data)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self.data:
            raise AttributeError(f"the result of `{self.verb}` has no `{name}`; it has {', '.join(self.data)}")
        return self.data[name]

    def __repr__(self) -> str:
        keys = ", ".join(f"{k}={v!r}" for k, v in self.data.items() if isinstance(v, (str, int, float, bool)))
        return f"{self.verb}({keys})"

    def _repr_html_(self) -> str:
        from portolan.core.plain import html_table

        return html_table(self.verb, self.data)
