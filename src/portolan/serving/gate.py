"""Who may come in over HTTP: asked with a request's head, before its body is read."""

from __future__ import annotations

from urllib.parse import urlsplit

from portolan.serving.calls import Refusal
from portolan.serving.guard import Guard
from portolan.serving.request import Request

#: Probes hold no token; the page holds no data, and asks for the token itself.
_OPEN = frozenset((b"/v2/health/live", b"/v2/health/ready", b"/"))
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Gate:
    """Lets requests of the HTTP door in, or raises Refusal.

    A browser says from which page a request comes. One from another site's page is refused: without this, any page that
    somebody looks at could call, load and unload models on their machine.

    Args:
        guard: tokens, rates and how many at once.
        host: the address that is listened on.
    """

    def __init__(self, guard: Guard, host: str) -> None:
        self._guard = guard
        self._local = host in _LOOPBACK
        self._counts = not (guard.tokens is None and guard.rate is None and guard.concurrent is None)

    def __call__(self, request: Request) -> None:
        """Lets `request` in.

        Raises:
            Refusal: `unauthenticated`, `too_many`, `overloaded`, or `invalid` for another site's page.
        """
        headers = request.head.headers
        if b"origin" in headers:
            self._same_site(headers[b"origin"], headers.get(b"host", b""))
        if self._counts and request.head.path.partition(b"?")[0] not in _OPEN:
            authorization = headers.get(b"authorization")
            self._guard.enter(None if authorization is None else authorization.decode("latin-1"), request.peer)
            request.ended = self._guard.leave

    def _same_site(self, origin: bytes, host: bytes) -> None:
        try:
            page = urlsplit(origin.decode("latin-1"))
            name = page.hostname
        except ValueError:
            page, name = None, None
        # On this machine's own address the name must be its own too: a stranger's name can be made to lead here.
        if page is None or page.netloc.encode() != host or (self._local and name not in _LOOPBACK):
            raise Refusal("invalid", "requests from pages of other sites are refused")
