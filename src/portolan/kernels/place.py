"""Where compiled kernels are kept, as files whole or absent, and what was measured of them, in the cache's ledger."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portolan.core.folders import cache_folder
from portolan.core.ledger import Ledger
from portolan.errors import PortolanError

TUNED, CHECKED, RACED = "kernel", "kernel-checked", "kernel-raced"
"""The kinds of events: tunings by kernel, shape class and target; code that agreed with the oracle; fused chains."""


def folder() -> Path:
    """`kernels` in the user's cache folder."""
    return cache_folder() / "kernels"


def digest(*parts: object) -> str:
    """A name for what `parts` say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def remember(kind: str, key: str, data: Mapping[str, Any]) -> None:
    """Appends what was measured under `key` to the ledger in the cache folder. Losing it costs time, never a result."""
    with contextlib.suppress(PortolanError, OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        with contextlib.closing(Ledger(_ledger())) as ledger:
            ledger.append(kind, key, data)


def recall(kind: str, key: str) -> dict[str, Any] | None:
    """What was measured under `key`; None when nothing was, or the ledger is damaged."""
    with (
        contextlib.suppress(PortolanError, OSError, ValueError),
        contextlib.closing(Ledger(_ledger(), writable=False)) as ledger,
    ):
        return ledger.latest(kind, key)
    return None


def _ledger() -> Path:
    return cache_folder() / "ledger.sqlite"
