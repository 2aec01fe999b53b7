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
#: What does without them.
_ELSE = {
    "static quantization": ", or use `quantize` with `mode=dynamic`",
    "prune": ", or use `score=magnitude`",
    "decompose": ", or use `score=magnitude`",
    "GPTQ": ", or use `method=hqq`",
}
#: Every so many samples, one decides instead of calibrating.
_DECIDES = 4
Runs = list[dict[str, "np.ndarray"]]


def usable(model: Model, samples: Mapping[str, np.ndarray] | None, who: str = "static quantization") -> Runs:
    """The inputs of each calibration run.

    Args:
        model: the model to calibrate.
        samples: an array per input, first axis the samples; at most 128 are used, evenly chosen.
        who: what needs them, for errors: a method's name, or a pass's.

    Raises:
        UsageError: no data, names or types that do not fit, fewer than 8 samples, NaN or infinite values, or samples
            that are all equal.
    """
    data, rows = _checked(model, samples, who)
    return _runs(model, data, rows)


def divided(
    model: Model, samples: Mapping[str, np.ndarray] | None, who: str = "static quantization"
) -> tuple[Runs, Runs]:
    """The inputs of the runs to fit on, and of those to choose by: no sample is in both.

    Arguments and errors are those of `usable`.
    """
    data, rows = _checked(model, samples, who)
    chosen = rows[_DECIDES - 1 :: _DECIDES]
    return _runs(model, data, [row for row in rows if row not in chosen]), _runs(model, data, chosen)


def _runs(model: Model, data: Data, rows: list[int]) -> Runs:
    found = [inputs for inputs, _ in feeds(data, rows, model.signature)]
    model.signature.check(found[0], where="calibration data")
    return found


def _checked(model: Model, samples: Mapping[str, np.ndarray] | None, who: str) -> tuple[Data, list[int]]:
    """The data and the rows of them to use."""
    import numpy as np

    said = who if " " in who or who.isupper() else f"`{who}`"
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
    return data, rows
