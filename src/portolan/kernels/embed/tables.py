"""What a door of C needs to know of a kernel: its functions, and the types and axes of what it takes and gives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from portolan.core.carried import Argument, Carried


def tables(operator: Carried, types: Mapping[str, int], names: Mapping[str, str]) -> str:
    """The lines before a door's own code.

    Args:
        operator: the kernel.
        types: the host runtime's number of each element type.
        names: further macros that are strings: the operator's name, its domain.
    """
    symbols, entry, empty = operator.symbols, operator.entry, operator.empty
    most = max(1, *(len(argument.axes) for argument in (*operator.inputs, *operator.outputs)))
    lines = [
        *(f"#define {macro} {quoted(value)}" for macro, value in names.items()),
        f"#define ENTRY {entry}",
        f"#define ENTRY_TASKS {entry}_tasks",
        f"#define ENTRY_WORKSPACE {entry}_workspace",
        f"#define SYMBOLS {len(symbols)}",
        f"#define INPUTS {len(operator.inputs)}",
        f"#define OUTPUTS {len(operator.outputs)}",
        f"#define MOST_AXES {most}",
        f"static const int may_be_empty[SYMBOLS + 1] = {{{', '.join(str(int(s in empty)) for s in symbols) or '0'}}};",
        *_side("input", operator.inputs, symbols, most, types),
        *_side("output", operator.outputs, symbols, most, types),
    ]
    return "\n".join(lines) + "\n"


def _side(
    side: str, arguments: Sequence[Argument], symbols: Sequence[str], most: int, types: Mapping[str, int]
) -> list[str]:
    codes = ", ".join(str(types[argument.dtype]) for argument in arguments)
    ranks = ", ".join(str(len(argument.axes)) for argument in arguments)
    rows = []
    for argument in arguments:
        places = [symbols.index(a) if isinstance(a, str) else -1 - a for a in argument.axes]
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
