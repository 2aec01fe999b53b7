"""`portolan` with short measurements: `driver.py STARTS WORDS...`. With KILL_AT it ends itself with SIGKILL.

KILL_AT is `EVENT:N`: the N-th time that EVENT happens. Events: `append` (before a ledger's event), `appended` (after),
`worker` (one was started), `asked` (a request was sent), `answered`, `built` (before a folder gets its name), `saved`
(after). `append screened` and `asked compile` are those of one kind.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    from support.studies import shorten

    # A shell starts what it puts into the background deaf to Ctrl-C, and its children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    starts = int(sys.argv.pop(1))
    shorten(setattr, starts)
    if "KILL_AT" in os.environ:
        event, _, number = os.environ["KILL_AT"].partition(":")
        _Killer(event, int(number)).arm()
    from portolan.cli import main as portolan

    portolan()


class _Killer:
    def __init__(self, event: str, number: int) -> None:
        self.event, self.left = event, number

    def happens(self, event: str, kind: str) -> None:
        if self.event in (event, f"{event} {kind}"):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str, before: str, after: str, kind: Callable[..., str] = lambda *_: "") -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            self.happens(before, kind(*args))
            result = original(*args, **options)
            self.happens(after, kind(*args))
            return result

        setattr(owner, name, wrapped)

    def arm(self) -> None:
        from portolan.core import ledger
        from portolan.study import workspace
        from portolan.worker import frames, session

        asked = [""]
        ask = session.Worker.ask

        def noted(worker: Any, op: str, **rest: Any) -> Any:
            asked[0] = op
            return ask(worker, op, **rest)

        session.Worker.ask = noted  # type: ignore[method-assign]
        self.around(ledger.Ledger, "append", "append", "appended", lambda _, event, *rest: event)
        self.around(workspace, "_rename", "built", "saved")
        self.around(session.Worker, "__init__", "-", "worker")
        self.around(frames, "decode", "asked", "answered", lambda *_: asked[0])


if __name__ == "__main__":
    main()
