"""Compiled kernels in this process: one C signature, called on NumPy arrays, its tasks shared among threads.

void ENTRY(void *const *arrays, const int64_t *sizes, void *workspace, int64_t first, int64_t last);
int64_t ENTRY_tasks(const int64_t *sizes);
int64_t ENTRY_workspace(const int64_t *sizes);
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

#: Tasks of one grab: small, so that threads end together.
_GRABS_PER_THREAD = 8


@dataclass(frozen=True)
class _Entry:
    run: Any
    tasks: Any
    workspace: Any


class Library:
    """A loaded shared library.

    Args:
        path: the library.
        entry: the name of its function.
        symbols: the symbols whose sizes the function takes, in order.
    """

    def __init__(self, path: Path, entry: str, symbols: Sequence[str]) -> None:
        self.path, self.symbols = path, tuple(symbols)
        loaded = ctypes.CDLL(str(path))
        self._entry = _Entry(loaded[entry], loaded[f"{entry}_tasks"], loaded[f"{entry}_workspace"])
        self._entry.run.restype = None
        self._entry.tasks.restype = self._entry.workspace.restype = ctypes.c_int64
        self._local = threading.local()

    def __call__(self, arrays: Sequence[Array], sizes: Mapping[str, int], pool: Pool | None = None) -> None:
        """Runs the kernel.

        Args:
            arrays: arguments and results, contiguous and of the kernel's types; results are written.
            sizes: of every symbol.
            pool: the threads to share the tasks among; None for this one.
        """
        numbers = (ctypes.c_int64 * max(1, len(self.symbols)))(*(sizes[s] for s in self.symbols))
        places = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        tasks, space = self._entry.tasks(numbers), self._entry.workspace(numbers)
        if pool is None or pool.threads == 1 or tasks == 1:
            self._part(places, numbers, space, 0, tasks)
            return
        step = max(1, tasks // (pool.threads * _GRABS_PER_THREAD))
        starts = itertools.count(0, step)

        def work() -> None:
            # `next` on a count is one step of the interpreter: no two threads get the same tasks.
            while (first := next(starts)) < tasks:
                self._part(places, numbers, space, first, min(first + step, tasks))

        pool.run(work)

    def _part(self, places: Any, numbers: Any, space: int, first: int, last: int) -> None:
        self._entry.run(places, numbers, self._workspace(space), ctypes.c_int64(first), ctypes.c_int64(last))

    def _workspace(self, space: int) -> ctypes.c_void_p:
        """Memory of this thread's own, aligned to 64 bytes, kept for the next call."""
        held = getattr(self._local, "space", None)
        if held is None or held.nbytes < space + 64:
            import numpy as np

            held = self._local.space = np.empty(space + 64, np.uint8)
        return ctypes.c_void_p((held.ctypes.data + 63) // 64 * 64)


class Pool:
    """A few threads that share a kernel's tasks; the caller is one of them."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._others = ThreadPoolExecutor(threads - 1, "portolan-kernel") if threads > 1 else None

    def run(self, work: Any) -> None:
        """Runs `work` in every thread, and waits for all."""
        others = [self._others.submit(work) for _ in range(self.threads - 1)] if self._others else []
        work()
        for other in others:
            other.result()

    def close(self) -> None:
        """Ends the threads."""
        if self._others is not None:
            self._others.shutdown()
