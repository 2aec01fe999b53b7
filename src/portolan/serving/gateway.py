"""The server's routes without its sockets, for platforms that bring their own HTTP: a request in, an answer out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from portolan.serving.bounds import Bounds, inflate
from portolan.serving.calls import Refusal
from portolan.serving.heads import KNOWN, Head
from portolan.serving.models import Models
from portolan.serving.request import Request
from portolan.serving.responses import Response, error
from portolan.serving.routes import Routes


@dataclass(frozen=True)
class Answered:
    """An HTTP answer: its status, its headers without the content's length, and its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Link:
    """One request's way back."""

    peer = "local"

    def __init__(self) -> None:
        self.response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    def answer(self, request: Request, response: Response) -> None:
        """Hands the answer to who waits for it; nobody does when the client has gone."""
        del request
        if not self.response.done():
            response.pieces = [bytes(piece) for piece in response.pieces]  # they are read later
            self.response.set_result(response)

    def extra(self, key: str) -> object:
        """There is no transport to ask."""
        del key
        return None


class Gateway:
    """Answers requests for the models it was made with. To be used on the loop it was made on, and closed.

    Args:
        models: what is served; the gateway ends it.
        bounds: of sizes.
    """

    def __init__(self, models: Models, bounds: Bounds | None = None) -> None:
        self.models = models
        self._routes = Routes(models, control=False)
        self._bounds = bounds or Bounds()

    async def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answered:
        """Answers one request.

        Args:
            method: such as `POST`.
            path: from the root, with its query if it has one.
            headers: those of the request, whatever their case.
            body: all of it, as it came.
        """
        known = {name.lower().encode("latin-1"): value.encode("latin-1") for name, value in headers.items()}
        link, request = _Link(), None
        try:
            read = {name: value for name, value in known.items() if name in KNOWN}
            request = Request(link, Head.of(method.encode(), path.encode(), read, close=False))
            if len(body) > self._bounds.body:
                raise Refusal("too_large", f"the body has more than {self._bounds.body:,} bytes")
            coding = request.head.coding
            request.body = inflate(body, coding, self._bounds.inflated) if coding else body
            self._routes(request)
            response = await link.response
        except Refusal as refusal:
            response = error(refusal)
        except asyncio.CancelledError:
            if request is not None:
                request.end(gone=True)
            raise
        if request is not None:
            request.end()
        return _answered(response, head=method == "HEAD")

    async def close(self) -> None:
        """Answers what came, and ends the replicas."""
        try:
            await self.models.drain()
        finally:
            self.models.close()


def _answered(response: Response, *, head: bool) -> Answered:
    lines = [line.partition(":") for line in response.headers.decode("latin-1").split("\r\n") if line]
    headers = {name: value.strip() for name, _, value in lines}
    if response.json is not None:
        headers["Inference-Header-Content-Length"] = str(response.json)
    return Answered(response.status, headers, b"" if head else b"".join(response.pieces))
