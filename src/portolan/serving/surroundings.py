"""What stands around the HTTP door: the gRPC door, who may come in, the log, metrics, traces and the live page."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from portolan.errors import UsageError
from portolan.serving import live, metrics, tls
from portolan.serving.calls import Answer, Refusal
from portolan.serving.door import Door
from portolan.serving.gate import Gate
from portolan.serving.guard import Guard, Tokens
from portolan.serving.journal import Journal
from portolan.serving.models import Models
from portolan.serving.request import Request
from portolan.serving.responses import Response
from portolan.serving.routes import Routes
from portolan.serving.ticket import Ticket
from portolan.serving.version import Version


@dataclass(frozen=True)
class Asked:
    """What is to stand around the HTTP door; by default nothing but metrics and the page.

    Attributes:
        grpc_port: of the gRPC door; None for none.
        token_file: tokens, one per line; None to let everyone in.
        tls_cert, tls_key, tls_client_ca: PEM files; see portolan.serving.tls.
        rate: requests per second of one client; None for any number.
        concurrent: requests at once of all clients; None for any number.
        message: bytes of the largest message of the gRPC door.
        log_file: where events go as JSON lines; None for stderr, and then only what went wrong.
        access_log: whether every request is a line too.
        otlp_endpoint: of a collector of traces; None for none.
        otlp_share: share of the calls that are traced.
    """

    grpc_port: int | None = None
    token_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    rate: float | None = None
    concurrent: int | None = None
    message: int = 64 * 2**20
    log_file: str | None = None
    access_log: bool = False
    otlp_endpoint: str | None = None
    otlp_share: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def tls(self) -> tls.Tls | None:
        """The files of TLS.

        Raises:
            UsageError: only some of those that belong together.
        """
        return tls.of(self.tls_cert, self.tls_key, self.tls_client_ca)

    def check(self) -> None:
        """Looks whether all of it can be had, before anything is started.

        Raises:
            UsageError: a file that cannot be read, an address that is none, a package that is missing.
        """
        from importlib.util import find_spec

        how = self.tls()
        if how is not None:
            how.context()
        if self.token_file is not None:
            Tokens(Path(self.token_file))
        if self.log_file is not None:
            _journal(self).close()
        needed = {"grpc": ("--grpc-port", self.grpc_port), "opentelemetry": ("--otlp-endpoint", self.otlp_endpoint)}
        for package, (flag, given) in needed.items():
            if given is not None and find_spec(package) is None:
                problem = f"{flag} needs the package `{package}`, which is not installed"
                raise UsageError(problem, hint="pip install 'portolan[serve]'")
        if self.otlp_endpoint is not None:
            from portolan.serving.traces import endpoint

            endpoint(self.otlp_endpoint)


class Surroundings:
    """All of it, on the front's loop.

    Args:
        asked: what there is to be.
        host: the address that is listened on.
        models: what is served; it is observed from now on.
        routes: gets metrics, the page and its data.
        door: gets who may come in.

    Raises:
        UsageError: as `Asked.check` does.
    """

    def __init__(self, asked: Asked, host: str, models: Models, routes: Routes, door: Door) -> None:
        self._asked, self._host, self._models = asked, host, models
        self.journal = _journal(asked)
        warn = lambda said: self.journal.event("tokens", problem=said)  # noqa: E731
        tokens = None if asked.token_file is None else Tokens(Path(asked.token_file), warn=warn)
        self.guard = Guard(tokens, rate=asked.rate, concurrent=asked.concurrent)
        how = asked.tls()
        self.tls: ssl.SSLContext | None = None if how is None else how.context()
        self._metrics = metrics.Metrics(models)
        self._traces = self._traced(asked)
        self._grpc = self._grpc_door(asked, how)
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._bug)
        models.observer = self
        door.admit = Gate(self.guard, host)
        if asked.access_log:
            door.noted = self._noted
        page = live.page()
        routes.pages |= {
            "/": lambda: ("text/html; charset=utf-8", page),
            "/live.json": lambda: ("application/json", self._live()),
            "/metrics": lambda: (metrics.CONTENT_TYPE, self._metrics.text(self.journal.lost).encode()),
        }

    async def start(self) -> None:
        """Opens the gRPC door.

        Raises:
            UsageError: its port is taken.
        """
        if self._grpc is not None:
            try:
                await self._grpc.start()
            except OSError as error:
                raise UsageError(str(error), hint="choose another with --grpc-port") from error

    async def close_doors(self, grace: float) -> None:
        """The gRPC door takes no more calls; returns when those it took are answered, or after `grace` seconds."""
        if self._grpc is not None:
            await self._grpc.stop(grace)

    def close(self) -> None:
        """Writes and sends what waits."""
        if self._traces is not None:
            self._traces.close()
        self.journal.close()

    def ended(self, version: Version, ticket: Ticket, result: Answer | Refusal, now: float) -> None:
        """A call got its answer or its refusal."""
        if self._traces is not None:
            self._traces.ended(version, ticket, result, now)

    def event(self, name: str, **fields: Any) -> None:
        """Something happened to a replica."""
        if self._asked.log_file is not None or name in _WRONG:
            self.journal.event(name, **fields)

    def _traced(self, asked: Asked) -> Any:
        if asked.otlp_endpoint is None:
            return None
        from portolan.serving.traces import Traces

        return Traces(asked.otlp_endpoint, asked.otlp_share)

    def _grpc_door(self, asked: Asked, how: tls.Tls | None) -> Any:
        if asked.grpc_port is None:
            return None
        # Its core says at each start of a replica that it does not support forks; nothing of it runs in them.
        os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
        from portolan.serving import grpc_

        settings = grpc_.Settings(self._host, asked.grpc_port, asked.message, tls=how)
        return grpc_.Door(self._models, settings, self.guard, self.journal)

    def _live(self) -> bytes:
        found = live.data(self._models, self._models.index(False), self._metrics.started)
        return json.dumps(found, separators=(",", ":")).encode()

    def _noted(self, request: Request, response: Response) -> None:
        self.journal.access(
            door="http",
            method=request.head.method.decode("latin-1"),
            path=request.head.path.decode("latin-1"),
            status=response.status,
            seconds=round(self._loop.time() - request.since, 6),
            sent=sum(map(len, response.pieces)),
            client=request.peer,
        )

    def _bug(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        error = context.get("exception")
        said = "".join(traceback.format_exception(error)[-8:]) if isinstance(error, BaseException) else ""
        self.journal.event("bug", message=context.get("message"), error=repr(error), trace=said)


#: What is said on stderr too, where no log was asked for.
_WRONG = frozenset({"replica_lost", "bug"})


def _journal(asked: Asked) -> Journal:
    path = None if asked.log_file is None else Path(asked.log_file)
    try:
        return Journal(path, access=asked.access_log)
    except OSError as error:
        problem = f"the log `{path}` cannot be written: {error.strerror}"
        raise UsageError(problem, hint="--log-file names a file") from error
