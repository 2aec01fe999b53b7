"""The folder of a study: its ledger, and what was built, each in a folder named by the hash of what went into it."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from portolan.core.ledger import Ledger
from portolan.core.scratch import Scratch, sweep
from portolan.errors import DiskFull, PortolanError, UsageError, no_space

_FACTS, _FILES = "facts.json", "files"
_SCRATCH = ".building-"


class Workspace:
    """A study's folder.

    Args:
        folder: made if it is not there.

    Raises:
        UsageError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain(self.folder, error) from error
        self.ledger = Ledger(self.folder / "ledger.sqlite")
        sweep(self.folder, _SCRATCH)

    def build(self, kind: str, key: str, make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
        """The folder of what has this `key`, and its facts; `make` fills it if it is not there yet.

        `make` gets an empty folder and returns facts. The folder appears under its name only when it is whole, so a
        killed process leaves nothing half built behind, and of two processes that build the same one wins.
        """
        final = self.folder / kind / key
        if (final / _FACTS).is_file():
            return final / _FILES, json.loads((final / _FACTS).read_text())
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            held = Scratch(_SCRATCH, self.folder)
        except OSError as error:
            raise explain(self.folder, error) from error
        scratch = held.path
        try:
            (scratch / _FILES).mkdir()
            facts = dict(make(scratch / _FILES))
            (scratch / _FACTS).write_text(json.dumps(facts))
            scratch.chmod(0o755)
            with contextlib.suppress(FileExistsError):
                _rename(scratch, final)
        except OSError as error:
            raise explain(final, error) from error
        finally:
            held.close()
        return final / _FILES, json.loads((final / _FACTS).read_text())

    def close(self) -> None:
        """Closes the ledger."""
        self.ledger.close()


@contextlib.contextmanager
def temporary() -> Iterator[Workspace]:
    """A workspace for one command, removed at its end."""
    with Scratch("portolan-workspace-") as scratch:
        workspace = Workspace(scratch.path)
        try:
            yield workspace
        finally:
            workspace.close()


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise FileExistsError(target) from error


def explain(path: Path, error: OSError) -> PortolanError:
    """What went wrong with `path`, in words."""
    if no_space(error):
        return DiskFull(f"the disk is full: `{path}` could not be written")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return UsageError(f"`{path}` cannot be written", hint="name a folder that can be written: --study DIR")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return UsageError(f"`{path}` is not a folder", hint="name another folder: --study DIR")
    return PortolanError(f"`{path}` could not be written: {error.strerror}")


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Puts a full or read-only disk into words, wherever in `folder` or the temporary folder it was met."""
    try:
        yield
    except OSError as error:
        if not no_space(error) and error.errno != errno.EROFS:
            raise
        raise explain(Path(error.filename or folder), error) from error
