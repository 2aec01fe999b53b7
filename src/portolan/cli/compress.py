"""`portolan compress`."""

from __future__ import annotations

from typing import Any

import click

from portolan.cli import options
from portolan.cli.console import Console


@click.command("compress", short_help="apply passes, no search")
@click.argument("model", type=click.Path())
@options.chain
@options.out("The file to write.  [default: MODEL-PASSES.onnx]")
@options.data
@options.shapes
@options.seed
@options.writes
@options.common
@click.pass_obj
def command(console: Console, /, model: str, passes: list[str], dry_run: bool, **rest: Any) -> int:
    """Apply passes, no search.

    The passes run in the order given. `portolan doctor` lists them.
    """
    from portolan import api
    from portolan.cli import show

    with console.progress() as progress:
        data = api.compress(model, passes=passes, dry_run=dry_run, progress=progress, **rest).to_json()
    return console.answer(data, lambda: show.compression(data, model, dry_run=dry_run))
