"""`portolan serve`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import click

from portolan.cli import options
from portolan.cli.console import Console
from portolan.cli.failure import place
from portolan.errors import UsageError
from portolan.units import parse


class Quantity(options.ParamType):
    """A number with a unit, such as `50ms` or `64MiB`.

    Args:
        dimension: of portolan.units.
        above: whether 0 is too small.
        most: the largest.
    """

    def __init__(self, dimension: str, *, above: bool = False, most: float = math.inf) -> None:
        self.name = dimension
        self._above, self._most = above, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """In the dimension's base unit."""
        try:
            found = parse(str(value), self.name)
        except UsageError as error:
            error.where = error.where or place(ctx, param)
            raise
        if found < 0 or found > self._most or (self._above and found == 0):
            least = "above 0" if self._above else "from 0 up"
            most = "" if math.isinf(self._most) else f" and up to {self._most:g}"
            raise UsageError(f"`{value}` is not a {self.name} {least}{most}", where=place(ctx, param))
        return int(found) if self.name == "bytes" else found


def _path(flag: str, said: str) -> Callable[[Any], Any]:
    return click.option(flag, type=click.Path(), metavar="FILE", help=said)


@click.command("serve", short_help="answer requests: Open Inference Protocol v2")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(), metavar="BUNDLE...")
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="Listen here.  [default: 127.0.0.1, this machine]")
@click.option("--port", type=options.Whole(0), default=8000, metavar="N", help="Of HTTP; 0 is any.  [default: 8000]")
@options.replicas
@click.option(
    "--max-batch",
    type=options.Whole(1),
    metavar="N",
    help="Rows of the largest batch.  [default: the recipe's, else the largest measured, else 16]",
)
@click.option(
    "--deadline",
    type=Quantity("time"),
    metavar="TIME",
    help="Answer within this, or refuse; a request's `timeout` replaces it.  [default: the recipe's, else 30s]",
)
@click.option(
    "--hang-after",
    type=Quantity("time"),
    metavar="TIME",
    help="Replace a replica that is so much later than its batch should take.  [default: 10s]",
)
@click.option(
    "--drain",
    type=Quantity("time"),
    default="0s",
    metavar="TIME",
    help="Stay up so long after readiness ends.  [default: 0s]",
)
@click.option("--grace", type=Quantity("time"), default="25s", metavar="TIME", help="Time to stop in.  [default: 25s]")
@click.option(
    "--model-control/--no-model-control",
    default=None,
    help="Whether clients may load and unload models.  [default: only on this machine's own address]",
)
@click.option("--grpc-port", type=options.Whole(0), metavar="N", help="Of gRPC; 0 is any.  [default: no gRPC]")
@_path("--token-file", "Ask for a token of this file, one per line; it is read again when it changes.")
@_path("--tls-cert", "PEM: the server's certificate chain; with --tls-key, speak TLS.")
@_path("--tls-key", "PEM: its private key.")
@_path("--tls-client-ca", "PEM: ask clients for a certificate that one of these authorities signed.")
@click.option(
    "--max-request",
    type=Quantity("bytes", above=True),
    metavar="SIZE",
    help="Of the largest request.  [default: 64MiB]",
)
@click.option(
    "--max-rate",
    type=Quantity("rate", above=True),
    metavar="N",
    help="Requests per second of one client.  [default: any]",
)
@click.option("--max-concurrent", type=options.Whole(1), metavar="N", help="Requests at once.  [default: any]")
@_path("--log-file", "Write what happens here, as JSON lines.  [default: what goes wrong, on stderr]")
@click.option("--access-log", is_flag=True, help="Write a line for every request too.")
@click.option("--otlp-endpoint", metavar="URL", help="Send traces to this OpenTelemetry collector.  [default: none]")
@click.option(
    "--otlp-share",
    type=Quantity("share", most=1.0),
    default=1.0,
    metavar="N",
    help="Share of calls to trace.  [default: 1]",
)
@click.option(
    "--canary",
    type=Quantity("share", above=True, most=1.0),
    metavar="SHARE",
    help="Try a bundle that is loaded again on this share of the calls, and roll it back on errors or a longer p99.",
)
@options.native
@options.common
@click.pass_obj
def command(console: Console, /, bundles: tuple[str, ...], **rest: Any) -> int:
    """Answer requests: Open Inference Protocol v2.

    Each BUNDLE is served under its own name. SIGTERM ends the server when every request it has taken is answered;
    SIGHUP loads bundles that have changed, without an interruption.
    """
    from portolan import api
    from portolan.cli import show_serve

    def told(data: Mapping[str, Any]) -> None:
        if "ready" in data and console.json:
            console.raw(json.dumps({key: data[key] for key in ("url", "grpc", "models")}))
        elif "ready" in data:
            console.raw(show_serve.ready(data))
        elif line := show_serve.note(data):
            console.note(line)

    api.serve(*bundles, told=told, **rest)
    return 0
