"""A kernel as a library that ONNX Runtime loads: the kernel's own code, and a door of C behind it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from portolan.kernels.compiler import Compiler
from portolan.kernels.embed.function import DOMAIN
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.printers.c import function_name
from portolan.kernels.tree import Extent, Program, extents_of
from portolan.kernels.tune import source

#: Element types by ONNX Runtime's numbers.
_TYPES = {"f32": 1, "f16": 10, "bf16": 16, "i8": 3, "i32": 6}


def door(program: Program, domain: str = DOMAIN, name: str | None = None) -> str:
    """The C code that makes an operator of a kernel; the kernel's code stands before it.

    Names of a kernel and its operator are Python identifiers or checked by the caller; they are quoted all the same.
    """
    symbols = program.symbols
    extents = extents_of(program)
    inputs = [(t.dtype, t.axes) for t in program.inputs]
    outputs = [(t.dtype, tuple(extents[str(a)] for a in t.axes)) for t in program.outputs]
    most = max(1, *(len(axes) for _, axes in (*inputs, *outputs)))
    entry = function_name(program.name)
    lines = [
        f"#define NAME {_quoted(name or program.name)}",
        f"#define DOMAIN_NAME {_quoted(domain)}",
        f"#define ENTRY {entry}",
        f"#define ENTRY_TASKS {entry}_tasks",
        f"#define ENTRY_WORKSPACE {entry}_workspace",
        f"#define SYMBOLS {len(symbols)}",
        f"#define INPUTS {len(inputs)}",
        f"#define OUTPUTS {len(outputs)}",
        f"#define MOST_AXES {most}",
        *_tables("input", inputs, symbols, most),
        *_tables("output", outputs, symbols, most),
    ]
    return "\n".join(lines) + "\n" + (Path(__file__).parent / "ort_door.c").read_text(encoding="utf-8")


def _tables(
    side: str, tensors: Sequence[tuple[str, tuple[Extent, ...]]], symbols: Sequence[str], most: int
) -> list[str]:
    types = ", ".join(str(_TYPES[dtype]) for dtype, _ in tensors)
    ranks = ", ".join(str(len(axes)) for _, axes in tensors)
    rows = []
    for _, axes in tensors:
        places = [symbols.index(a) if isinstance(a, str) else -1 - a for a in axes]
        rows.append("{" + ", ".join(map(str, places or [0])) + "}")
    return [
        f"static const int {side}_types[] = {{{types}}}, {side}_ranks[] = {{{ranks}}};",
        f"static const int64_t {side}_axes[][{most}] = {{{', '.join(rows)}}};",
    ]


def _quoted(text: str) -> str:
    """A C string of any text: whatever is not a plain character is written as its bytes."""
    plain = json.dumps(text, ensure_ascii=True)
    if plain[1:-1].isascii() and "\\" not in plain:
        return plain
    return '"' + "".join(f"\\{byte:03o}" for byte in text.encode()) + '"'


def library(program: Program, schedules: Sequence[Schedule], compiler: Compiler, domain: str = DOMAIN) -> Path:
    """The compiled library: `RegisterCustomOps` for ONNX Runtime, and the kernel's own functions for all others.

    Raises:
        CompilerError: it could not be compiled.
    """
    return compiler.build(source(program, schedules) + "\n" + door(program, domain))
