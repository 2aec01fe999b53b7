"""Advisory locks on open files, between processes. The kernel frees a lock when its holder ends, however it ends."""

from __future__ import annotations

import errno
import math
import time

_POLL = 0.005


def lock(handle: int, *, shared: bool = False, wait: float = 0.0) -> bool:
    """Locks an open file until it is closed; whether that could be done within `wait` seconds.

    Args:
        handle: the descriptor of the file.
        shared: beside others that hold it shared, in place of alone.
        wait: longest wait; `math.inf` for any.

    Raises:
        OSError: there are no locks on this system, or on this file system.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError(errno.ENOLCK, "this system has no locks") from error
    kind, end = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, time.monotonic() + wait
    if math.isinf(wait):
        fcntl.flock(handle, kind)
        return True
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL)
        else:
            return True
