"""NNCF's recipes for static int8. It lives in an environment of its own: see `Pass.module`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from portolan.core.silence import runtime
from portolan.errors import ModelError, UsageError
from portolan.passes._graphs import hushed
from portolan.passes._observe import Feeds
from portolan.passes._products import attends

if TYPE_CHECKING:
    import onnx


def nncf(graph: onnx.ModelProto, fit: Sequence[Feeds], name: str) -> onnx.ModelProto:
    """The graph as `nncf.quantize` leaves it; as a transformer where it attends.

    Raises:
        UsageError: NNCF is not installed here.
        ModelError: the graph holds something that NNCF cannot handle.
    """
    runtime("onnxruntime")
    try:
        with hushed():
            library = runtime("nncf")
    except ImportError as error:
        raise UsageError("`method=nncf` needs the package `nncf`", hint="pip install nncf") from error
    kind = {"model_type": library.ModelType.TRANSFORMER} if attends(graph) else {}
    try:
        with hushed():
            data = library.Dataset([dict(feeds) for feeds in fit])
            result: onnx.ModelProto = library.quantize(copy.deepcopy(graph), data, subset_size=len(fit), **kind)
    except Exception as error:  # third-party code over any graph: whatever it raises is the reason
        raise ModelError(
            f"NNCF cannot quantize `{name}`: {type(error).__name__}: {error}",
            hint="use `quantize` with `method=auto`",
        ) from error
    return result
