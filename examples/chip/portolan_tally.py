"""Tally, a chip that does not exist, as a plug-in for kernels: its language, its compiler and its driver.

The chip has a C of its own (`kernel`, `far` for its memory, `alone` for pointers that do not overlap, `self` for a
thread's number), no type of half precision, and memory that only copies reach. The "compiler" is the system's, behind
a header that gives the chip's words a meaning; the "driver" is a table of buffers.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from portolan.errors import NoBackend
from portolan.kernels.compiler import CompilerError
from portolan.kernels.device import Array, OnDevice
from portolan.kernels.language import Here, Language
from portolan.kernels.plan import Plan
from portolan.kernels.printers.c import WORDS
from portolan.kernels.printers.files import shared
from portolan.kernels.printers.threads import PointerPrinter

SIMULATOR = """
#include <math.h>
#include <stdint.h>
#include <string.h>
#define kernel void
#define far
#define alone restrict
#define IN static inline
static int self;
typedef int32_t place_t;
static inline float F_OF_BITS(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
static inline uint32_t BITS_OF_F(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
"""


class TallyPrinter(PointerPrinter):
    """The table, and how the chip starts a function: by numbers of buffers."""

    name = "Tally C"
    words = replace(WORDS, types={"f": "float", "i": "place_t", "m": "int"}, stack="{type} {name}[{size}];")
    entry_word = "kernel"
    space = "far "
    restrict = "alone"
    task = "self"

    def head(self, loops: Any) -> str:
        """Functions that all kernels share."""
        return shared("scalar.h")

    def function(self, name: str, body: str) -> str:
        """The function, and one that runs all of its threads in turn."""
        arrays, sizes = len(self.arrays) + 1, len(self.loops.sizes) + 1
        given = [*(f"memory[{n}]" for n in range(arrays)), *(f"numbers[{n}]" for n in range(sizes))]
        loop = f"for (self = 0; self < numbers[{sizes - 1}]; self++) {name}({', '.join(given)});"
        start = f"void start_{name}(void *const *memory, const int *numbers) {{ {loop} }}\n"
        return super().function(name, body) + start


class Tally(Language):
    """The chip."""

    name, about, suffix, built = "tally", "Tally C, for a chip that is made up", ".tally", ".tallybin"

    def printer(self) -> TallyPrinter:
        """Tally C."""
        return TallyPrinter()

    def probe(self) -> Here:
        """The simulator needs a C compiler. It is no chip, so nothing is timed on it."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            return Here("print", reason="the simulator needs a C compiler", fix="apt install gcc")
        return Here("check", "Tally simulator 1", reason="there is no such chip: simulated, and not timed")

    def compile(self, source: Path, out: Path) -> None:
        """The simulator's program."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise NoBackend("the simulator needs a C compiler", hint="apt install gcc")
        text = SIMULATOR + source.read_text(encoding="utf-8")
        command = [compiler, "-O2", "-w", "-shared", "-fPIC", "-x", "c", "-", "-o", str(out), "-lm"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise CompilerError(f"the compiler refused `{source.name}`: {done.stderr[-400:]}")

    def load(self, path: Path, plan: Plan) -> OnDevice:
        """On the simulator."""
        return Loaded(path, plan)


class Loaded(OnDevice):
    """Memory of the chip is bytes that nothing but copies touches."""

    def __init__(self, path: Path, plan: Plan) -> None:
        super().__init__(plan)
        try:
            self.program = ctypes.CDLL(str(path))
        except OSError as error:
            raise CompilerError(f"`{path.name}` is no program of the simulator's") from error

    def allocate(self, size: int) -> np.ndarray[Any, Any]:
        """Set to a pattern: what was not written must not look right by chance."""
        return np.full(size, 0xA5, np.uint8)

    def copy_in(self, buffer: Any, array: Array) -> None:
        """To the chip."""
        buffer[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def copy_out(self, array: Array, buffer: Any) -> None:
        """From the chip."""
        array.reshape(-1).view(np.uint8)[...] = buffer[: array.nbytes]

    def start(self, entry: str, tasks: int, buffers: Sequence[Any], numbers: Sequence[int]) -> None:
        """All threads, one after another."""
        memory = (ctypes.c_void_p * len(buffers))(*(b.ctypes.data for b in buffers))
        self.program[f"start_{entry}"](memory, (ctypes.c_int * len(numbers))(*numbers))

    def wait(self) -> None:
        """The simulator is done when it returns."""


tally = Tally()
