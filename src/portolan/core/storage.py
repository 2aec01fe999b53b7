"""Storage: files whose bytes repeat, such as weights with many zeros, kept packed on disk and given back exactly.

LZMA packs 90 % zeros with 8-bit values into fewer bits than a bitmask with values does (docs/guides/compress-a-model.md
has the figures), and comes with Python. A packed folder holds `NAME.xz` for each file and `storage.json` with the
sizes; what unpacks to anything else is refused, so that a few bytes cannot fill a disk.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable
from pathlib import Path

from portolan.errors import ModelError

_TABLE, _SUFFIX = "storage.json", ".xz"
_CHUNK = 1 << 20
#: Times its packed size that a file may have: 99 % zeros stay far below, and only an attack is above.
_MOST = 4096
_PRESET = 6


def pack(files: Iterable[Path], folder: Path) -> None:
    """Puts packed copies of `files`, which have different names, and the table of their sizes into `folder`."""
    sizes = {}
    for file in files:
        sizes[file.name] = file.stat().st_size
        with file.open("rb") as source, lzma.open(folder / f"{file.name}{_SUFFIX}", "wb", preset=_PRESET) as target:
            while part := source.read(_CHUNK):
                target.write(part)
    (folder / _TABLE).write_text(json.dumps(sizes, sort_keys=True))


def packed(folder: Path) -> bool:
    """Whether `folder` holds what `pack` wrote."""
    return (folder / _TABLE).is_file()


def unpack(folder: Path, out: Path) -> None:
    """Writes the files that `pack` was given into the folder `out`.

    Raises:
        ModelError: the folder does not hold what its table says.
    """
    for name, size in _sizes(folder).items():
        source = folder / f"{name}{_SUFFIX}"
        if not source.is_file() or size > _MOST * source.stat().st_size:
            raise _broken(folder, f"`{name}` is not there, or cannot be as large as it says")
        try:
            with lzma.open(source, "rb") as stream, (out / name).open("wb") as target:
                left = size
                while part := stream.read(min(_CHUNK, left + 1)):
                    left -= len(part)
                    if left < 0:
                        break
                    target.write(part)
        except (lzma.LZMAError, EOFError) as error:
            raise _broken(folder, f"`{name}`: {error}") from error
        if left:
            raise _broken(folder, f"`{name}` has another size than it says")


def resident(folder: Path) -> int:
    """Bytes of everything in `folder` once it is unpacked."""
    sizes = _sizes(folder) if packed(folder) else {}
    mine = {_TABLE, *(f"{name}{_SUFFIX}" for name in sizes)} if sizes else set()
    rest = (p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name not in mine)
    return sum(sizes.values()) + sum(rest)


def _sizes(folder: Path) -> dict[str, int]:
    try:
        table = json.loads((folder / _TABLE).read_text())
    except (OSError, ValueError) as error:
        raise _broken(folder, str(error)) from error
    good = isinstance(table, dict) and all(
        type(size) is int and size >= 0 and name == Path(name).name and name not in ("", ".", "..")
        for name, size in table.items()
    )
    if not good:
        raise _broken(folder, f"`{_TABLE}` is not a table of names and sizes")
    return dict(table)


def _broken(folder: Path, why: str) -> ModelError:
    return ModelError(
        f"the packed files cannot be read: {why}", hint="build it again, or fetch it again", where=str(folder)
    )
