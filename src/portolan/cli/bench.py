"""`portolan bench`."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from portolan.cli import options
from portolan.cli.console import Console


def _complete_arm(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files, and after `model@` the backends."""
    del ctx, param
    model, at, start = incomplete.rpartition("@")
    if not at:
        return [CompletionItem(incomplete, type="file")]
    return [CompletionItem(f"{model}@{name}") for name in options.known("backends") if name.startswith(start)]


@click.command("bench", short_help="measure and compare, with statistics")
@click.argument("arms", nargs=-1, required=True, metavar="A [B...]", shell_complete=_complete_arm)
@options.backend
@options.data
@options.shapes
@options.budget
@options.seed
@options.target
@options.native
@options.common
@click.pass_obj
def command(console: Console, /, arms: tuple[str, ...], backend: list[str], **rest: Any) -> int:
    """Measure and compare, with statistics.

    Each of A, B, ... is a model, a bundle or `MODEL@BACKEND(option=value)`. One model alone is raced on
    every backend that is ready, or on those of `--backend`. The first arm is what the others are compared with.

    On an emulated target nothing is timed: each arm's answers there are compared with those of its model here.
    """
    from portolan import api
    from portolan.cli import show_bench

    with console.progress() as progress:
        data = api.bench(*arms, backend=backend or None, progress=progress, **rest).to_json()
    return console.answer(data, lambda: show_bench.comparison(data, arms=arms))
