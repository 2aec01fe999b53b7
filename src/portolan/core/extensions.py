"""Compiled operators that models call and runtimes load: only those that this user's own Portolan compiled.

A model names an operator, never a file: what is loaded lies in the user's cache under that name, or came in the same
bundle, or nothing is, and the runtime computes the operator's body, which the model carries.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from pathlib import Path

from portolan.core.carried import MANIFEST, Folder
from portolan.core.folders import cache_folder
from portolan.core.target import Target

FEATURE = "kernels"
"""What a pass produces that puts such operators into a model."""
DOMAIN = "portolan.fused"
"""The domain of such an operator is this and its name."""
_CALLED = re.compile(rb"portolan\.fused\.(fused_[0-9a-f]{12})")


def domain(name: str) -> str:
    """The domain of an operator: one for each, since a runtime takes a domain from one library only."""
    return f"{DOMAIN}.{name}"


def place(name: str, target: Target) -> Path:
    """The folder of an operator, if this user compiled it for such a processor."""
    processor = hashlib.sha256(target.instructions.encode()).hexdigest()[:12]
    return cache_folder() / "kernels" / "operators" / processor / name


def there(name: str, target: Target) -> bool:
    """Whether an operator was compiled."""
    return (place(name, target) / MANIFEST).is_file()


def mentions(path: Path, text: str) -> bool:
    """Whether an ONNX file holds some text, which is searched for from its end, where metadata are."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.rfind(text.encode()) >= 0


def folders(path: Path, target: Target) -> list[Folder]:
    """The folders that are there for the operators of an ONNX file, which is searched and not parsed."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        names = sorted({found[1].decode() for found in _CALLED.finditer(data)})
    return [Folder(place(name, target)) for name in names if there(name, target)]
