"""Threads for calls from Python that wait in C: a call of a tenth of a millisecond is shared in microseconds."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from portolan.core import native
from portolan.core.running import CompilerError
from portolan.errors import NoBackend
from portolan.kernels.compiler import find


def sharing(count: int) -> native.Sharing:
    """Threads that share kernels' tasks, the caller among them; without a C compiler they wait in Python."""
    if count == 1:
        return native.Pool(1)
    try:
        return Threads(count)
    except (NoBackend, CompilerError, OSError):
        return native.Pool(count)


class Threads:
    """As `native.Pool`, in C: helpers look for the next call for a moment before they sleep, and need no interpreter.

    Raises:
        NoBackend: there is no C compiler.
        CompilerError: it could not compile them.
        OSError: there is no memory for them.
    """

    def __init__(self, count: int) -> None:
        self.threads = count
        library = _library()
        self._share: Callable[..., None] = library.portolan_share
        place = library.portolan_pool_new(count - 1)
        if not place:
            raise OSError("no memory for threads")
        self._pool = ctypes.c_void_p(place)
        self._closing = weakref.finalize(self, library.portolan_pool_free, self._pool)

    def share(self, bound: native.Bound, places: Any) -> None:
        """Runs a kernel's tasks in every thread; alone where they have another caller's work, or in a fork."""
        space = bound.library.workspace(bound.space)
        run = bound.library.entry
        self._share(self._pool, run, places, bound.numbers, space, bound.space, bound.tasks, bound.grab(self.threads))

    def close(self) -> None:
        """Ends the threads."""
        self._closing()


@cache
def _library() -> ctypes.CDLL:
    source = (Path(__file__).parent / "sharing.c").read_text(encoding="utf-8")
    loaded = ctypes.CDLL(str(find().build(source, ("-pthread",))))
    loaded.portolan_pool_new.restype = ctypes.c_void_p
    loaded.portolan_pool_new.argtypes = [ctypes.c_int]
    loaded.portolan_pool_free.restype = None
    loaded.portolan_pool_free.argtypes = [ctypes.c_void_p]
    loaded.portolan_share.restype = None
    loaded.portolan_share.argtypes = [*[ctypes.c_void_p] * 5, *[ctypes.c_int64] * 3]
    return loaded
