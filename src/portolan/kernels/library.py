"""A compiled kernel in this process, by the kernel's name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from portolan.core import native
from portolan.kernels.language import Loaded
from portolan.kernels.printers.c import function_name


class Library(native.Library, Loaded):
    """A loaded shared library of a kernel.

    Args:
        path: the library.
        kernel: the kernel's name.
        symbols: the symbols whose sizes the function takes, in order.
    """

    def __init__(self, path: Path, kernel: str, symbols: Sequence[str]) -> None:
        super().__init__(path, function_name(kernel), symbols)
