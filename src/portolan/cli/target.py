"""`portolan target`."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from portolan.cli import options
from portolan.cli.console import Console

_ACTIONS = ("list", "add", "show", "remove")
_KINDS = ("haswell", "aarch64", "riscv64", "wasm", "webgpu")


def _complete_action(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    del ctx, param
    return [CompletionItem(name) for name in _ACTIONS if name.startswith(incomplete)]


def _complete_kind(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    del ctx, param
    return [CompletionItem(name) for name in _KINDS if name.startswith(incomplete)]


@click.command("target", short_help="targets that are not this machine")
@click.argument("action", default="list", metavar="[list|add|show|remove]", shell_complete=_complete_action)
@click.argument("name", required=False, metavar="[NAME]")
@click.option(
    "--emulate",
    metavar="|".join(_KINDS),
    shell_complete=_complete_kind,
    help="For `add`: what the target is.",
)
@click.option("--cpu", metavar="CPU", help="For `add`: the processor, where there are several.  [default: the first]")
@click.option("--mirror", metavar="URL", help="For `add`: where Debian's packages are fetched from.")
@click.option(
    "--latest", is_flag=True, help="For `add`: take the versions that the mirror has now, not the pinned ones."
)
@options.writes
@options.common
@click.pass_obj
def command(console: Console, /, action: str, name: str | None, **rest: Any) -> int:
    """Targets that are not this machine: emulated processors, browsers.

    `add` fetches an emulator and real runtimes into a folder of Portolan's own, without root rights, and asks the new
    target for the answer of a small model. `-t NAME` then runs models there: crashes and wrong answers are real; time,
    energy and cost are never told of an emulated target.
    """
    from portolan import api
    from portolan.cli import show_target

    with console.progress() as progress:
        data = api.target(action, name, progress=progress, **rest).to_json()  # type: ignore[arg-type]
    return console.answer(data, lambda: show_target.targets(data, dry_run=rest["dry_run"]))
