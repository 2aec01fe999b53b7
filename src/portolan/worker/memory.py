"""The memory that a worker may take, and how running out of it shows."""

from __future__ import annotations

import contextlib
import os
import resource

#: What runtimes say when they get no memory: each has words of its own.
_WORDS = (
    "bad_alloc", "memoryerror", "cannot allocate memory", "can't allocate memory", "out of memory", "not enough memory",
    "failed to allocate", "error_out_of_memory", "resource_exhausted", "resource exhausted", "status_alloc_failed",
    "cudaerrormemoryallocation",
)  # fmt: skip


def limit_memory(limit: int) -> None:
    """Bounds this process's private writable memory to `limit` bytes, and lets it leave no core dump.

    That is what a leak takes; a bound on address space (RLIMIT_AS) would also count what runtimes only reserve. CUDA
    reserves a range as large as all memory of the machine and its GPUs together before it does anything, unwritable
    until it is used, and maps devices as shared: neither counts here. A GPU's own memory nobody bounds but the GPU.
    """
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def ran_out(text: str) -> bool:
    """Whether a message or the end of a log says that memory ran out."""
    said = text.lower()
    return any(word in said for word in _WORDS)


def default_memory_limit() -> int:
    """Bytes a worker may allocate: PORTOLAN_WORKER_MEMORY (bytes), or three quarters of the machine's memory."""
    asked = os.environ.get("PORTOLAN_WORKER_MEMORY")
    if asked and asked.isdigit() and int(asked) > 0:
        return int(asked)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4
