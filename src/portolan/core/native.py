"""Compiled kernels in this process: one C signature, called on NumPy arrays, its tasks shared among threads.

void ENTRY(void *const *arrays, const int64_t *sizes, void *workspace, int64_t first, int64_t last);
int64_t ENTRY_tasks(const int64_t *sizes);   (-1 for sizes that it cannot take)
int64_t ENTRY_workspace(const int64_t *sizes);
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

#: Tasks of one grab: small, so that threads end together.
_GRABS_PER_THREAD = 8
#: Sets of sizes that a library remembers.
_MOST_BOUND = 256
_LINE = 64


def address(array: Array) -> int:
    """Where an array begins.

    It is read behind the head of the object, where NumPy's headers let compiled extensions read it: asking the array's
    interface takes several times as long, for each argument of every call.
    """
    return ctypes.c_void_p.from_address(id(array) + object.__basicsize__).value or 0


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

    Attributes:
        entry: where the function is.
    """

    def __init__(self, path: Path, entry: str, symbols: Sequence[str]) -> None:
        self.path, self.symbols = path, tuple(symbols)
        loaded = ctypes.CDLL(str(path))
        self._entry = _Entry(loaded[entry], loaded[f"{entry}_tasks"], loaded[f"{entry}_workspace"])
        self._entry.run.restype = None
        self._entry.run.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int64, ctypes.c_int64]
        self._entry.tasks.restype = self._entry.workspace.restype = ctypes.c_int64
        self.entry = ctypes.cast(self._entry.run, ctypes.c_void_p).value or 0
        self._bound: dict[tuple[int, ...], Bound] = {}
        self._local = threading.local()

    def __call__(self, arrays: Sequence[Array], sizes: Mapping[str, int], pool: Sharing | None = None) -> None:
        """Runs the kernel.

        Args:
            arrays: arguments and results, contiguous and of the kernel's types; results are written.
            sizes: of every symbol.
            pool: the threads to share the tasks among; None for this one.
        """
        self.bound(sizes)(arrays, pool)

    def bound(self, sizes: Mapping[str, int]) -> Bound:
        """The kernel for sizes of every symbol; what depends on them is worked out once.

        Raises:
            ValueError: the kernel cannot take such sizes.
        """
        key = tuple(sizes[s] for s in self.symbols)
        found = self._bound.get(key)
        if found is None:
            if len(self._bound) >= _MOST_BOUND:
                self._bound.clear()
            numbers = (ctypes.c_int64 * max(1, len(key)))(*key)
            tasks, space = self._entry.tasks(numbers), self._entry.workspace(numbers)
            if tasks < 0:
                raise ValueError(f"sizes that the kernel cannot take: {dict(sizes)}")
            found = self._bound[key] = Bound(self, numbers, tasks, space)
        return found

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Where the function, its number of tasks and its workspace are, for callers that are not Python."""
        entry = self._entry
        run, tasks, space = (
            ctypes.cast(f, ctypes.c_void_p).value or 0 for f in (entry.run, entry.tasks, entry.workspace)
        )
        return run, tasks, space

    def part(self, places: Any, numbers: Any, space: int, first: int, last: int) -> None:
        """Runs some of the tasks, in this thread."""
        self._entry.run(places, numbers, self.workspace(space), first, last)

    def workspace(self, space: int) -> int:
        """The place of memory of this thread's own, aligned to 64 bytes, kept for the next call."""
        held = getattr(self._local, "space", None)
        if held is None or held[0].nbytes < space + _LINE:
            import numpy as np

            whole = np.empty(space + _LINE, np.uint8)
            held = self._local.space = (whole, -(-whole.ctypes.data // _LINE) * _LINE)
        return int(held[1])


@dataclass(frozen=True)
class Bound:
    """A kernel for some sizes.

    Attributes:
        library: the kernel.
        numbers: the sizes as the function takes them.
        tasks: how many there are.
        space: bytes of workspace for each thread.
    """

    library: Library
    numbers: Any
    tasks: int
    space: int

    def __call__(self, arrays: Sequence[Array], pool: Sharing | None = None) -> None:
        """Runs it on arrays of these sizes; see `Library`."""
        places = (ctypes.c_void_p * len(arrays))(*[address(a) for a in arrays])
        if pool is None or pool.threads == 1 or self.tasks == 1:
            self.library.part(places, self.numbers, self.space, 0, self.tasks)
        else:
            pool.share(self, places)

    def grab(self, threads: int) -> int:
        """Tasks that one of so many threads takes at a time."""
        return max(1, self.tasks // (threads * _GRABS_PER_THREAD))


class Sharing(Protocol):
    """Threads that share a kernel's tasks; the caller is one of them."""

    @property
    def threads(self) -> int:
        """How many there are, the caller included."""

    def share(self, bound: Bound, places: Any) -> None:
        """Runs all tasks of a kernel on arrays at `places`."""

    def close(self) -> None:
        """Ends the threads."""


class Pool:
    """A few threads that share a kernel's tasks; the caller is one of them.

    Each helper sleeps on a lock of its own: waking one that way takes a fraction of what a queue and a future take, and
    one that has not woken up when the work is over is not waited for.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._helpers = [_Helper() for _ in range(threads - 1)]
        self._free = threading.Lock()
        self._closing = weakref.finalize(self, _closed, self._helpers)

    def share(self, bound: Bound, places: Any) -> None:
        """Runs all tasks of a kernel on arrays at `places`."""
        step, tasks, part = bound.grab(self.threads), bound.tasks, bound.library.part
        starts = itertools.count(0, step)

        def work() -> None:
            # `next` on a count is one step of the interpreter: no two threads get the same tasks.
            while (first := next(starts)) < tasks:
                part(places, bound.numbers, bound.space, first, min(first + step, tasks))

        self.run(work)

    def run(self, work: Callable[[], None]) -> None:
        """Runs `work` in every thread, and waits for all; alone where the helpers have another caller's work."""
        if not self._free.acquire(blocking=False):
            work()
            return
        try:
            for helper in self._helpers:
                helper.begin(work)
            try:
                work()
            finally:
                errors = [error for helper in self._helpers if (error := helper.end()) is not None]
        finally:
            self._free.release()
        if errors:
            raise errors[0]

    def close(self) -> None:
        """Ends the threads."""
        self._closing()


class _Helper:
    """One thread that waits for work."""

    def __init__(self) -> None:
        self._work: Callable[[], None] | None = None
        self._error: BaseException | None = None
        self._go, self._done = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._done.acquire()
        threading.Thread(target=self._loop, name="portolan-kernel", daemon=True).start()

    def begin(self, work: Callable[[], None] | None) -> None:
        """Wakes it up for some work; None ends it."""
        self._work = work
        self._go.release()

    def end(self) -> BaseException | None:
        """Waits until it has done its part, or sees to it that it never begins; what it raised."""
        if not self._go.acquire(blocking=False):
            self._done.acquire()
        error, self._error, self._work = self._error, None, None
        return error

    def _loop(self) -> None:
        while True:
            self._go.acquire()
            if self._work is None:
                return
            try:
                self._work()
            except BaseException as error:
                self._error = error
            self._done.release()


def _closed(helpers: Sequence[_Helper]) -> None:
    for helper in helpers:
        helper.begin(None)


def registered(options: Any, libraries: Sequence[tuple[str, Path]]) -> None:
    """Registers custom-op libraries with ONNX Runtime's session options, each with the domain of its operator.

    A session takes a domain once: of several libraries for one, the first is told of the others.

    Raises:
        OSError: one cannot be loaded.
    """
    groups: dict[str, list[Path]] = {}
    for domain, path in libraries:
        groups.setdefault(domain, []).append(path)
    for first, *others in groups.values():
        if others:
            join = ctypes.CDLL(str(first)).portolan_join
            join.argtypes, join.restype = [ctypes.c_void_p], ctypes.c_int
            for path in others:
                if not join(ctypes.cast(ctypes.CDLL(str(path)).portolan_operator, ctypes.c_void_p)):
                    raise OSError(f"{path}: one more operator than a domain takes")
        options.register_custom_ops_library(str(first))
