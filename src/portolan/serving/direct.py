"""The socket under a connection, for what a transport does not do: waking late, and sending without a copy."""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import termios
from collections.abc import Sequence
from typing import Final

from portolan.serving.calls import Piece

#: What is waited for at most.
_CHUNK: Final = 2**20
#: The kernel takes so many pieces at once.
_MOST_PIECES: Final = 512


class Direct:
    """The socket of a transport that does not encrypt; of another one, nothing but what the transport does itself.

    Args:
        transport: whose socket it is; the transport closes it.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._socket: socket.socket | None = None
        self._lowest = 1
        if transport.get_extra_info("sslcontext") is None:
            given = transport.get_extra_info("socket")
            self._socket = socket.socket(given.family, given.type, given.proto, fileno=given.fileno())

    def let_go(self) -> None:
        """The transport is about to close it."""
        if self._socket is not None:
            self._socket.detach()
            self._socket = None

    def wake_at(self, left: int) -> None:
        """Has the kernel wake this process only when what is left of a body is there, or a good part of it: each wake
        costs more than a copy.
        """
        count = min(max(left, 1), _CHUNK)
        if self._socket is not None and count != self._lowest and not self._transport.is_closing():
            self._lowest = count
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    def there(self) -> int:
        """Bytes that have come and were not read yet."""
        if self._socket is None or self._transport.is_closing():
            return 0
        found = array.array("i", [0])
        fcntl.ioctl(self._socket.fileno(), termios.FIONREAD, found)
        return found[0]

    def send(self, pieces: Sequence[Piece]) -> None:
        """Sends an answer at once, or after what waits to be sent. Its pieces go to the kernel from where they lie, and
        what it does not take is copied.
        """
        transport = self._transport
        # A transport that is closing has closed the descriptor, and its number may be another connection's by now.
        if self._socket is None or transport.is_closing() or transport.get_write_buffer_size():
            transport.write(b"".join(pieces))
            return
        try:
            if len(pieces) == 1:  # nearly always, and cheaper than a list of one
                sent = self._socket.send(pieces[0])
                if sent == len(pieces[0]):
                    return
            else:
                sent = self._socket.sendmsg(pieces[:_MOST_PIECES])
        except OSError:  # the kernel has no room, or the client has gone, which the transport finds out by itself
            sent = 0
        rest = list(pieces)
        while rest and sent >= len(rest[0]):
            sent -= len(rest.pop(0))
        if rest:
            rest[0] = memoryview(rest[0])[sent:]
            transport.write(b"".join(rest))
