"""`portolan doctor`."""

from __future__ import annotations

import click

from portolan.cli import options
from portolan.cli.console import Console


@click.command("doctor", short_help="what this machine can run")
@click.argument("name", required=False, metavar="[TARGET]")
@options.target
@click.option(
    "--bench", is_flag=True, help="Measure the machine's ceilings and what each pass brings here too; takes minutes."
)
@options.common
@click.pass_obj
def command(console: Console, /, name: str | None, target: str, bench: bool) -> int:
    """What this machine can run, what is missing, the command that adds it.

    TARGET is this machine, `local`, unless another is named.
    """
    from portolan import api
    from portolan.cli import show

    with console.progress() as progress:
        data = api.doctor(name or target, bench=bench, progress=progress).to_json()
    return console.answer(data, lambda: show.examination(data, verbose=console.verbose > 0))
