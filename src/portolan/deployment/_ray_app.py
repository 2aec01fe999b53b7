"""A bundle on Ray Serve: the Open Inference Protocol v2, in batches of what waits when the model is free.

`serve run config.yaml`, beside this file, starts it; the configuration's `args` are those of `build`. Each of Ray's
replicas has a scheduler and one process with the model, so that a runtime that crashes takes no replica along.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response

from portolan.hosting import gateway


class Model:
    """One replica: HTTP is Ray's, batching and the protocol are Portolan's. Ray awaits its start and its end."""

    async def __init__(self, bundle: str, max_batch: int | None, native: bool) -> None:  # type: ignore[misc]
        self._gateway = await gateway(bundle, replicas=(1, 1), max_batch=max_batch, native=native)

    async def __call__(self, request: Request) -> Response:
        """Answers one request."""
        url = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        path = url.removeprefix(request.scope.get("root_path", ""))
        found = await self._gateway.answer(request.method, path, request.headers, await request.body())
        return Response(found.body, found.status, dict(found.headers))

    async def check_health(self) -> None:
        """Asked by Ray from time to time; a replica that raises is replaced."""
        if not self._gateway.models.ready():
            raise RuntimeError("the model does not serve")

    async def __del__(self) -> None:
        """What was accepted is answered before the replica ends."""
        await self._gateway.close()


def build(args: dict[str, Any]) -> Application:
    """The application.

    Args:
        args: `bundle`, a path relative to this file; `max_batch`, rows of the largest batch, if not the
            server's own; `native`, whether the bundle's compiled code may run.
    """
    bundle = Path(__file__).parent / str(args["bundle"])
    app: Application = serve.deployment(Model).bind(str(bundle), args.get("max_batch"), bool(args.get("native")))
    return app
