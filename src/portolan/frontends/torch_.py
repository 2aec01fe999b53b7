"""PyTorch: an `nn.Module`, a `.pt2` exported program, or `file.py:factory`, exported to ONNX and checked against torch.

The exported program is kept beside the graph for the backends that start from it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.core import userfile
from portolan.core.frontend import FrontEnd, Shapes
from portolan.core.model import Model
from portolan.errors import NoBackend, UsageError

if TYPE_CHECKING:
    from portolan.frontends._torch_inputs import Example


class Torch(FrontEnd):
    """Everything that starts from torch."""

    name = "torch"
    forms = "a `.pt2` file, `file.py:factory`, an `nn.Module`"
    distributions = ("torch", "onnxscript")

    def accepts(self, source: object) -> bool:
        """By form: torch is not imported to look."""
        if isinstance(source, (str, Path)):
            return Path(source).suffix.lower() == ".pt2" or userfile.is_reference(source)
        return _is_module(source)

    def load(self, source: object, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """See FrontEnd. A factory returns a module with `example_inputs`, or (module, inputs[, input names])."""
        _need_torch(source)
        if isinstance(source, (str, Path)) and not userfile.is_reference(source):
            return _from_program(Path(source), out, shapes, name)
        if isinstance(source, (str, Path)):
            made, called = _call(source), userfile.split(source)[1]
        else:
            made, called = source, type(source).__name__.lower()
        return _from_module(made, out, shapes, name or called, str(source) if made is not source else called)


def _is_module(source: object) -> bool:
    """Only code that has imported torch can have a module, so torch is not imported here to ask."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module)


def _need_torch(source: object) -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        what = source if isinstance(source, (str, Path)) else type(source).__name__
        raise NoBackend(
            f"reading `{what}` needs torch, which is not installed", hint="pip install 'portolan[torch]'"
        ) from error


def _call(source: str | Path) -> Any:
    factory = userfile.function(source)
    with userfile.importing_from(userfile.split(source)[0].resolve().parent), userfile.blamed_on(source):
        return factory()


def _from_module(made: Any, out: Path, shapes: Shapes | None, name: str, source: str) -> Model:
    from portolan.frontends import _torch_export as export
    from portolan.frontends import _torch_inputs as inputs

    module, given, names = _unpacked(made, source)
    example = inputs.example(module, given, names, shapes or {}, source)
    with inputs.evaluating(module):
        program = export.program(module, example, source)
        return export.to_onnx(program, example, out, name, source)


def _unpacked(made: Any, source: str) -> tuple[Any, Any, list[str] | None]:
    """The module, its example inputs and input names, from what a factory may return."""
    parts = made if isinstance(made, tuple) else (made,)
    if not _is_module(parts[0] if parts else None) or len(parts) > 3:
        raise UsageError(
            f"`{source}` gives {type(made).__name__}, expected an nn.Module",
            hint="return the module, (module, example_inputs) or (module, example_inputs, input_names)",
        )
    given = parts[1] if len(parts) > 1 else getattr(parts[0], "example_inputs", None)
    return parts[0], given, list(parts[2]) if len(parts) > 2 else None


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
