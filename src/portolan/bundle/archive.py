"""Zip files, distrusted: one spelling is accepted, in which every reader of zips sees the same files.

The standard library's reader follows the central directory and looks no further, so two directories, overlapping
entries, a prefix, an encrypted flag or a symbolic link in the attributes pass it. Here the entries must tile the file
from its first byte to the directory, local headers must repeat what the directory says, and sizes must hold.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from portolan.bundle.names import broken, show

CHUNK = 2**20
_END, _END64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_LOCAL = struct.Struct("<4s5H3L2H")
_MOST_ENTRIES, _MOST_DIRECTORY = 20_000, 2**23
#: A deflated entry above 1 MiB that grows by more than this is a bomb; weights do not compress like that.
_MOST_RATIO = 200
_DEFLATE_LEVEL, _UTF8 = 0x0006, 0x0800
#: Zip64 sizes, and times and owners as other tools write them. Others rename entries or link them.
_EXTRAS = frozenset({0x0001, 0x5455, 0x7875, 0x000A})
_STAMP = (1980, 1, 1, 0, 0, 0)


class Archive:
    """A zip file whose structure was checked; its files' contents are checked as they are read.

    Args:
        file: opened for reading; the archive does not close it.
        label: what errors call it.

    Raises:
        VerificationFailed: truncated, or anything but the plain form described above.
    """

    def __init__(self, file: BinaryIO, label: str) -> None:
        self._label = label
        self._file = file
        start, count = self._directory()
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
            raise broken(f"`{label}` is not a readable zip file: {show(str(error))}") from error
        infos = self._zip.infolist()
        if len(infos) != count or self._zip.start_dir != start:
            raise broken(f"`{label}` holds two directories, which disagree")
        for info in infos:
            self._check_entry(info)
        self._check_layout(infos, start)
        self._infos = {info.filename: info for info in infos}
        if len(self._infos) != len(infos):
            raise broken(f"`{label}` holds one name twice")

    @property
    def sizes(self) -> Mapping[str, int]:
        """Every name with the size that its header declares."""
        return {name: info.file_size for name, info in self._infos.items()}

    def chunks(self, name: str) -> Iterator[bytes]:
        """The contents of one file, in pieces.

        Raises:
            VerificationFailed: damaged, or of another size than declared.
        """
        left = self._infos[name].file_size
        try:
            with self._zip.open(name) as entry:
                while piece := entry.read(CHUNK):
                    left -= len(piece)
                    yield piece
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise broken(f"`{show(name)}` in `{self._label}` is damaged: {show(str(error))}") from error
        if left != 0:
            raise broken(f"`{show(name)}` in `{self._label}` does not have the size its header declares")

    def close(self) -> None:
        """Lets go of the zip reader; the file stays open."""
        self._zip.close()

    def _at(self, offset: int, form: struct.Struct) -> tuple[Any, ...] | None:
        if offset < 0:
            return None
        self._file.seek(offset)
        raw = self._file.read(form.size)
        return form.unpack(raw) if len(raw) == form.size else None

    def _directory(self) -> tuple[int, int]:
        """Where the central directory starts and how many entries it has, by the end record alone."""
        at = self._file.seek(0, 2) - _END.size
        end = self._at(at, _END)
        if end is None or end[0] != b"PK\5\6":
            raise broken(f"`{self._label}` does not end as a zip file does: truncated, or something is appended")
        _, disk, first, here, count, size, start, comment = end
        if disk or first or here != count or comment:
            raise broken(f"`{self._label}` has a comment or several parts, which a bundle has not")
        if 0xFFFF in (here, count) or 0xFFFFFFFF in (size, start):
            locator = self._at(at - _LOCATOR.size, _LOCATOR)
            at -= _LOCATOR.size + _END64.size
            end64 = self._at(at, _END64)
            if locator is None or end64 is None or locator != (b"PK\6\7", 0, at, 1) or end64[:2] != (b"PK\6\6", 44):
                raise broken(f"`{self._label}` has a damaged zip64 end record")
            count, size, start = end64[7:]
        if count > _MOST_ENTRIES or size > _MOST_DIRECTORY:
            raise broken(f"`{self._label}` declares {count:,} entries, more than a bundle may have")
        if start + size != at:
            raise broken(f"`{self._label}` has bytes that belong to no entry: truncated, or something is hidden in it")
        return start, count

    def _check_entry(self, info: zipfile.ZipInfo) -> None:
        fault = _entry_fault(info)
        if fault:
            raise broken(f"`{show(info.orig_filename)}` in `{self._label}` {fault}")

    def _check_layout(self, infos: list[zipfile.ZipInfo], directory: int) -> None:
        """The entries tile the file: no overlap, no gap, and each local header repeats the directory."""
        expected = 0
        for info in sorted(infos, key=lambda i: i.header_offset):
            name = f"`{show(info.filename)}` in `{self._label}`"
            if info.header_offset != expected:
                what = "overlaps another entry" if info.header_offset < expected else "lies behind hidden bytes"
                raise broken(f"{name} {what}")
            head = self._at(info.header_offset, _LOCAL)
            if head is None or head[0] != b"PK\3\4":
                raise broken(f"{name} has no header of its own")
            _, _, flags, method, _, _, crc, packed, size, name_bytes, extra = head
            raw = self._file.read(name_bytes)
            spelled = info.orig_filename.encode("utf-8" if flags & _UTF8 else "cp437", "replace")
            big = 0xFFFFFFFF in (packed, size)
            if (
                (flags, method, crc, raw) != (info.flag_bits, info.compress_type, info.CRC, spelled)
                or (not big and (packed, size) != (info.compress_size, info.file_size))
                or (big and self._zip64_sizes(extra) != (info.file_size, info.compress_size))
            ):
                raise broken(f"{name} has two headers, which disagree")
            expected = info.header_offset + _LOCAL.size + name_bytes + extra + info.compress_size
        if expected != directory:
            raise broken(f"`{self._label}` has bytes that belong to no entry: truncated, or something is hidden in it")

    def _zip64_sizes(self, length: int) -> tuple[int, ...] | None:
        """The (file size, packed size) in the local header's extra field, which the file stands before."""
        for kind, body in _extras(self._file.read(length)):
            if kind == 0x0001 and len(body) == 16:
                return struct.unpack("<2Q", body)
        return None


def _extras(raw: bytes) -> Iterator[tuple[int, bytes]]:
    while len(raw) >= 4:
        kind, length = struct.unpack_from("<2H", raw)
        yield kind, raw[4 : 4 + length]
        raw = raw[4 + length :]
    if raw:
        yield -1, raw


def _entry_fault(info: zipfile.ZipInfo) -> str | None:
    """What is wrong with one entry of the directory, or None."""
    mode, dos = stat.S_IFMT(info.external_attr >> 16), info.external_attr & 0xFFFF
    # Not `info.is_dir()`: it fails on an empty name.
    if info.filename.endswith("/") or stat.S_ISDIR(mode) or dos & 0x10:
        return "is a folder; a bundle lists files only"
    if stat.S_ISLNK(mode) or dos & 0x400:
        return "is a symbolic link"
    if mode not in (0, stat.S_IFREG) or dos & 0x48:
        return "is a device or another special file"
    if info.orig_filename != info.filename or "\0" in info.orig_filename:
        return "has a name that hides a part of itself"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.flag_bits & ~(_DEFLATE_LEVEL | _UTF8) or info.volume or info.comment:
        return "uses a feature of zip that a bundle does not"
    if any(kind not in _EXTRAS for kind, _ in _extras(info.extra)):
        return "has an extra field that can rename or link it"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is neither stored nor deflated"
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        return "does not have the size its header declares"
    if info.file_size > CHUNK and info.file_size > _MOST_RATIO * info.compress_size:
        return f"grows {info.file_size // max(1, info.compress_size):,}-fold when unpacked: a zip bomb"
    return None


def write_zip(file: BinaryIO, entries: Iterable[tuple[str, int, Iterable[bytes]]]) -> None:
    """Writes a zip whose bytes depend on nothing but its entries: stored, fixed times and modes, in the given order.

    Stored, since weights hardly compress, and since deflate's bytes differ between versions of zlib.

    Args:
        file: opened for writing, seekable.
        entries: name, size in bytes, and the contents in pieces.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as out:
        for name, size, pieces in entries:
            info = zipfile.ZipInfo(name, _STAMP)
            info.create_system, info.external_attr, info.file_size = 3, (stat.S_IFREG | 0o644) << 16, size
            with out.open(info, "w") as entry:
                for piece in pieces:
                    entry.write(piece)
