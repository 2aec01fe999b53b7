"""Errors as the snapshots in tests/golden hold them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from portolan.errors import PortolanError


def told(name: str, action: Callable[[], object], folder: Path | None = None, word: str = "FOLDER") -> str:
    """What `action` fails with, word for word; `folder` is written as `word`, since it differs from run to run."""
    with pytest.raises(PortolanError) as caught:
        action()
    error = caught.value
    lines = [f"# {name}", f"exit {error.exit_code}", f"error: {error.message}"]
    lines += [f"  at {error.where}"] if error.where else []
    lines += [f"hint: {error.hint}"] if error.hint else []
    text = "\n".join(lines) + "\n"
    return text if folder is None else text.replace(str(folder), word)
