"""One timing at a time on a machine: an advisory lock that two optimizers of one user share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from portolan.core.locks import lock
from portolan.core.scratch import shared


def lock_path(folder: Path | None = None) -> Path:
    """The lock file of this user, in `folder` or the temporary directory."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    return (folder or shared()) / f"portolan-{user}.lock"


@contextmanager
def measuring(wait: float = 60.0, path: Path | None = None) -> Iterator[bool]:
    """Holds the machine's measuring lock; yields whether it is held.

    It never fails and never waits for longer than `wait` seconds: without it (a read-only temporary directory, a file
    of someone else, another optimizer that hangs) timing goes on, only less undisturbed. The kernel frees the lock
    when its holder ends, however it ends.

    Args:
        wait: longest wait, seconds.
        path: the lock file; by default one per user in the temporary directory.
    """
    handle = _open(path or lock_path())
    if handle is None:
        yield False
        return
    try:
        yield _acquire(handle, wait)
    finally:
        os.close(handle)


def _open(path: Path) -> int | None:
    with suppress(OSError):
        # No link is followed: the temporary directory is shared with others.
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    return None


def _acquire(handle: int, wait: float) -> bool:
    try:
        return lock(handle, wait=wait)
    except OSError:  # a system, or a file system, without locks
        return False
