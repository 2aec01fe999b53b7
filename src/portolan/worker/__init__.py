"""Workers: the processes that runtimes live in, and how the controller talks to them."""

from __future__ import annotations

from portolan.worker.session import Reply, Worker, default_memory_limit, patience

__all__ = ["Reply", "Worker", "default_memory_limit", "patience"]
