"""`portolan env`."""

from __future__ import annotations

import click

from portolan.cli import options
from portolan.cli.console import Console


@click.command("env", short_help="environments of their own for runtimes that clash")
@click.argument("action", default="list", metavar="[list|add|repair|remove]")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@options.writes
@options.common
@click.pass_obj
def command(console: Console, /, action: str, names: tuple[str, ...], force: bool, dry_run: bool) -> int:
    """Environments of their own for runtimes that clash.

    `list` says which there are; `add` makes one, `repair` makes it anew, `remove` removes it. `add` and `repair`
    install packages, all pinned, from where your pip finds them; no other command installs anything.
    """
    from portolan import api
    from portolan.cli import show_env

    with console.progress() as progress:
        data = api.env(action, *names, force=force, dry_run=dry_run, progress=progress).to_json()  # type: ignore[arg-type]
    return console.answer(data, lambda: show_env.environments(data, dry_run=dry_run, verbose=console.verbose > 0))
