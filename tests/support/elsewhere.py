"""Front ends whose packages live in another interpreter, through the worker that reads their sources there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from portolan.core.frontend import FrontEnd, Shapes
from portolan.core.model import Model
from portolan.frontends import _needs
from portolan.study.builder import converted


def load(front_end: FrontEnd, source: Any, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
    """What `portolan` does with the source; skips the test where the packages are nowhere."""
    python = _needs.interpreter(front_end)
    if python is None and (absent := _needs.absent(front_end)):
        pytest.skip(
            f"{' and '.join(absent)} not installed here, and `PORTOLAN_PYTHON_{front_end.name.upper()}` not set"
        )
    out.mkdir(parents=True, exist_ok=True)
    return converted(python, str(source), out, shapes, name)


def written(front_end: FrontEnd, code: str, folder: Path) -> None:
    """Runs `code`, which writes a framework's files, in the interpreter that has the framework, in `folder`."""
    import subprocess
    import sys

    python = _needs.interpreter(front_end) or [sys.executable]
    if python == [sys.executable] and (absent := _needs.absent(front_end)):
        pytest.skip(f"{' and '.join(absent)} not installed")
    done = subprocess.run([*python, "-c", code], cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
