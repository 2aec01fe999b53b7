"""PyTorch: an `nn.Module` or a `.pt2` exported program, exported to ONNX and checked against torch.

The exported program is kept beside the graph for the backends that start from it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from portolan.core.frontend import FrontEnd, Made, Shapes
from portolan.core.model import Model
from portolan.errors import UsageError
from portolan.frontends._needs import need

if TYPE_CHECKING:
    from portolan.frontends._torch_inputs import Example


class Torch(FrontEnd):
    """Everything that starts from torch."""

    name = "torch"
    forms = "a `.pt2` file, an `nn.Module`"
    distributions = ("torch", "onnxscript")
    modules = ("torch", "onnxscript")
    frameworks = ("torch", "torchvision", "timm", "transformers")
    fix = "pip install 'portolan[torch]'"

    def accepts(self, source: object) -> bool:
        """By form: torch is not imported to look."""
        if isinstance(source, (str, Path)):
            return Path(source).suffix.lower() == ".pt2"
        return _is_module(source)

    def load(self, source: object, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """See FrontEnd."""
        need(self, source)
        if isinstance(source, (str, Path)):
            return _from_program(Path(source), out, shapes, name)
        called = type(source).__name__.lower()
        return self.convert(Made(source, source=called, called=called), out, shapes, name)

    def convert(self, made: Made, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """See FrontEnd; a module without example inputs may carry `example_inputs`."""
        need(self, made.source)
        from portolan.frontends import _torch_export as export
        from portolan.frontends import _torch_inputs as inputs

        module = made.thing
        given = getattr(module, "example_inputs", None) if made.inputs is None else made.inputs
        example = inputs.example(module, given, made.names, shapes or {}, made.source)
        with inputs.evaluating(module):
            program = export.program(module, example, made.source)
            return export.to_onnx(program, example, out, name or made.called, made.source)


def _is_module(source: object) -> bool:
    """Only code that has imported torch can have a module, so torch is not imported here to ask."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module)


def _from_program(path: Path, out: Path, shapes: Shapes | None, name: str | None) -> Model:
    from portolan.core.graph import freeze_shapes
    from portolan.frontends import _torch_export as export
    from portolan.frontends._pt2 import load_program

    if not path.exists():
        raise UsageError(f"there is no file `{path}`", hint="give a `.pt2` file that `torch.export.save` wrote")
    program = load_program(path)
    example: Example | None = None
    if program.example_inputs is not None:
        from portolan.frontends._torch_inputs import of_program

        example = of_program(program, str(path))
    model = export.to_onnx(program, example, out, name or path.stem, str(path))
    return freeze_shapes(model, shapes, out / "sized") if shapes else model


torch = Torch()
