"""External data of an ONNX file: tensors stored in files beside it. They may not lie anywhere else.

A location comes from a file that a stranger may have made: `../../etc/passwd`, an absolute path or a symbolic link
would make a runtime read, and a bundle ship, what its owner never meant to give.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from portolan.core import protos
from portolan.core.files import sha256
from portolan.errors import ModelError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Stored:
    """Where one tensor's bytes are: `length` bytes from `offset` of the file `location`, relative to the model."""

    tensor: str
    location: str
    offset: int
    length: int


def stored(model: onnx.ModelProto, path: Path) -> list[Stored]:
    """Every tensor stored outside the file, checked: inside the model's folder, within its file, of the right size.

    Args:
        model: the graph, read without its external data.
        path: where the graph was read from.

    Raises:
        ModelError: a location outside the folder, a missing file, or a wrong offset or length.
    """
    import onnx

    external = [t for t in protos.tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    sizes: dict[str, int] = {}
    return [_stored(tensor, path, sizes) for tensor in external]


def _stored(tensor: onnx.TensorProto, path: Path, sizes: dict[str, int]) -> Stored:
    where = f"tensor `{tensor.name}` of {path.name}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if location not in sizes:
        sizes[location] = inside(path, location, where).stat().st_size
    needed = math.ceil(math.prod(tensor.dims) * protos.bits(tensor.data_type) / 8)
    offset = _number(entries.get("offset", "0"), "offset", where)
    length = _number(entries.get("length", str(needed)), "length", where)
    if length != needed:
        raise ModelError(
            f"the external data of `{tensor.name}` is {length} bytes long, its type and shape need {needed}",
            hint="the graph and its data do not belong together: export the model again",
            where=where,
        )
    if offset + length > sizes[location]:
        raise ModelError(
            f"the external data file `{location}` is {sizes[location]} bytes long, "
            f"`{tensor.name}` ends at byte {offset + length}",
            hint="the file is truncated or not the model's: copy it again, whole",
            where=where,
        )
    return Stored(tensor.name, location, offset, length)


def _number(text: str, key: str, where: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ModelError(
            f"the {key} `{text[:40]}` of external data is not a byte count",
            hint="the graph is damaged: export the model again",
            where=where,
        )
    return int(text)


def inside(path: Path, location: str, where: str | None = None) -> Path:
    """The file at `location`, which must be a regular file in the folder of the model at `path` or below it.

    Raises:
        ModelError: it is absolute, leaves the folder (by `..` or by a symbolic link), or is not there.
    """
    hint = "put the data file beside the model and save the model with a plain file name as its location"
    pure, windows = PurePosixPath(location), PureWindowsPath(location)
    outside = pure.is_absolute() or windows.drive or windows.root or ".." in pure.parts or ".." in windows.parts
    if outside or not location or "\0" in location:
        raise ModelError(f"external data at `{location}` lies outside the model's folder", hint=hint, where=where)
    folder = path.parent.resolve()
    file = folder / location
    if not file.resolve().is_relative_to(folder):
        raise ModelError(
            f"external data at `{location}` is a symbolic link out of the model's folder", hint=hint, where=where
        )
    if not file.is_file():
        raise ModelError(
            f"external data `{location}` is missing",
            hint=f"copy `{location}` into the folder of `{path.name}`: the model's weights are in it",
            where=where,
        )
    return file


def files(model: onnx.ModelProto, path: Path) -> list[str]:
    """The locations of the external data files, each once, sorted; checked as in `stored`."""
    return sorted({entry.location for entry in stored(model, path)})


def digest(graph_sha256: str, path: Path, locations: list[str]) -> str:
    """The content hash of a model: that of its file, and with external data of all its files and their names."""
    if not locations:
        return graph_sha256
    parts: list[object] = [graph_sha256]
    for location in locations:
        parts.append([location, sha256(inside(path, location))])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
