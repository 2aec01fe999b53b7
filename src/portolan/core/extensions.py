"""Compiled operators that models call and runtimes load: only those that this user's own Portolan compiled.

A model names an operator, never a file: what is loaded lies in the user's cache under that name, or nothing is, and the
runtime computes the operator's body, which the model carries.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from pathlib import Path

from portolan.core.folders import cache_folder
from portolan.core.target import Target

FEATURE = "kernels"
"""What a pass produces that puts such operators into a model."""
DOMAIN = "portolan.fused"
"""The domain of such an operator is this and its name."""
_NAME = re.compile(r"fused_[0-9a-f]{12}")


def place(name: str, target: Target) -> Path:
    """Where the library of an operator lies, if this user compiled it for such a processor."""
    processor = hashlib.sha256(target.instructions.encode()).hexdigest()[:12]
    return cache_folder() / "kernels" / "operators" / processor / f"{name}.so"


def libraries(path: Path, target: Target) -> list[Path]:
    """The libraries that are there for the operators of an ONNX file; one without such operators is not parsed."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(f"{DOMAIN}.fused_".encode()) < 0:
            return []
    import onnx

    nodes = onnx.load(str(path), load_external_data=False).graph.node
    names = sorted({n.op_type for n in nodes if n.domain == f"{DOMAIN}.{n.op_type}" and _NAME.fullmatch(n.op_type)})
    return [found for name in names if (found := place(name, target)).is_file()]
