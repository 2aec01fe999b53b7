"""A kernel as a library that ONNX Runtime loads: the kernel's own code, and a door of C behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from portolan.core.carried import Carried
from portolan.kernels.compiler import Compiler
from portolan.kernels.embed.carry import about
from portolan.kernels.embed.function import DOMAIN
from portolan.kernels.embed.tables import tables
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.tree import Program
from portolan.kernels.tune import source

#: Element types by ONNX Runtime's numbers.
_TYPES = {"f32": 1, "f16": 10, "bf16": 16, "i8": 3, "i32": 6}


def door(operator: Carried) -> str:
    """The C code that makes an operator of a kernel; the kernel's code stands before it."""
    head = tables(operator, _TYPES, {"NAME": operator.name, "DOMAIN_NAME": operator.domain})
    return head + (Path(__file__).parent / "ort_door.c").read_text(encoding="utf-8")


def library(program: Program, schedules: Sequence[Schedule], compiler: Compiler, domain: str = DOMAIN) -> Path:
    """The compiled library: `RegisterCustomOps` for ONNX Runtime, and the kernel's own functions for all others.

    Raises:
        CompilerError: it could not be compiled.
    """
    return compiler.build(source(program, schedules) + "\n" + door(about(program, domain)))
