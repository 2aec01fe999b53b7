"""What was counted, kept where it outlives the front: in memory that the supervisor owns.

Two places are written in turn, each with a number and a checksum: a front that dies while it writes leaves the other.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from typing import Any

_HEAD = struct.Struct("<QII")
#: Bytes of one of the two places; what does not fit is not kept.
_SIZE = 2**20


def memory() -> int:
    """A descriptor of new memory for it."""
    fd = os.memfd_create("portolan-counts", os.MFD_CLOEXEC)
    os.ftruncate(fd, 2 * _SIZE)
    return fd


class Kept:
    """Counts of the versions that serve, by the model's name.

    Args:
        fd: what `memory` gave, perhaps to another process.

    Attributes:
        last: what was written last, by whoever wrote it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        found = [self._read(place) for place in (0, 1)]
        self._number, self.last = max(found, key=lambda entry: entry[0])

    def write(self, data: Mapping[str, Any]) -> None:
        """Keeps `data`, if it fits."""
        raw = json.dumps(data, separators=(",", ":")).encode()
        if len(raw) > _SIZE - _HEAD.size:
            return
        self._number += 1
        head = _HEAD.pack(self._number, len(raw), zlib.crc32(raw))
        os.pwrite(self._fd, head + raw, (self._number % 2) * _SIZE)

    def _read(self, place: int) -> tuple[int, dict[str, Any]]:
        number, size, check = _HEAD.unpack(os.pread(self._fd, _HEAD.size, place * _SIZE))
        raw = os.pread(self._fd, min(size, _SIZE), place * _SIZE + _HEAD.size)
        if not number or len(raw) != size or zlib.crc32(raw) != check:
            return 0, {}
        found: dict[str, Any] = json.loads(raw)
        return number, found
