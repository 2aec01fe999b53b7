"""Whether an exported graph computes what its source does: both run on the same inputs, and their outputs compared."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from portolan.core.model import Model
from portolan.errors import ModelError, VerificationFailed

if TYPE_CHECKING:
    import numpy as np

#: Agreement asked of float outputs, relative to their spread. Exact runtimes differ by less than 3e-5 of it.
_TOLERANCE = 1e-3
#: Share of whole numbers that may differ: ties may fall either way.
_TIES = 0.01


def agree(
    model: Model,
    feeds: Mapping[str, np.ndarray],
    wanted: Sequence[np.ndarray],
    framework: str,
    *,
    flips: float = 0.0,
    hint: str | None = None,
) -> None:
    """Runs the graph on `feeds` and holds its outputs against the framework's own.

    Args:
        model: the exported model.
        feeds: inputs by name.
        wanted: what the framework computes from them, in the order of the model's outputs.
        framework: its name, for messages.
        flips: share of the rows that may differ: where a tree compares, rounding can take the other branch.
        hint: what to do about it.

    Raises:
        VerificationFailed: says which output differs and how much.
        ModelError: the graph does not run.
    """
    usual = f"the exporter is wrong for this model: try another version of it, and report it to {framework}"
    got = run(model.path, feeds)
    if len(got) != len(wanted):
        raise VerificationFailed(
            f"the ONNX graph of `{model.name}` has {len(got)} outputs, {framework} gives {len(wanted)}",
            hint=hint or usual,
        )
    for spec, expected, actual in zip(model.signature.outputs, wanted, got, strict=True):
        difference = disagreement(expected, actual, framework, flips)
        if difference is not None:
            raise VerificationFailed(
                f"the ONNX graph of `{model.name}` does not compute what {framework} does: "
                f"output `{spec.name}` {difference}",
                hint=hint or usual,
            )


def run(path: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The graph's outputs on one thread of ONNX Runtime, nearly as written.

    Raises:
        ModelError: it cannot be loaded or run.
    """
    # Before the import: afterwards ONNX Runtime has written its device id and looked up its collector.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found: list[np.ndarray] = session.run(None, dict(feeds))
    except Exception as error:  # the runtime raises what it likes
        raise ModelError(
            f"the exported graph `{path.name}` does not run: {first_line(error)}",
            hint="the exporter is wrong for this model: try another version of it",
        ) from error
    return found


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, cut; its type's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def disagreement(expected: np.ndarray, actual: np.ndarray, framework: str = "torch", flips: float = 0.0) -> str | None:
    """How two outputs differ beyond rounding, in words; None if they agree."""
    import numpy as np

    if expected.shape != actual.shape or _kind(expected) != _kind(actual):
        return f"is {actual.dtype} {actual.shape}, {framework}'s {expected.dtype} {expected.shape}"
    if expected.dtype.kind not in "fc":
        share = float(np.mean(expected != actual)) if expected.size else 0.0
        return f"differs in {share:.1%} of its values" if share > max(_TIES, flips) else None
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(actual)):
        return "has NaN or infinity in other places"
    if not finite.any():
        return None
    want, got = expected[finite].astype(np.float64), actual[finite].astype(np.float64)
    spread = max(float(want.std()), float(np.abs(want).max()) * 1e-3)
    allowed = _TOLERANCE * spread + 1e-7
    error = float(np.abs(want - got).max())
    if error <= allowed or (flips and _rows_beyond(expected, actual, allowed) <= flips):
        return None
    return f"differs by {error:.2g}, at a spread of {spread:.2g}"


def _kind(array: np.ndarray) -> str:
    """The element type; strings are one, however they are held."""
    return "string" if array.dtype.kind in "OUS" else str(array.dtype)


def _rows_beyond(expected: np.ndarray, actual: np.ndarray, allowed: float) -> float:
    """The share of rows in which anything differs by more than is allowed."""
    import numpy as np

    if not expected.ndim:
        return 1.0
    far = ~np.isclose(expected.astype(np.float64), actual.astype(np.float64), rtol=0, atol=allowed, equal_nan=True)
    return float(np.mean(far.reshape(len(far), -1).any(axis=1)))
