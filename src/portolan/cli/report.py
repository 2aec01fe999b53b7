"""`portolan report`."""

from __future__ import annotations

from pathlib import Path

import click

from portolan.cli import options
from portolan.cli.console import Console


@click.command("report", short_help="the HTML report")
@click.argument("studies", nargs=-1, type=click.Path(), metavar="[STUDY...]")
@options.out("The file to write.  [default: report.html]")
@options.writes
@options.common
@click.pass_obj
def command(console: Console, /, studies: tuple[str, ...], out: str | None, force: bool, dry_run: bool) -> int:
    """The HTML report: one file that needs no network.

    STUDY is a folder that `portolan optimize` wrote; without one, the studies in this folder.
    """
    from portolan import api
    from portolan.cli import show

    studies = studies or tuple(sorted(str(ledger.parent) for ledger in Path().glob("*/ledger.sqlite")))
    data = api.report(*studies, out=out or "report.html", force=force, dry_run=dry_run).to_json()
    return console.answer(data, lambda: show.written(data["report"], what="report", dry_run=dry_run))
