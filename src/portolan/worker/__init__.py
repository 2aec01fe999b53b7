"""Workers: the processes that runtimes live in, and how the controller talks to them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from portolan.worker.memory import default_memory_limit
    from portolan.worker.session import Reply, Worker, patience

__all__ = ["Reply", "Worker", "default_memory_limit", "patience"]


def __getattr__(name: str) -> Any:
    """A server's front uses this package's transports, and is spared the NumPy of its frames."""
    if name in __all__:
        return getattr(importlib.import_module("portolan.worker.session"), name)
    raise AttributeError(f"module `portolan.worker` has no attribute `{name}`")
