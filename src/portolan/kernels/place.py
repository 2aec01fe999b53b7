"""Where compiled kernels and what was measured of them are kept: files whole or absent, named by what they hold."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from portolan.core.extensions import cache_folder


def folder() -> Path:
    """`kernels` in the user's cache folder."""
    return cache_folder() / "kernels"


def digest(*parts: object) -> str:
    """A name for what `parts` say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def remember(key: str, data: dict[str, Any]) -> None:
    """Keeps what was measured under `key`."""
    write_whole(folder() / "tuned" / f"{key}.json", json.dumps(data).encode())


def recall(key: str) -> dict[str, Any] | None:
    """What was measured under `key`; None when nothing was, or the file is damaged."""
    try:
        found = json.loads((folder() / "tuned" / f"{key}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
