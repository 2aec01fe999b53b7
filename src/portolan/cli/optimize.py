"""`portolan optimize`."""

from __future__ import annotations

from typing import Any

import click

from portolan.cli import options
from portolan.cli.console import Console


@click.command("optimize", short_help="search for the best recipe under goals")
@click.argument("model", type=click.Path())
@options.goal
@options.data
@click.option(
    "--metric",
    metavar="FILE.PY:FUNCTION",
    help="Your accuracy: (outputs, labels) -> float, higher is better.",
)
@options.shapes
@options.backend
@options.passes
@click.option(
    "--recipe",
    type=click.Path(),
    metavar="FILE",
    help="A recipe file (TOML) that pins choices; a list in it is a range.",
)
@options.budget
@click.option(
    "--jobs",
    type=options.Whole(1),
    default=1,
    metavar="N",
    help="Processes that build ahead of the timing.  [default: 1]",
)
@options.seed
@options.target
@click.option("--price", metavar="MONEY", help="What an hour of the target costs, such as 0.10USD; `cost` needs it.")
@click.option(
    "--study",
    type=click.Path(),
    metavar="DIR",
    help="Where the study is kept; the same one goes on where it was.  [default: study-MODEL]",
)
@options.dry_run
@options.common
@click.pass_obj
def command(console: Console, /, model: str, goals: tuple[str, ...], **rest: Any) -> int:
    """Search for the best recipe under goals.

    MODEL is an `.onnx` file, a file or folder of another framework, `file.py:factory` or `demo:digits`. Repeat the
    command to go on with an interrupted search; a finished one answers at once. Exit code 3 says that no recipe met
    every limit.
    """
    from portolan import api
    from portolan.cli import show_study

    rest["backend"], rest["passes"] = rest["backend"] or None, rest["passes"] or None
    with console.progress() as progress:
        data = api.optimize(model, goals=goals, progress=progress, **rest).to_json()
    return console.answer(data, lambda: show_study.study(data, dry_run=rest["dry_run"], verbose=console.verbose > 0))
