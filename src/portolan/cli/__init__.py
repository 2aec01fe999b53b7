"""The command line: one file per verb. Nothing heavy is imported before a verb runs, and `--help` imports no verb."""

from __future__ import annotations

import signal
from typing import NoReturn


def main() -> NoReturn:
    """The entry point `portolan`: runs the command line and exits with the codes of portolan.errors.

    SIGTERM is taken as Ctrl-C is: what was measured is saved, and no process is left behind.
    """
    from portolan.cli.app import app

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app.main()
