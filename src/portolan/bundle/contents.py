"""The files of a bundle, whether it is a folder or a zip: names, sizes and contents. No link is followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from portolan.bundle.archive import CHUNK, Archive
from portolan.bundle.names import broken, check_names, show
from portolan.errors import UsageError

_MOST_FILES, _DEEPEST = 20_000, 8


class Contents(Protocol):
    """What both forms offer."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Every file with its size."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """The contents of one file, in pieces."""

    def close(self) -> None:
        """Frees what is held open."""


def open_contents(path: Path) -> Contents:
    """The files at `path`, names and kinds checked, contents not yet.

    Raises:
        UsageError: there is no such file or folder, or it may not be read.
        VerificationFailed: links, devices, names that are not allowed, a damaged zip.
    """
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            return Folder(path.resolve())
        if stat.S_ISREG(kind):
            return Zip(path)
    except FileNotFoundError as error:
        raise UsageError(f"there is no bundle at `{path}`", hint="`portolan pack` makes one") from error
    except OSError as error:
        raise UsageError(f"the bundle `{path}` cannot be read: {error.strerror}", hint="check the path") from error
    raise UsageError(f"`{path}` is neither a folder nor a file", hint="give a bundle that `portolan pack` made")


class Zip:
    """A `.portolan` file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        try:
            if self._file.read(4) != b"PK\3\4":
                raise UsageError(
                    f"`{path}` is not a bundle: neither a folder nor a zip file",
                    hint="give a bundle that `portolan pack` made",
                )
            self._archive = Archive(self._file, path.name)
            self.sizes = self._archive.sizes
            check_names(self.sizes, path.name)
        except BaseException:
            self._file.close()
            raise

    def chunks(self, name: str) -> Iterator[bytes]:
        """The contents of one file, in pieces."""
        return self._archive.chunks(name)

    def close(self) -> None:
        """Closes the file."""
        self._archive.close()
        self._file.close()


class Folder:
    """A folder. Nothing in it is followed: a link of any kind is refused, since it reaches outside."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.sizes: dict[str, int] = {}
        self._scan(path, "", 1)
        check_names(self.sizes, path.name)

    def _scan(self, folder: Path, prefix: str, depth: int) -> None:
        found = False
        with os.scandir(folder) as entries:
            for entry in entries:
                found = True
                name = prefix + entry.name
                state = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(state.st_mode):
                    if depth >= _DEEPEST:
                        raise broken(f"the name `{show(name)}` is too long", self._path.name)
                    self._scan(Path(entry.path), f"{name}/", depth + 1)
                else:
                    self._check(name, state)
                    self.sizes[name] = state.st_size
                if len(self.sizes) > _MOST_FILES:
                    raise broken(f"`{self._path.name}` has more files than a bundle may have")
        if not found and prefix:
            raise broken(f"`{show(prefix)}` is an empty folder, which has no place in a bundle", self._path.name)

    def _check(self, name: str, state: os.stat_result) -> None:
        label = f"`{show(name)}` in `{self._path.name}`"
        if stat.S_ISLNK(state.st_mode):
            raise broken(f"{label} is a symbolic link")
        if not stat.S_ISREG(state.st_mode):
            raise broken(f"{label} is a device or another special file")
        if state.st_nlink != 1:
            error = broken(f"{label} is a hard link: another name outside can change it")
            error.hint = "copy the folder with `cp -r`, or use the `.portolan` file"
            raise error

    def chunks(self, name: str) -> Iterator[bytes]:
        """The contents of one file, in pieces; the kind is checked again on the opened file."""
        try:
            handle = os.open(self._path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise broken(f"`{name}` in `{self._path.name}` cannot be read: {error.strerror}") from error
        with os.fdopen(handle, "rb") as file:
            state = os.fstat(handle)
            self._check(name, state)
            if state.st_size != self.sizes[name]:
                raise broken(f"`{name}` in `{self._path.name}` changed while it was read")
            left = state.st_size
            while piece := file.read(min(CHUNK, left)):
                left -= len(piece)
                yield piece
            if left:
                raise broken(f"`{name}` in `{self._path.name}` changed while it was read")

    def close(self) -> None:
        """Nothing is held open."""
