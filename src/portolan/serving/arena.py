"""Memory that the front shares with its replicas, for tensors too large to be copied through a socket.

One anonymous file, inherited by every replica, divided by a buddy allocator that lives in the front alone. The file is
sparse: pages take memory once they are touched, and are given back when much of it lies free.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import Final

#: Tensors from this many bytes on go through shared memory; below, one more copy is cheaper than the bookkeeping.
LARGE: Final = 64 * 1024
_SMALLEST = 16
#: The largest order of which pieces are kept as they are, and how many of each.
_KEPT, _MOST_READY = 22, 16
#: Free bytes that are kept warm; touching a new page costs more than a copy.
_WARM = 128 * 2**20


class Arena:
    """Shared memory of a fixed size.

    Args:
        size: bytes, rounded down to a power of two.
    """

    def __init__(self, size: int) -> None:
        self.size = 1 << (size.bit_length() - 1)
        self.fd = os.memfd_create("portolan-tensors", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        self._map = mmap.mmap(self.fd, self.size)
        self.view = memoryview(self._map)
        self._top = self.size.bit_length() - 1
        self._free: list[set[int]] = [set() for _ in range(self._top + 1)]
        self._free[self._top].add(0)
        #: Pieces that were given back, as they are: clients send tensors of the same size again.
        self._ready: list[list[int]] = [[] for _ in range(self._top + 1)]
        self._orders: dict[int, int] = {}
        self._touched = 0
        self.used = 0

    def take(self, size: int) -> int | None:
        """The place of `size` free bytes, aligned to 64 KiB; None if there are none."""
        order = max((size - 1).bit_length(), _SMALLEST)
        if order > self._top:
            return None
        if self._ready[order]:
            place: int | None = self._ready[order].pop()
        else:
            place = self._split(order)
            if place is None and any(self._ready):
                self._merge()
                place = self._split(order)
        if place is not None:
            self._orders[place] = order
            self.used += 1 << order
            self._touched = max(self._touched, place + (1 << order))
        return place

    def give(self, place: int) -> None:
        """Frees what `take` gave."""
        order = self._orders.pop(place)
        self.used -= 1 << order
        ready = self._ready[order]
        if order <= _KEPT and len(ready) < _MOST_READY:
            ready.append(place)
        else:
            self._free_up(place, order)
        if self._touched > _WARM and (self.used == 0 or order >= 27):
            self._merge()
            self._cool()

    def _split(self, order: int) -> int | None:
        """The lowest free piece of that order, cut from a larger one if need be."""
        found = next((o for o in range(order, self._top + 1) if self._free[o]), None)
        if found is None:
            return None
        place = min(self._free[found])
        self._free[found].remove(place)
        while found > order:
            found -= 1
            self._free[found].add(place + (1 << found))
        return place

    def _free_up(self, place: int, order: int) -> None:
        """Joins a piece with its neighbour as often as that is free."""
        while order < self._top and (place ^ (1 << order)) in self._free[order]:
            self._free[order].remove(place ^ (1 << order))
            place &= ~(1 << order)
            order += 1
        self._free[order].add(place)

    def _merge(self) -> None:
        """Joins what was kept as it was."""
        for order, ready in enumerate(self._ready):
            while ready:
                self._free_up(ready.pop(), order)

    def _cool(self) -> None:
        """Gives back the pages of large free pieces."""
        end = 0
        for order, places in enumerate(self._free):
            for place in places:
                if order >= 20 and place < self._touched and place >= _WARM // 2:
                    size = min(1 << order, self._touched - place)
                    with contextlib.suppress(OSError, ValueError):
                        self._map.madvise(mmap.MADV_REMOVE, place, size)
        end = max((place + (1 << order) for place, order in self._orders.items()), default=0)
        self._touched = max(end, _WARM // 2)

    def close(self) -> None:
        """Gives the memory back."""
        self.view.release()
        with contextlib.suppress(BufferError):  # a tensor that somebody still holds keeps it mapped
            self._map.close()
        os.close(self.fd)
