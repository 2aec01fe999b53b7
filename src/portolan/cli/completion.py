"""`portolan completion`."""

from __future__ import annotations

import click

from portolan.cli import options
from portolan.cli.console import Answer, Console
from portolan.errors import UnknownName

SHELLS = ("bash", "zsh", "fish")


@click.command("completion", short_help="the script that completes commands in a shell")
@click.argument("shell", type=str, metavar="bash|zsh|fish")
@options.common
@click.pass_obj
def command(console: Console, /, shell: str) -> int:
    """Print the script that completes commands in a shell.

    \b
    bash:  eval "$(portolan completion bash)"    in ~/.bashrc
    zsh:   eval "$(portolan completion zsh)"     in ~/.zshrc
    fish:  portolan completion fish > ~/.config/fish/completions/portolan.fish
    """
    from click.shell_completion import ShellComplete, get_completion_class

    from portolan.cli.app import app

    found: type[ShellComplete] | None = get_completion_class(shell) if shell in SHELLS else None
    if found is None:
        raise UnknownName("shell", shell, SHELLS)
    made = found(app, {}, "portolan", "_PORTOLAN_COMPLETE")
    # `source()` of bash would start a shell to ask for its version.
    script = made.source_template % made.source_vars()
    if console.json:
        return console.answer({"shell": shell, "script": script}, lambda: Answer((), ""))
    console.raw(script)
    return 0
