"""CUDA C++. What it uses is also HIP's: the thread's number, and functions of floats by C's names."""

from __future__ import annotations

from dataclasses import replace

from portolan.kernels.ir import Loops
from portolan.kernels.lower.shared import THREADS
from portolan.kernels.printers.c import WORDS
from portolan.kernels.printers.files import shared
from portolan.kernels.printers.threads import PointerPrinter

#: Threads of a block.
BLOCK = THREADS


class CUDAPrinter(PointerPrinter):
    """Prints loops as CUDA C++."""

    name = "CUDA"
    words = replace(
        WORDS,
        types={"f": "float", "i": "place_t", "m": "int"},
        stack="{type} {name}[{size}];",
        barrier="__syncthreads();",
        shared="__shared__ {type} {name}[{size}];",
    )
    entry_word = f'extern "C" __global__ void __launch_bounds__({BLOCK})'
    space = ""
    restrict = "__restrict__"
    task = "blockIdx.x * blockDim.x + threadIdx.x"

    def head(self, loops: Loops) -> str:
        """Names and functions that all kernels share."""
        return shared("cuda.h")
