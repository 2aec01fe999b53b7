"""What a door of C needs to know of a kernel: its functions, and the types and axes of what it takes and gives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from portolan.kernels.embed.empty import may_be_empty
from portolan.kernels.printers.c import function_name
from portolan.kernels.tree import Extent, Program, extents_of


def tables(program: Program, types: Mapping[str, int], names: Mapping[str, str]) -> str:
    """The lines before a door's own code.

    Args:
        program: the kernel.
        types: the host runtime's number of each element type.
        names: further macros that are strings: the operator's name, its domain.
    """
    empty = may_be_empty(program)
    symbols, extents, entry = program.symbols, extents_of(program), function_name(program.name)
    inputs = [(t.dtype, t.axes) for t in program.inputs]
    outputs = [(t.dtype, tuple(extents[str(a)] for a in t.axes)) for t in program.outputs]
    most = max(1, *(len(axes) for _, axes in (*inputs, *outputs)))
    lines = [
        *(f"#define {macro} {quoted(value)}" for macro, value in names.items()),
        f"#define ENTRY {entry}",
        f"#define ENTRY_TASKS {entry}_tasks",
        f"#define ENTRY_WORKSPACE {entry}_workspace",
        f"#define SYMBOLS {len(symbols)}",
        f"#define INPUTS {len(inputs)}",
        f"#define OUTPUTS {len(outputs)}",
        f"#define MOST_AXES {most}",
        f"static const int may_be_empty[SYMBOLS + 1] = {{{', '.join(str(int(s in empty)) for s in symbols) or '0'}}};",
        *_side("input", inputs, symbols, most, types),
        *_side("output", outputs, symbols, most, types),
    ]
    return "\n".join(lines) + "\n"


def _side(
    side: str,
    tensors: Sequence[tuple[str, tuple[Extent, ...]]],
    symbols: Sequence[str],
    most: int,
    types: Mapping[str, int],
) -> list[str]:
    codes = ", ".join(str(types[dtype]) for dtype, _ in tensors)
    ranks = ", ".join(str(len(axes)) for _, axes in tensors)
    rows = []
    for _, axes in tensors:
        places = [symbols.index(a) if isinstance(a, str) else -1 - a for a in axes]
        rows.append("{" + ", ".join(map(str, places or [0])) + "}")
    return [
        f"static const int {side}_types[] = {{{codes}}}, {side}_ranks[] = {{{ranks}}};",
        f"static const int64_t {side}_axes[][{most}] = {{{', '.join(rows)}}};",
    ]


def quoted(text: str) -> str:
    """A C string of any text: whatever is not a plain character is written as its bytes."""
    plain = json.dumps(text, ensure_ascii=True)
    if "\\" not in plain and "?" not in plain:
        return plain
    return '"' + "".join(f"\\{byte:03o}" for byte in text.encode()) + '"'
