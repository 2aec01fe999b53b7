"""The kernels of `operators.py` by name: every construct of the notation, and every type."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from portolan.kernels.decorated import Kernel
from portolan.kernels.source import read_file


@lru_cache(maxsize=1)
def kernels() -> dict[str, Kernel]:
    """Each kernel of the kit."""
    return {found.program.name: Kernel(found.program) for found in read_file(Path(__file__).parent / "operators.py")}
