"""OpenCL C 1.2."""

from __future__ import annotations

from dataclasses import replace

from portolan.kernels.ir import Loops
from portolan.kernels.printers.c import WORDS
from portolan.kernels.printers.files import shared
from portolan.kernels.printers.threads import PointerPrinter

_SAME = ("exp", "log", "sqrt", "tanh", "erf", "sin", "cos", "floor", "ceil", "pow")


class OpenCLPrinter(PointerPrinter):
    """Prints loops as OpenCL C."""

    name = "OpenCL"
    words = replace(
        WORDS,
        types={"f": "float", "i": "place_t", "m": "int"},
        calls={**WORDS.calls, **{("f", n): n for n in _SAME}, ("f", "abs"): "fabs"},
        stack="{type} {name}[{size}];",
        barrier="barrier(CLK_LOCAL_MEM_FENCE);",
        shared="__local {type} {name}[{size}];",
    )
    entry_word = "__kernel void"
    space = "__global "
    restrict = "restrict"
    task = "get_global_id(0)"

    def head(self, loops: Loops) -> str:
        """Names and functions that all kernels share."""
        return shared("opencl.h")
