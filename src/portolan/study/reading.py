"""Opening a finished study."""

from __future__ import annotations

from pathlib import Path

from portolan.core.ledger import Ledger
from portolan.errors import UsageError
from portolan.study.study import Study


def read_study(folder: Path) -> Study:
    """The newest finished study in `folder`.

    Raises:
        UsageError: there is no study, or it is not finished.
    """
    ledger = Ledger(folder / "ledger.sqlite", writable=False)
    try:
        finished = ledger.all("finished")
    finally:
        ledger.close()
    if not finished:
        raise UsageError(f"the study in `{folder}` is not finished", hint="repeat its `portolan optimize` command")
    return Study(folder.resolve(), finished[-1][1])
