"""What the backends here share: the saved form of a model, and saying what a runtime means by its errors."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portolan.core import carried, extensions, external, storage
from portolan.core.carried import Carried
from portolan.core.model import Model
from portolan.core.signature import Signature, TensorSpec
from portolan.errors import ModelError, PortolanError, UnsupportedOperator
from portolan.targets.local import local

_SIGNATURE = "signature.json"
#: Where compiled kernels are in a saved folder.
KERNELS = "kernels"
_LONGEST_REASON = 300
#: Features of weights that hold many zeros, which pack well.
_ZEROS = "sparsity:"

#: A compiled kernel, and the folder that it lies in.
Operator = tuple[Carried, carried.Folder]


@dataclass(frozen=True)
class Artefact:
    """One model file, its signature, and the features that passes gave it; on disk a folder of its own.

    Attributes:
        path: an ONNX file, whose external data lies beside it, or a compiled package. Where a saved folder is packed
            it is not there: `unpacked` gives it.
        signature: names in the order in which the runtime counts inputs and outputs.
        features: as in Model.
        kernels: a folder of compiled kernels, as in Model.
    """

    path: Path
    signature: Signature
    features: tuple[str, ...] = ()
    kernels: Path | None = None

    @classmethod
    def of(cls, model: Model, path: Path | None = None) -> Artefact:
        """The artefact of `model`, or of the file `path` made from it."""
        return cls(path or model.path, model.signature, model.features, model.kernels)

    @classmethod
    def open(cls, folder: Path, name: str = "model.onnx") -> Artefact:
        """Finds what `save` wrote.

        Raises:
            ModelError: the folder does not hold it.
        """
        place = folder / _SIGNATURE
        try:
            data = json.loads(place.read_text())
            sides = {
                side: tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in data[side])
                for side in ("inputs", "outputs")
            }
            kernels = folder / KERNELS if (folder / KERNELS).is_dir() else None
            return cls(folder / name, Signature(**sides), tuple(data["features"]), kernels)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"`{folder}` holds no compiled model: {error}", hint="compile the model again", where=str(place)
            ) from error

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs' names."""
        return tuple(spec.name for spec in self.signature.outputs)

    @contextlib.contextmanager
    def unpacked(self) -> Iterator[Path]:
        """The model's file, for as long as a runtime needs it to load; see portolan.core.storage."""
        if not storage.packed(self.path.parent):
            yield self.path
            return
        with tempfile.TemporaryDirectory() as scratch:
            storage.unpack(self.path.parent, Path(scratch))
            yield Path(scratch) / self.path.name

    def operators(self, path: Path) -> list[Operator]:
        """Compiled kernels of the graph's operators, with their folders: what came with it, then this user's own.

        Those for another processor are left out: the operators' bodies run.
        """
        folders = [] if self.kernels is None else [carried.Folder(self.kernels)]
        if path.suffix == ".onnx":
            folders += extensions.folders(path, local.processor())
        here = set(local.processor().instructions.split())
        found: dict[tuple[str, str], Operator] = {}
        for folder in folders:
            for kernel in (one for one in folder.kernels() if here.issuperset(one.needs)):
                found.setdefault((kernel.domain, kernel.name), (kernel, folder))
        return list(found.values())

    def save(self, folder: Path, operators: Sequence[Operator] = ()) -> None:
        """Puts the file, its external data and the signature into `folder`; packed where that makes them smaller.

        Compiled kernels that the runtime took go along, so that what was saved runs anywhere as it did here.
        The file is a hard link where the file system can: twenty recipes may share one graph. Its external data is
        copied, because ONNX refuses data with several links, and would refuse the user's own file from then on.
        """
        with self.unpacked() as path:
            self._save(path, folder)
        data = {
            "inputs": [spec.to_json() for spec in self.signature.inputs],
            "outputs": [spec.to_json() for spec in self.signature.outputs],
            "features": list(self.features),
        }
        (folder / _SIGNATURE).write_text(json.dumps(data))
        if operators:
            carried.write(folder / KERNELS, [(kernel, *home.contents(kernel)) for kernel, home in operators])

    def _save(self, path: Path, folder: Path) -> None:
        beside = external_files(path) if path.suffix == ".onnx" else []
        if any(feature.startswith(_ZEROS) for feature in self.features) and all("/" not in name for name in beside):
            with tempfile.TemporaryDirectory() as scratch:
                named = Path(scratch) / f"model{path.suffix}"
                _link(path, named)
                storage.pack([named, *(path.parent / name for name in beside)], folder)
            return
        _link(path, folder / f"model{path.suffix}")
        for location in beside:
            (folder / location).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path.parent / location, folder / location)


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(source.resolve(), destination)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, destination)


def external_files(path: Path) -> list[str]:
    """The files, relative to an ONNX file's folder, that hold its external data.

    Raises:
        ModelError: one is missing, or lies outside that folder.
    """
    import onnx

    return external.files(onnx.load(str(path), load_external_data=False), path)


def all_cores() -> int:
    """How many threads "all cores" are where this process runs: a saved model may have moved."""
    return local.processor().cores


@contextlib.contextmanager
def explained(backend: str, path: Path, *operators: str, doing: str = "read") -> Iterator[None]:
    """Turns what a runtime raises while it reads or compiles `path` into Portolan's errors.

    Args:
        backend: its name.
        path: the model's file.
        operators: patterns whose first group is the operator that the runtime says it lacks.
        doing: the verb of the message.

    Raises:
        UnsupportedOperator: a pattern matched.
        ModelError: anything else.
    """
    if not path.is_file() and not storage.packed(path.parent):
        raise ModelError(f"the model file `{path}` does not exist", hint="check the path", where=str(path))
    try:
        yield
    except (PortolanError, MemoryError):
        raise
    except Exception as error:
        text = str(error)
        for pattern in operators:
            if found := re.search(pattern, text):
                raise UnsupportedOperator(
                    f"`{backend}` has no operator `{found[1]}`", hint=other(backend), where=str(path)
                ) from error
        raise ModelError(
            f"`{backend}` cannot {doing} `{path.name}`: {_reason(text) or type(error).__name__}",
            hint=f"`portolan inspect {path}` says what is wrong with it",
            where=str(path),
        ) from error


def other(backend: str) -> str:
    """The hint for an operator that a backend lacks."""
    if backend == "onnxruntime":
        return "`--backend reference` has every operator that ONNX itself defines, slowly"
    return "`--backend onnxruntime` has the most operators"


def _reason(text: str) -> str:
    """A runtime's message without the lines that only say where in its own source it was."""
    lines = (line.strip() for line in text.splitlines())
    kept = " ".join(line for line in lines if line and not line.startswith(("Exception from ", "Check '")))
    return kept if len(kept) <= _LONGEST_REASON else kept[: _LONGEST_REASON - 1] + "…"


def demand(backend: str, asked: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    """Compares what a loaded runtime says it does with what was asked of it: falling back silently is a failure.

    Raises:
        PortolanError: they differ.
    """
    for key, value in asked.items():
        if got.get(key) != value:
            raise PortolanError(
                f"`{backend}` was asked for {key} `{value}` and runs with `{got.get(key)}`",
                hint=f"ask for what this machine has: `portolan doctor` lists it, or leave `{key}` out",
            )
