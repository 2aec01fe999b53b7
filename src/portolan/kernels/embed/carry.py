"""Compiled kernels in the form in which they travel with a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from portolan.core.carried import Argument, Carried, Folder, write
from portolan.kernels.embed.empty import may_be_empty
from portolan.kernels.embed.function import DOMAIN
from portolan.kernels.printers.c import function_name
from portolan.kernels.tree import Program, Tensor, extents_of
from portolan.targets.local import local


def about(program: Program, domain: str = DOMAIN) -> Carried:
    """A kernel as an operator: what it is called, and what it takes and gives. It has no library yet."""
    extents = extents_of(program)
    return Carried(
        domain=domain,
        name=program.name,
        entry=function_name(program.name),
        library=f"{program.name}.so",
        source=f"{program.name}.c",
        sha256="",
        symbols=program.symbols,
        empty=tuple(sorted(may_be_empty(program))),
        inputs=tuple(_argument(t) for t in program.inputs),
        outputs=tuple(Argument(o.name, o.dtype, tuple(extents[str(a)] for a in o.axes)) for o in program.outputs),
    )


def carry(folder: Path, libraries: Sequence[tuple[Program, Path]], domain: str = DOMAIN) -> Folder:
    """Writes kernels' libraries (as `embed.ort.library` made them, their source beside them) into a folder."""
    return placed(folder, [(about(program, domain), path) for program, path in libraries])


def placed(folder: Path, operators: Sequence[tuple[Carried, Path]]) -> Folder:
    """Writes operators' libraries, each with the source that lies beside it, into a folder.

    They were compiled here, for this processor.
    """
    made, here = [], tuple(local.processor().instructions.split())
    for operator, path in operators:
        library, source = path.read_bytes(), path.with_suffix(".c").read_bytes()
        made.append((replace(operator, sha256=hashlib.sha256(library).hexdigest(), needs=here), library, source))
    return write(folder, made)


def _argument(tensor: Tensor) -> Argument:
    return Argument(tensor.name, tensor.dtype, tensor.axes)
