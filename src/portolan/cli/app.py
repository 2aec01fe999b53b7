"""The command `portolan`: finds the verb, and turns whatever goes wrong into one message and one exit code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import click

from portolan.cli.console import Console
from portolan.errors import UnknownName


@dataclass(frozen=True)
class Entry:
    """What the list of commands says of a verb, so that the list needs no import of it."""

    section: str
    synopsis: str
    about: str


VERBS: dict[str, Entry] = {
    "inspect": Entry("Look", "MODEL", "what a model is: signature, operators, FLOPs, bytes"),
    "doctor": Entry("Look", "[TARGET]", "what this machine can run, what is missing, the command that adds it"),
    "optimize": Entry("Improve", "MODEL -g GOAL...", "search for the best recipe under goals"),
    "compress": Entry("Improve", "MODEL --pass PASS...", "apply passes, no search"),
    "kernel": Entry("Improve", "FILE.py", "check, tune and compile a custom operator"),
    "bench": Entry("Check", "A [B...]", "measure and compare, with statistics"),
    "report": Entry("Check", "[STUDY...]", "the HTML report"),
    "pack": Entry("Deliver", "STUDY|MODEL", "make, verify, export a bundle"),
    "serve": Entry("Deliver", "BUNDLE...", "answer requests: Open Inference Protocol v2"),
    "deploy": Entry("Deliver", "BUNDLE --to PLATFORM", "files for KServe, Ray Serve, Triton, Docker"),
    "env": Entry("Manage", "[ACTION] [NAME...]", "environments of their own for runtimes that clash"),
    "target": Entry("Manage", "[ACTION] [NAME]", "targets that are not this machine: emulated processors, browsers"),
    "completion": Entry("Manage", "bash|zsh|fish", "print the script that completes commands in a shell"),
}


class App(click.Group):
    """A group whose verbs are imported when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in the order of the help."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of that name, from `portolan/cli/NAME.py`."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"portolan.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that `args` name.

        Raises:
            UnknownName: there is none; the hint is the nearest one.
        """
        if not ctx.resilient_parsing and args[0] not in VERBS and not args[0].startswith("-"):
            raise UnknownName("command", args[0], VERBS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the verbs by section, without importing them."""
        width = max(len(f"{name} {entry.synopsis}") for name, entry in VERBS.items())
        for section in dict.fromkeys(entry.section for entry in VERBS.values()):
            with formatter.section(section):
                rows = [
                    (f"{name} {entry.synopsis}".ljust(width), entry.about)
                    for name, entry in VERBS.items()
                    if entry.section == section
                ]
                formatter.write_dl(rows, col_max=width)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Runs the command line and exits; every error ends here."""
        args = list(sys.argv[1:] if args is None else args)
        console = Console.early(args)
        try:
            code = super().main(
                args, "portolan", complete_var, False, windows_expand_args=windows_expand_args, obj=console, **extra
            )
        except Exception as error:  # the one boundary: a bug, too, gets a message in the same voice
            from portolan.cli.failure import fail

            code = fail(error, console, next((a for a in args[:1] if a in VERBS), None))
        sys.exit(code if isinstance(code, int) else 0)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    if value and not ctx.resilient_parsing:
        from portolan import __version__

        click.echo(f"portolan {__version__}")
        ctx.exit()


app = App(
    name="portolan",
    help="Find, by measuring, the best way to run a trained model on the hardware at hand, and ship it.",
    epilog="`portolan COMMAND --help` says more. Try: portolan optimize demo:digits",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    options_metavar="",
    subcommand_metavar="COMMAND ...",
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_version,
            help="Print the version and exit.",
        )
    ],
)
