"""`portolan serve`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from portolan.cli import options
from portolan.cli.console import Console
from portolan.cli.failure import place
from portolan.errors import UsageError
from portolan.units import parse


class Seconds(options.ParamType):
    """A time such as `50ms`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        try:
            seconds = parse(str(value), "time")
        except UsageError as error:
            error.where = error.where or place(ctx, param)
            raise
        if seconds < 0:
            raise UsageError(f"`{value}` is not a time from 0 up", where=place(ctx, param))
        return seconds


@click.command("serve", short_help="answer requests: Open Inference Protocol v2")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(), metavar="BUNDLE...")
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="Listen here.  [default: 127.0.0.1, this machine]")
@click.option("--port", type=options.Whole(0), default=8000, metavar="N", help="Of HTTP; 0 is any.  [default: 8000]")
@options.replicas
@click.option(
    "--max-batch",
    type=options.Whole(1),
    metavar="N",
    help="Rows of the largest batch.  [default: the recipe's, else 16]",
)
@click.option(
    "--deadline",
    type=Seconds(),
    metavar="TIME",
    help="Answer within this, or refuse; a request's `timeout` replaces it.  [default: the recipe's, else 30s]",
)
@click.option(
    "--drain", type=Seconds(), default="0s", metavar="TIME", help="Stay up so long after readiness ends.  [default: 0s]"
)
@click.option("--grace", type=Seconds(), default="25s", metavar="TIME", help="Time to stop in.  [default: 25s]")
@click.option(
    "--model-control/--no-model-control",
    default=None,
    help="Whether clients may load and unload models.  [default: only on this machine's own address]",
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
            console.raw(json.dumps({"url": data["url"], "models": data["models"]}))
        elif "ready" in data:
            console.raw(show_serve.ready(data))
        elif line := show_serve.note(data):
            console.note(line)

    api.serve(*bundles, told=told, **rest)
    return 0
