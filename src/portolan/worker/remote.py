"""An executable that lives in another interpreter, for callers that want one object and no protocol."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.core.backend import Executable, Tensors
from portolan.worker.session import Worker, patience

if TYPE_CHECKING:
    import numpy as np

_LOAD_SECONDS, _RUN_SECONDS = 600.0, 600.0


class Remote(Executable):
    """What a worker behind `python` loads from `folder`, as `Operations.compile` wrote it; one call at a time.

    Raises:
        PortolanError: it does not load there.
    """

    def __init__(self, python: Sequence[str], folder: Path) -> None:
        self._worker, self._lock = Worker(python=python), threading.Lock()
        try:
            reply = self._worker.ask("load", timeout=patience(_LOAD_SECONDS), folder=str(folder))
        except BaseException:
            self._worker.close()
            raise
        self._facts: dict[str, Any] = dict(reply.fields["facts"])

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once, there."""
        with self._lock:
            reply = self._worker.ask("run", timeout=patience(_RUN_SECONDS), tensors=dict(inputs))
        return {name: value.copy() for name, value in reply.tensors.items()}

    def save(self, folder: Path) -> None:
        """Nothing: what it was loaded from is the saved form.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("an executable in another interpreter was loaded from its saved form")

    def facts(self) -> dict[str, Any]:
        """What the runtime there said after the load."""
        return self._facts

    def close(self) -> None:
        """Ends the worker."""
        self._worker.close()
