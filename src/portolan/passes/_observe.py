"""Running a graph to see what flows through it: ranges and samples of activations, and how far outputs move."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.core.silence import runtime
from portolan.errors import ModelError, PortolanError, UsageError
from portolan.passes._graphs import hushed, write

if TYPE_CHECKING:
    import numpy as np
    import onnx

Feeds = Mapping[str, "np.ndarray"]
#: Elements of one activation that are kept of all runs together.
_KEPT = 2**18
#: Rows of one run that are kept where the last axis holds channels.
_ROWS = 8


@dataclass(frozen=True)
class Seen:
    """What one activation was over all runs.

    Attributes:
        rows: a sample of it, float32 [n, channels]; [n, 1] where its channels do not matter.
        lows: the smallest value in each channel over everything, [channels].
        highs: the largest, [channels].
        usable: whether it is float32 and has two axes or more: others gain nothing.
    """

    rows: np.ndarray
    lows: np.ndarray
    highs: np.ndarray
    usable: bool = True

    @property
    def lo(self) -> float:
        """The smallest value."""
        return float(self.lows.min())

    @property
    def hi(self) -> float:
        """The largest value."""
        return float(self.highs.max())

    @property
    def peaks(self) -> np.ndarray:
        """The largest magnitude in each channel, [channels]."""
        import numpy as np

        largest: np.ndarray = np.maximum(-self.lows, self.highs)
        return largest

    @property
    def power(self) -> float:
        """The mean square of the sample."""
        import numpy as np

        return float(np.mean(np.square(self.rows, dtype="f8")))


@contextmanager
def session(graph: onnx.ModelProto, outputs: Sequence[str] = (), threads: int = 0) -> Iterator[Any]:
    """An ONNX Runtime session of `graph` that also gives the tensors `outputs`; `threads` 0 is all cores."""
    import onnx

    ort = runtime("onnxruntime")
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    given = [value.name for value in graph.graph.output]
    more = [name for name in outputs if name not in given]
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in more)
    try:
        # Through a file: protobuf has no more than 2 GiB in memory.
        with tempfile.TemporaryDirectory() as scratch, hushed():
            path = write(graph, Path(scratch) / "observed.onnx")
            yield ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    finally:
        del graph.graph.output[len(given) :]


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Puts it into words when the runtime fails on the model called `name`."""
    try:
        yield
    except PortolanError:
        raise
    except Exception as error:  # third-party code over any graph: whatever it raises is the reason
        raise ModelError(
            f"`{name}` does not run on the calibration data: {type(error).__name__}: {error}",
            hint="check the model with `portolan bench`",
        ) from error


def observe(
    graph: onnx.ModelProto, runs: Sequence[Feeds], rowwise: Collection[str], plain: Collection[str], name: str
) -> dict[str, Seen]:
    """Runs `graph` on every entry of `runs` and looks at some of its tensors.

    Args:
        graph: a float model; it is as before afterwards.
        runs: the inputs of each run.
        rowwise: tensors whose last axis holds channels that matter.
        plain: other tensors.
        name: what to call the model in an error.

    Raises:
        UsageError: an activation is NaN or infinite.
        ModelError: the graph does not run.
    """
    wanted = sorted({*rowwise, *plain})
    made = [tensor for tensor in wanted if tensor not in {value.name for value in graph.graph.input}]
    watches = {tensor: _Watch(tensor in rowwise, len(runs)) for tensor in wanted}
    with explained(name), session(graph, made) as running:
        for i, feeds in enumerate(runs):
            found = dict(zip(made, running.run(made, dict(feeds)), strict=True)) if made else {}
            for tensor, watch in watches.items():
                if not watch.add(found[tensor] if tensor in found else feeds[tensor]):
                    raise UsageError(
                        f"`{name}` gives NaN or infinity in `{tensor}` for calibration run {i}",
                        hint="remove that sample from the data",
                    )
    return {tensor: watch.seen() for tensor, watch in watches.items()}


class _Watch:
    """One activation while runs go by."""

    def __init__(self, rowwise: bool, runs: int) -> None:
        self._rowwise = rowwise
        self._most = _ROWS if rowwise else max(1, _KEPT // max(1, runs))
        self._parts: list[np.ndarray] = []
        self._ends: list[tuple[np.ndarray, np.ndarray]] = []
        self._usable = True

    def add(self, array: np.ndarray) -> bool:
        """Takes one run's values; False where some are not finite."""
        import numpy as np

        self._usable &= array.dtype == np.float32 and array.ndim > 1
        if not array.size:
            return True
        rows = array.reshape(-1, array.shape[-1] if self._rowwise and array.ndim else 1).astype("f4", copy=False)
        ends = rows.min(axis=0), rows.max(axis=0)
        if not (np.isfinite(ends[0]).all() and np.isfinite(ends[1]).all()):
            return False
        # Drawn, not strided: a stride meets the same channels again and again.
        rng = np.random.default_rng(len(self._parts))
        chosen = np.sort(rng.choice(len(rows), min(len(rows), self._most), replace=False))
        self._parts.append(rows[chosen])
        self._ends.append(ends)
        return True

    def seen(self) -> Seen:
        """What it was."""
        import numpy as np

        if not self._parts:
            return Seen(np.zeros((1, 1), "f4"), np.zeros(1, "f4"), np.zeros(1, "f4"), False)
        lows, highs = (np.array(side) for side in zip(*self._ends, strict=True))
        return Seen(np.concatenate(self._parts), lows.min(axis=0), highs.max(axis=0), self._usable)


class Judge:
    """How near a changed graph's outputs are to the original's, on samples that nothing was fitted on."""

    def __init__(self, graph: onnx.ModelProto, runs: Sequence[Feeds], name: str) -> None:
        self._runs, self._name = runs, name
        self._outputs = [value.name for value in graph.graph.output]
        with explained(name), session(graph) as running:
            self._right = [running.run(self._outputs, dict(feeds)) for feeds in runs]

    def cosine(self, graph: onnx.ModelProto) -> float:
        """The mean cosine of the float output that moved most, less one standard error; 1.0 without such an output."""
        import numpy as np

        with explained(self._name), session(graph) as running:
            rows = [
                [_cosine(a, b) for a, b in zip(running.run(self._outputs, dict(feeds)), right, strict=True)]
                for feeds, right in zip(self._runs, self._right, strict=True)
            ]
        table = np.array(rows, "f8")
        worst = int(table.mean(axis=0).argmin())
        return float(table[:, worst].mean() - table[:, worst].std() / len(rows) ** 0.5)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The mean cosine over the first axis; 1 for what has no direction: whole numbers, and zeros for zeros."""
    import numpy as np

    if b.dtype.kind != "f" or not b.size:
        return 1.0
    x, y = (np.atleast_2d(v.reshape(len(v), -1) if v.ndim > 1 else v).astype("f8") for v in (a, b))
    usable = np.isfinite(y)
    if not np.isfinite(x[usable]).all():
        return -1.0
    x, y = np.where(usable, x, 0), np.where(usable, y, 0)
    size = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    dots = (x * y).sum(axis=1) / np.where(size > 0, size, 1)
    return float(np.mean(np.where(size > 0, dots, np.all(x == y, axis=1))))
