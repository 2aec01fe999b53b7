"""What the front ends for tables share: inputs, samples to compare on, and writing the converted graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.core.frontend import Shapes
from portolan.core.model import Model
from portolan.errors import ModelError, UsageError
from portolan.frontends import _graphs as graphs
from portolan.frontends._graphs import LARGEST

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: Operator sets that every runtime with trees reads.
OPSETS = {"": 18, "ai.onnx.ml": 3}
#: Rows to compare on where the user gives none.
ROWS = 256
#: A comparison in a tree may fall the other way in float32: so many rows may differ.
FLIPS = 0.01


@dataclass(frozen=True)
class Table:
    """Sample rows, as columns for the graph and as the whole that the framework takes.

    Attributes:
        columns: an array per input, each (rows, 1) or (rows, features).
        whole: what `predict` takes: an array, or a DataFrame.
    """

    columns: dict[str, np.ndarray]
    whole: Any


def table(given: Any, names: list[str] | None, features: int | None, middle: Sequence[Any], source: str) -> Table:
    """The sample rows: the user's, or made up.

    Args:
        given: a 2-D array, a DataFrame, or None.
        names: what to call the inputs.
        features: how many the model was fitted on, if it says so.
        middle: per feature, (low, high) between which samples tell something; empty for a normal distribution.
        source: for messages.

    Raises:
        UsageError: neither samples nor a number of features, or samples of no such form.
    """
    import numpy as np

    if given is None:
        if features is None:
            raise UsageError(
                f"`{source}` does not say how many features it was fitted on",
                hint="return (model, samples), with a few rows of what it was fitted on",
            )
        given = made_up(features, middle)
    if hasattr(given, "columns") and hasattr(given, "dtypes"):  # a DataFrame, pandas need not be imported
        return _of_frame(given, names, source)
    array = np.asarray(given)
    if array.ndim != 2 or array.dtype.kind not in "fiub" or not len(array):
        raise UsageError(
            f"the samples of `{source}` are {array.dtype} of shape {array.shape}, expected rows of numbers",
            hint="give a 2-D array, or a DataFrame for columns of different kinds",
        )
    if features is not None and array.shape[1] != features:
        raise UsageError(
            f"the samples of `{source}` have {array.shape[1]} features, it was fitted on {features}",
            hint="give rows of what it was fitted on",
        )
    array = np.ascontiguousarray(array, np.float32)
    called = names or ["X"]
    if len(called) != 1:
        raise UsageError(f"`{source}` names {len(called)} inputs and has 1", hint="give one name")
    return Table({called[0]: array}, array)


def made_up(features: int, middle: Sequence[Any]) -> np.ndarray:
    """Rows around the values that a model compares with; normal where it compares with nothing."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows = rng.standard_normal((ROWS, features))
    for feature, (low, high) in enumerate(middle):
        if low <= high:
            margin = 0.25 * (high - low) + 1e-3 * max(abs(low), abs(high), 1.0)
            rows[:, feature] = rng.uniform(low - margin, high + margin, ROWS)
    return rows.astype(np.float32)


def bounds(features: int, thresholds: Mapping[int, Sequence[float]]) -> list[tuple[float, float]]:
    """Per feature, the least and the largest value that is compared with; (1, 0) where none is."""
    found = []
    for feature in range(features):
        values = thresholds.get(feature, ())
        found.append((min(values), max(values)) if len(values) else (1.0, 0.0))
    return found


def _of_frame(frame: Any, names: list[str] | None, source: str) -> Table:
    import numpy as np

    if names is not None and list(names) != [str(c) for c in frame.columns]:
        raise UsageError(
            f"`{source}` names inputs otherwise than its samples' columns",
            hint="leave the names out: columns are inputs",
        )
    columns, whole = {}, frame.copy()
    for name in frame.columns:
        values = frame[name].to_numpy()
        kind = np.float32 if values.dtype.kind == "f" else np.int64 if values.dtype.kind in "iub" else object
        if kind is object and not all(isinstance(value, str) for value in values):
            raise UsageError(
                f"the column `{name}` of `{source}` holds neither numbers nor strings only",
                hint="fill what is missing before the pipeline: ONNX has no empty value among strings",
            )
        whole[name] = values.astype(kind)
        columns[str(name)] = values.astype(kind).reshape(-1, 1)
    return Table(columns, whole)


def write(proto: onnx.ModelProto, out: Path, name: str, format: str) -> Model:
    """Writes the converted graph as `out/NAME.onnx`, its first axes called `batch`, and reads it back.

    Raises:
        ModelError: it is larger than protobuf can hold, or invalid.
    """
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].dim_param = "batch"  # some converters write 1 there, which is no promise
    if proto.ByteSize() > LARGEST:
        raise ModelError(
            f"the trees of `{name}` take {proto.ByteSize() / 1e9:.1f} GB, and an ONNX file holds at most 2 GB of them",
            hint="fit fewer or smaller trees: trees cannot be kept outside the file as weights can",
        )
    return graphs.write(proto, out, name, format)


def sized(model: Model, shapes: Shapes | None, out: Path) -> Model:
    """The model, with the sizes that the user gives."""
    from portolan.core.graph import freeze_shapes

    return freeze_shapes(model, shapes, out / "sized") if shapes else model


def like(wanted: np.ndarray, dtype: str, rank: int) -> np.ndarray:
    """A framework's output in the graph's float type and rank: a column where the framework gives a vector."""
    import numpy as np

    array = np.asarray(wanted)
    if array.ndim == 1 and rank == 2:
        array = array.reshape(-1, 1)
    if array.dtype.kind in "fiub" and np.dtype(dtype).kind in "fi" and dtype != "string":
        return array.astype(dtype)
    return array
