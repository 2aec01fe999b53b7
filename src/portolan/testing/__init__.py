"""Contract suites: subclass one in a plug-in's tests to check it against the same rules as the built-ins.

`from portolan.testing import BackendContract` imports pytest and numpy; importing this package alone does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from portolan.testing.backend import BackendContract
    from portolan.testing.frontend import FrontendContract
    from portolan.testing.languages import LanguageContract
    from portolan.testing.passes import PassContract

_PLACES = {
    "BackendContract": "backend",
    "FrontendContract": "frontend",
    "LanguageContract": "languages",
    "PassContract": "passes",
}
__all__ = ["BackendContract", "FrontendContract", "LanguageContract", "PassContract"]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"portolan.testing.{_PLACES[name]}"), name)
    raise AttributeError(f"module `portolan.testing` has no attribute `{name}`")


def __dir__() -> list[str]:
    return __all__
