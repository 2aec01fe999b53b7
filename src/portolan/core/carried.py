"""Compiled kernels that travel with a model: libraries for functions of its graph, their source, and what they take.

A folder of them holds `kernels.json`, and for each kernel a library and the C source it was compiled from. They are
made of the user's own Python (`portolan kernel OPS.py --for MODEL`), never of anything that a model says; the libraries
are loaded by workers only, after their checksums were compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from portolan.core.files import sha256
from portolan.core.native import Library
from portolan.errors import VerificationFailed

MANIFEST = "kernels.json"
Axes = tuple[int | str, ...]


@dataclass(frozen=True)
class Argument:
    """An argument or a result: name, type (f32, f16, bf16, i8, i32) and axes, each a symbol or a size."""

    name: str
    dtype: str
    axes: Axes


@dataclass(frozen=True)
class Carried:
    """One compiled kernel.

    Attributes:
        domain, name: the operator in the graph.
        entry: the library's function.
        library, source: file names.
        sha256: of the library.
        symbols: whose sizes the function takes, in order.
        empty: those of them that may be 0 where the results are not empty.
        needs: the processor that the library is for: its architecture and features. Others must not run it.
    """

    domain: str
    name: str
    entry: str
    library: str
    source: str
    sha256: str
    symbols: tuple[str, ...]
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    empty: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def sizes(self, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
        """The size of each symbol.

        Raises:
            ValueError: shapes that do not fit each other.
        """
        found: dict[str, int] = {}
        for argument, shape in zip(self.inputs, shapes, strict=True):
            if len(shape) != len(argument.axes):
                raise ValueError(f"`{self.name}`: `{argument.name}` has {len(shape)} axes, not {len(argument.axes)}")
            for axis, size in zip(argument.axes, shape, strict=True):
                wanted = axis if isinstance(axis, int) else found.setdefault(axis, size)
                if wanted != size or not 0 <= size < 2**31:
                    raise ValueError(f"`{self.name}`: an axis of `{argument.name}` is {size} and not {wanted}")
        missing = [axis for axis, size in found.items() if size == 0 and axis not in self.empty]
        if missing and not any(0 in shape for shape in self.results(found)):
            raise ValueError(f"`{self.name}`: the axis `{missing[0]}` is empty, and is read all the same")
        return found

    def results(self, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
        """The shape of each result."""
        return [tuple(a if isinstance(a, int) else sizes[a] for a in o.axes) for o in self.outputs]


@dataclass(frozen=True)
class Folder:
    """A folder of compiled kernels."""

    path: Path

    def kernels(self) -> tuple[Carried, ...]:
        """What is in it, with checksums compared.

        Raises:
            VerificationFailed: a library is missing, is another than was written, or the list cannot be read.
        """
        try:
            rows = json.loads((self.path / MANIFEST).read_bytes())
            found = tuple(_carried(row) for row in rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VerificationFailed(f"`{self.path / MANIFEST}` cannot be read: {error}", hint=_AGAIN) from error
        for kernel in found:
            self._compare(kernel)
        return found

    def file(self, kernel: Carried) -> Path:
        """The library's file."""
        return self.path / Path(kernel.library).name

    def contents(self, kernel: Carried) -> tuple[bytes, bytes]:
        """The library and its source."""
        return self.file(kernel).read_bytes(), (self.path / Path(kernel.source).name).read_bytes()

    def library(self, kernel: Carried) -> Library:
        """The library, loaded into this process: a worker."""
        return Library(self.file(kernel), kernel.entry, kernel.symbols)

    def _compare(self, kernel: Carried) -> None:
        file = self.file(kernel)
        try:
            seen = sha256(file)
        except OSError as error:
            raise VerificationFailed(f"the library `{file}` cannot be read: {error.strerror}", hint=_AGAIN) from error
        if seen != kernel.sha256:
            raise VerificationFailed(f"the library `{file}` is not the one that was compiled", hint=_AGAIN)


_AGAIN = "compile the kernels again: `portolan kernel OPS.py --for MODEL`"


def write(folder: Path, kernels: Sequence[tuple[Carried, bytes, bytes]]) -> Folder:
    """Writes kernels, each with its library and source, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for kernel, library, source in kernels:
        (folder / kernel.library).write_bytes(library)
        (folder / kernel.source).write_bytes(source)
    rows = [asdict(kernel) for kernel, _, _ in kernels]
    (folder / MANIFEST).write_text(json.dumps(rows, indent=1, sort_keys=True), encoding="utf-8")
    return Folder(folder)


def _carried(row: Mapping[str, object]) -> Carried:
    data = dict(row)
    for side in ("inputs", "outputs"):
        items = data[side]
        if not isinstance(items, list):
            raise TypeError(f"`{side}` is no list")
        data[side] = tuple(Argument(i["name"], i["dtype"], tuple(i["axes"])) for i in items)
    data["symbols"] = tuple(data["symbols"])  # type: ignore[arg-type]
    for name in ("empty", "needs"):
        data[name] = tuple(data.get(name, ()))  # type: ignore[arg-type]
    return Carried(**data)  # type: ignore[arg-type]
