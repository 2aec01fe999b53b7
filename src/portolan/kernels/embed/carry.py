"""Compiled kernels in the form in which they travel with a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from portolan.core.carried import Argument, Carried, Folder, write
from portolan.kernels.embed.empty import may_be_empty
from portolan.kernels.embed.function import DOMAIN
from portolan.kernels.printers.c import function_name
from portolan.kernels.tree import Program, Tensor, extents_of


def carry(folder: Path, libraries: Sequence[tuple[Program, Path]], domain: str = DOMAIN) -> Folder:
    """Writes libraries (as `embed.ort.library` made them, their source beside them) into a folder."""
    return write(folder, [_one(program, path, domain) for program, path in libraries])


def _one(program: Program, path: Path, domain: str) -> tuple[Carried, bytes, bytes]:
    library, source = path.read_bytes(), path.with_suffix(".c").read_bytes()
    extents = extents_of(program)
    outputs = tuple(Argument(o.name, o.dtype, tuple(extents[str(a)] for a in o.axes)) for o in program.outputs)
    about = Carried(
        domain=domain,
        name=program.name,
        entry=function_name(program.name),
        library=f"{program.name}.so",
        source=f"{program.name}.c",
        sha256=hashlib.sha256(library).hexdigest(),
        symbols=program.symbols,
        empty=tuple(sorted(may_be_empty(program))),
        inputs=tuple(_argument(t) for t in program.inputs),
        outputs=outputs,
    )
    return about, library, source


def _argument(tensor: Tensor) -> Argument:
    return Argument(tensor.name, tensor.dtype, tensor.axes)
