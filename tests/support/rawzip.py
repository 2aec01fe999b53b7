"""Zip files written byte by byte, so that every field can lie."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

REGULAR = 0o100644 << 16


@dataclass(frozen=True)
class Raw:
    """One entry. `local` overrides fields of its local header alone; `at` points its directory record elsewhere."""

    name: bytes
    data: bytes
    method: int = 0
    flags: int = 0
    attributes: int = REGULAR
    extra: bytes = b""
    comment: bytes = b""
    size: int | None = None
    packed: int | None = None
    crc: int | None = None
    before: bytes = b""
    at: int | None = None
    body: bytes | None = None
    local: dict[str, Any] = field(default_factory=dict)

    def stored(self) -> bytes:
        """The bytes between the headers."""
        if self.body is not None:
            return self.body
        if self.method != 8:
            return self.data
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        return squeeze.compress(self.data) + squeeze.flush()

    def header(self, form: str, magic: bytes, made: tuple[int, ...]) -> bytes:
        """The fields that both headers share."""
        body = self.stored()
        return struct.pack(
            form, magic, *made, 20, self.flags, self.method, 0, 33,
            zlib.crc32(self.data) if self.crc is None else self.crc,
            len(body) if self.packed is None else self.packed,
            len(self.data) if self.size is None else self.size,
            len(self.name), len(self.extra),
        )  # fmt: skip


def raw_zip(
    entries: list[Raw], *, prefix: bytes = b"", gap: bytes = b"", comment: bytes = b"", count: int | None = None,
    tail: bytes = b"",
) -> bytes:  # fmt: skip
    """The zip of `entries`; `gap` goes before the directory, `tail` behind the end."""
    out, records = bytearray(prefix), []
    for entry in entries:
        out += entry.before
        offset = len(out) if entry.at is None else entry.at
        if entry.body is None or entry.body:
            mine = replace(entry, **entry.local)
            out += mine.header("<4s5H3L2H", b"PK\3\4", ()) + mine.name + mine.extra + entry.stored()
        head = entry.header("<4s6H3L2H", b"PK\1\2", (0x0314,))
        rest = struct.pack("<3H2L", len(entry.comment), 0, 0, entry.attributes, offset)
        records.append(head + rest + entry.name + entry.extra + entry.comment)
    out += gap
    start, directory = len(out), b"".join(records)
    n = len(entries) if count is None else count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, n, n, len(directory), start, len(comment))
    return bytes(out) + directory + end + comment + tail
