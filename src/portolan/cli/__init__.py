"""The command line: one file per verb. Nothing heavy is imported before a verb runs, and `--help` imports no verb."""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """The entry point `portolan`: runs the command line and exits with the codes of portolan.errors."""
    from portolan.cli.app import app

    app.main()
