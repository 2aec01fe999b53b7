"""`portolan pack`."""

from __future__ import annotations

from typing import Any

import click

from portolan.cli import options
from portolan.cli.console import Console
from portolan.errors import UsageError


@click.command("pack", short_help="make, verify, export a bundle")
@click.argument("source", required=False, type=click.Path(), metavar="STUDY|MODEL")
@options.out("The bundle: a folder, or one file that ends in `.portolan`.  [default: NAME.portolan]")
@click.option("--name", metavar="NAME", help="What the bundle is called.  [default: the model's name]")
@click.option("--trial", type=options.Whole(0), metavar="N", help="Pack this trial in the place of the best.")
@click.option("--check", type=click.Path(), metavar="BUNDLE", help="Verify a bundle by running it; write nothing.")
@click.option(
    "--backend",
    type=options.Names("backends", "backend", one=True),
    metavar="NAME",
    help="For a model: the backend to pack it for.  [default: onnxruntime]",
)
@options.data
@options.shapes
@options.target
@options.writes
@options.native
@options.common
@click.pass_obj
def command(
    console: Console, /, source: str | None, check: str | None, dry_run: bool, native: bool, target: str, **rest: Any
) -> int:
    """Make, verify, export a bundle.

    The bundle is verified by running its golden inputs before the command ends; with `-t`, on that target too.
    """
    from portolan import api
    from portolan.cli import show

    if (source is None) == (check is None):
        raise UsageError(
            "`portolan pack` needs either a study or model, or `--check BUNDLE`",
            hint="usage: portolan pack STUDY|MODEL",
        )
    with console.progress() as progress:
        if check is not None:
            data = api.check(check, native=native, target=target).to_json()
        else:
            rest["backend"] = next(iter(rest["backend"] or ()), None)
            data = api.pack(str(source), dry_run=dry_run, target=target, progress=progress, **rest).to_json()
    return console.answer(data, lambda: show.packing(data, dry_run=dry_run, check=check is not None))
