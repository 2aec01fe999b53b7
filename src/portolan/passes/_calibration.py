"""Calibration data: what static quantization may use, and in the form its library reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from portolan.core.data import Data, feeds
from portolan.core.model import Model
from portolan.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

#: Below the first number ranges are guesses; beyond the second they hardly change and only cost time.
FEWEST, MOST = 8, 128
#: What does without them.
_ELSE = {
    "static quantization": ", or use `quantize` with `mode=dynamic`",
    "prune": ", or use `score=magnitude`",
    "decompose": ", or use `score=magnitude`",
    "GPTQ": ", or use `method=hqq`",
}


def usable(
    model: Model, samples: Mapping[str, np.ndarray] | None, who: str = "static quantization"
) -> list[dict[str, np.ndarray]]:
    """The inputs of each calibration run.

    Args:
        model: the model to calibrate.
        samples: an array per input, first axis the samples; at most 128 are used, evenly chosen.
        who: what needs them, for errors: a method's name, or a pass's.

    Raises:
        UsageError: no data, names or types that do not fit, fewer than 8 samples, NaN or infinite values, or samples
            that are all equal.
    """
    import numpy as np

    said = who if " " in who else f"`{who}`"
    if samples is None:
        raise UsageError(f"{said} needs calibration data", hint="give samples with `--data`")
    data = Data(dict(samples), None, "")
    if data.rows < FEWEST:
        raise UsageError(
            f"{said} needs at least {FEWEST} calibration samples, got {data.rows}",
            hint="give more with `--data`" + _ELSE.get(who, ""),
        )
    missing = [spec.name for spec in model.signature.inputs if spec.name not in samples]
    if missing:
        raise UsageError(f"the calibration data lack `{missing[0]}`", hint="name the arrays as the model's inputs")
    rows = np.unique(np.linspace(0, data.rows - 1, MOST).round().astype(int)).tolist()
    known = {spec.name: samples[spec.name] for spec in model.signature.inputs}
    for name, array in known.items():
        if array.dtype.kind == "f" and not np.isfinite(array[rows]).all():
            bad = next(row for row in rows if not np.isfinite(array[row]).all())
            raise UsageError(
                f"the calibration data of `{name}` hold NaN or infinite values, first in sample {bad}",
                hint="remove those samples from the data",
            )
    if all((array[rows] == array[rows[0]]).all() for array in known.values()):
        raise UsageError(
            "all calibration samples are equal, so they show no ranges and no directions",
            hint="give real inputs with `--data`",
        )
    found = [inputs for inputs, _ in feeds(data, rows, model.signature)]
    model.signature.check(found[0], where="calibration data")
    return found


class Reader:
    """Calibration runs one after the other, as ONNX Runtime's `CalibrationDataReader` asks for them."""

    def __init__(self, runs: list[dict[str, Any]]) -> None:
        self._runs = runs
        self._next, self._end = 0, len(runs)

    def __len__(self) -> int:
        return len(self._runs)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Restricts `get_next` to part of the runs."""
        self._next, self._end = start_index, min(end_index, len(self._runs))

    def get_next(self) -> dict[str, Any] | None:
        """The next run's inputs; None after the last."""
        if self._next >= self._end:
            return None
        self._next += 1
        return self._runs[self._next - 1]
