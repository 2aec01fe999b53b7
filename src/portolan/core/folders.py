"""The user's folders: what may be lost, and what was made on request."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """PORTOLAN_CACHE, or `portolan` in the user's cache folder."""
    if folder := os.environ.get("PORTOLAN_CACHE"):
        return Path(folder)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "portolan"


def data_folder(name: str, variable: str) -> Path:
    """What the environment variable says, or `portolan/NAME` in the user's data folder."""
    if asked := os.environ.get(variable):
        return Path(asked).expanduser().absolute()
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser().absolute() / "portolan" / name
