"""A model as the runtime loads it, with kernels in place of the layers that its metadata name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from portolan.backends._blocked.layers import Layer, Libraries, layers, optimised, put_in
from portolan.backends._blocked.noted import NOTED, Noted
from portolan.core.carried import Carried
from portolan.core.extensions import mentions
from portolan.core.silence import runtime
from portolan.targets.local import local

if TYPE_CHECKING:
    import numpy as np
    import onnx


@dataclass(frozen=True)
class Rewritten:
    """A graph in the runtime's form with kernels in place of layers.

    Attributes:
        path: its file, which only declares the kernels' constants.
        constants: those, by name.
        layers: how many kernels compute.
    """

    path: Path
    constants: Mapping[str, np.ndarray]
    layers: int

    def give(self, settings: Any) -> None:
        """Gives a session's options the constants, which must outlive the session: none of them is copied."""
        value = runtime("onnxruntime").OrtValue.ortvalue_from_numpy
        settings.add_external_initializers(list(self.constants), [value(array) for array in self.constants.values()])


@contextmanager
def rewritten(path: Path, kernels: Sequence[Carried], libraries: Libraries) -> Iterator[Rewritten | None]:
    """A graph with the kernels that its metadata name, for as long as the runtime needs it to load.

    Args:
        path: the model.
        kernels: those that are there, whose libraries are among `libraries`.

    Returns:
        None where they name none, or no layer is one that was measured, as with another version of the runtime; and
        where the package `onnx` is not installed, as on a machine that only runs bundles.
    """
    usable = _usable(path, kernels) if kernels and mentions(path, NOTED) else {}
    if not usable:
        yield None
        return
    # What the runtime has mapped into memory stays there when the file is gone, where the system allows that at all.
    with TemporaryDirectory(prefix="portolan-blocked-", ignore_cleanup_errors=True) as scratch:
        proto = optimised(path, Path(scratch), libraries)
        chosen = [
            (one, kernel)
            for one in layers(proto, local.processor())
            if (kernel := usable.get((one.key, one.added))) is not None
        ]
        yield _written(proto, chosen, Path(scratch)) if chosen else None


def _usable(path: Path, kernels: Sequence[Carried]) -> dict[tuple[str, bool], Carried]:
    """The kernel of each layer, by its key and by whether its results are added to another tensor."""
    try:
        import onnx
    except ImportError:
        return {}
    noted, there = Noted.read(onnx.load(path, load_external_data=False)), {kernel.name: kernel for kernel in kernels}
    return {
        (key, added): there[name]
        for key, out in noted.layers.items()
        for added in (False, True)
        if (name := noted.operators.get((out, added))) in there
    }


def _written(proto: onnx.ModelProto, chosen: Sequence[tuple[Layer, Carried]], folder: Path) -> Rewritten:
    import onnx

    made = put_in(proto, chosen)
    for name, array in made.items():
        declared = proto.graph.initializer.add(name=name, dims=array.shape, data_type=onnx.TensorProto.FLOAT)
        declared.data_location = onnx.TensorProto.EXTERNAL
        declared.external_data.add(key="location", value="given")
    path = folder / "given.onnx"
    path.write_bytes(proto.SerializeToString())
    return Rewritten(path, made, len(chosen))
