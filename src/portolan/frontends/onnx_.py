"""ONNX files, read in place; only free dimensions that get a size, and sequences at the edge, make a new file."""

from __future__ import annotations

from pathlib import Path

from portolan.core.frontend import FrontEnd, Shapes
from portolan.core.model import Model


class Onnx(FrontEnd):
    """`.onnx` files, with external data beside them or without."""

    name = "onnx"
    forms = "an `.onnx` file"

    def accepts(self, source: object) -> bool:
        """By the extension."""
        return isinstance(source, (str, Path)) and Path(source).suffix.lower() == ".onnx"

    def load(self, source: object, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """See FrontEnd."""
        from portolan.core.graph import NoTensor, freeze_shapes, load_model, read
        from portolan.frontends import _sequences

        path = Path(str(source))
        try:
            model = load_model(path, name=name)
        except NoTensor:
            proto = read(path)
            if not _sequences.on_edge(proto):
                raise
            model = load_model(_sequences.lowered(path, proto, Path(out) / "tensors"), name=name)
        return freeze_shapes(model, shapes, out) if shapes else model


onnx = Onnx()
