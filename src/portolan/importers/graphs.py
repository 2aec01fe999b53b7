"""A model's file as a program: the one way in for backends."""

from __future__ import annotations

from pathlib import Path

from portolan.core.external import files
from portolan.errors import ModelError
from portolan.importers.program import Program


def program(path: Path, name: str) -> Program:
    """Reads an ONNX file, its external data and the bodies of its functions.

    Args:
        path: the file.
        name: what to call the model in an error.

    Raises:
        ModelError: it cannot be read, or holds an element type that NumPy lacks.
        UnsupportedOperator: an operator that the table lacks.
    """
    import onnx
    from onnx import inliner

    from portolan.importers.reading import read

    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, whose module has no types
        raise ModelError(f"`{path}` cannot be read: {error}", hint="export the model again", where=str(path)) from error
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    if files(proto, path):
        onnx.load_external_data_for_model(proto, str(path.parent))
    return read(proto, name)
