"""Calibration data: what static quantization may use, one part to fit on and one to choose by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from portolan.core.data import Data, feeds
from portolan.core.model import Model
from portolan.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

#: Below the first number ranges are guesses; beyond the second they hardly change and only cost time.
FEWEST, MOST = 8, 128
#: Every so many samples, one decides instead of calibrating.
_DECIDES = 4
Runs = list[dict[str, "np.ndarray"]]


def divided(model: Model, samples: Mapping[str, np.ndarray] | None) -> tuple[Runs, Runs]:
    """The inputs of the runs to fit on, and of those to choose by: no sample is in both.

    Args:
        model: the model to calibrate.
        samples: an array per input, first axis the samples; at most 128 are used, evenly chosen.

    Raises:
        UsageError: no data, names or types that do not fit, fewer than 8 samples, NaN or infinite values, or samples
            that are all equal.
    """
    import numpy as np

    if samples is None:
        raise UsageError("static quantization needs calibration data", hint="give samples with `--data`")
    data = Data(dict(samples), None, "")
    if data.rows < FEWEST:
        raise UsageError(
            f"static quantization needs at least {FEWEST} calibration samples, got {data.rows}",
            hint="give more with `--data`, or use `quantize` with `mode=dynamic`",
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
            "all calibration samples are equal, so they show no ranges",
            hint="give real inputs with `--data`",
        )
    chosen = rows[_DECIDES - 1 :: _DECIDES]
    fitted = [row for row in rows if row not in chosen]
    fit, select = ([inputs for inputs, _ in feeds(data, part, model.signature)] for part in (fitted, chosen))
    model.signature.check(fit[0], where="calibration data")
    return fit, select
