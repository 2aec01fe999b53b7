"""Temporary folders that outlive no process: what one that was killed has left, the next one removes."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

from portolan.core.locks import lock

_SHARED = "PORTOLAN_TMPDIR"


class Scratch:
    """A private folder, removed when it is closed, and after a kill by the next process that makes one beside it.

    Its owner holds a lock on it. A process id in its name would mean somebody else after a restart, or in a container.
    A process that is to outlive its owner is given `descriptors` and holds it too.

    Args:
        prefix: how its name begins; whatever else in `parent` begins so is taken for left over unless it is locked.
        parent: where it is made; by default the temporary folder.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, prefix: str, parent: Path | None = None) -> None:
        place = parent or Path(tempfile.gettempdir())
        _swept_once(place, prefix)
        self.path, handle = _made(place, prefix)
        #: What holds it: none where there are no locks.
        self.descriptors = () if handle is None else (handle,)
        #: Removes the folder, if it is still there under its name.
        self.close = weakref.finalize(self, _removed, self.path, handle, os.getpid())

    @property
    def environment(self) -> dict[str, str]:
        """For a process that may be killed: the environment in which its temporary files are made here."""
        return {"TMPDIR": str(self.path), _SHARED: str(shared())}

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shared() -> Path:
    """The temporary folder in which the processes of a user find each other: workers have one of their own."""
    return Path(os.environ.get(_SHARED) or tempfile.gettempdir())


def sweep(parent: Path, prefix: str) -> None:
    """Removes the folders of this user in `parent` whose names begin so and that no process holds."""
    found: list[Path] = []
    with suppress(OSError):  # a folder that may be written, but not listed
        found = [path for path in parent.iterdir() if path.name.startswith(prefix)]
    for left in found:
        with suppress(OSError):  # somebody else's, no folder, or on a file system without locks
            handle = os.open(left, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0))
            try:
                if os.fstat(handle).st_uid == os.getuid() and lock(handle):
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)


_swept_once = functools.cache(sweep)


def _made(parent: Path, prefix: str) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        handle = None
        try:
            handle = os.open(folder, os.O_RDONLY)
            if lock(handle) and folder.exists():
                return folder, handle
        except FileNotFoundError:
            pass
        except OSError:  # there are no locks here, so nobody will take it for left over either
            return folder, handle
        if handle is not None:  # swept between being made and being locked
            os.close(handle)


def _removed(folder: Path, handle: int | None, owner: int) -> None:
    if os.getpid() != owner:  # a fork of it
        return
    shutil.rmtree(folder, ignore_errors=True)
    if handle is not None:
        os.close(handle)
