"""A replica: a process that loads one model and runs batches, one after another, until its socket closes.

`python -m portolan.serving.replica SOCKET ARENA MEMORY`: two descriptors and the bytes it may allocate. What passes
through the socket: see `portolan.serving.executor`.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from portolan.core import environments
from portolan.core.silence import silence
from portolan.serving.executor import Replica
from portolan.worker.agent import end_with_parent
from portolan.worker.memory import limit_memory


def main(argv: Sequence[str]) -> None:
    """Serves until the front closes the socket."""
    end_with_parent(os.getppid())
    limit_memory(int(argv[2]))
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # what a runtime prints is no answer
    silence()
    environments.hold()
    Replica(socket.socket(fileno=int(argv[0])), int(argv[1])).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
