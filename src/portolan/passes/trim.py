"""`trim`: padding is cut off the ends of sequences before a model computes with it.

Sentences of different lengths go into a model of a fixed length, or into one batch, by filling them up with padding,
which a mask then takes out of every answer. The work on it is done all the same: a sentence of 17 tokens in a model
for 128 costs as much as one of 128. Kernels that skip it are known from ByteTransformer (arXiv:2210.03052); here the
graph itself becomes one of any length, so that every runtime with free sizes gains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

from portolan.core.model import Model
from portolan.core.passes import Context, Feeds, Params, compression
from portolan.core.schema import Knob
from portolan.core.signature import TensorSpec
from portolan.core.target import Target
from portolan.errors import ModelError, UsageError
from portolan.passes._calibration import Runs, usable
from portolan.passes._cutting import Cutter
from portolan.passes._graphs import quantized, save_graph
from portolan.passes._lengths import Stuck, follow
from portolan.passes._observe import explained, session
from portolan.passes._surgery import Constants, drop_unused, opened

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: The feature of a trimmed model: its work depends on its inputs.
FEATURE = "length:trimmed"
#: The axis of the positions, in the mask and in every input of its shape.
_AXIS = 1
#: Calibration samples to check on, and the share of what an output varies by that answers may differ by.
_CHECKED, _NEAR = 8, 1e-4
_KEPT = "its output `{}` holds an entry for each position, padding included"
#: Where no more than this share of the positions goes, nothing is gained.
_LEAST = 0.05


def _refuse(model: Model, options: Params, target: Target) -> str | None:
    del target
    if FEATURE in model.features:
        return "it is trimmed already"
    if quantized(model):
        return "the model is quantized: trim first, then what is quantized is fitted to what is left"
    mask = _mask_of(model, options.get("mask"))
    if mask is None and options.get("mask"):
        return f"it has no input `{options['mask']}` of two axes with whole numbers"
    if mask is None:
        return "it has no input that says what is padding; name one with `mask`"
    length = mask.shape[_AXIS]
    kept = next((s.name for s in model.signature.outputs if isinstance(length, str) and length in s.shape), None)
    return kept and _KEPT.format(kept)


def _mask_of(model: Model, name: str | None = None) -> TensorSpec | None:
    """The input that says what is padding: `name`, or the one called a mask; None without.

    It has two axes, rows and positions, and holds whole numbers or truth values.
    """
    found = [
        spec
        for spec in model.signature.inputs
        if len(spec.shape) == _AXIS + 1 and spec.dtype.rstrip("0123456789") in ("int", "uint", "bool")
        if (spec.name == name if name else "mask" in spec.name.lower())
    ]
    return found[0] if len(found) == 1 else None


def _left(options: Params, model: Model, inputs: Sequence[Feeds]) -> float:
    """Attention takes the square of the positions that are left."""
    mask = _mask_of(model, options.get("mask"))
    if mask is None:
        return 1.0
    return min((_share(feed[mask.name], options.get("padding", 0)) for feed in inputs), default=1.0) ** 2


@compression(
    needs=lambda options: "calibration", produces=lambda options: (FEATURE,), stage=lambda options: "length",
    refuse=_refuse, folds=lambda options: True, left=_left,
    distributions=("numpy", "onnx", "onnxruntime", "onnxslim"),
)  # fmt: skip
def trim(
    model: Model,
    context: Context,
    *,
    mask: Annotated[str | None, Knob(search=False, help="the input that marks padding; by default the `mask`")] = None,
    padding: Annotated[int, Knob(search=False, help="its value where there is padding")] = 0,
    multiple: Annotated[int, Knob(search=False, help="lengths are rounded up to a multiple of this")] = 8,
) -> Model:
    """Cuts padding off the ends of sequences before it is computed with; answers stay the same.

    Each call is cut behind the last position, in any of its rows, that is no padding. Outputs must not hold an entry
    for each position, and must not depend on padding: calibration samples are run with their own masks, with others,
    and with other values under the padding, and where answers change the model is left as it is.

    Args:
        model: a float model, of a fixed length or a free one.
        context: its folder gets the new file; its calibration data, at least 8 samples, hold padding.
        mask: an input of shape [rows, positions] that says which are padding, by default the one with `mask` in its
            name. The inputs of the same shape are cut with it.
        padding: its value for padding: 0 in a mask, or the number of the padding token with `mask=input_ids`.
        multiple: runtimes prepare anew for each length they meet, so there should not be too many.

    Raises:
        UsageError: no such input, no padding in the data, or answers that depend on padding.
        ModelError: the graph holds something that cannot be handled.
    """
    if reason := _refuse(model, {"mask": mask}, context.target):
        raise _cannot(model, reason)
    if multiple < 1:
        raise UsageError(f"`multiple` of `trim` is at least 1, got {multiple}", hint="use 8, or 1 for any length")
    said = _mask_of(model, mask)
    assert said is not None  # _refuse has seen it
    runs = usable(model, context.calibration, "trim")
    left = sum(_share(run[said.name], padding) for run in runs) / len(runs)
    if left > 1 - _LEAST:
        raise _cannot(model, f"{left:.0%} of the positions in the calibration data are no padding")
    original, graph = opened(model, opset=13)
    inputs = [spec.name for spec in model.signature.inputs if spec.shape == said.shape]
    few = runs[:: max(1, len(runs) // _CHECKED)]
    tried = list(_variants(few, inputs, said.name, padding))
    right = _answers(model, graph, tried)
    _cut(model, graph, inputs, said, padding, multiple)
    try:
        ours = _answers(model, graph, tried)
    except ModelError as error:  # the original has answered all of them
        raise _cannot(model, f"it does not run at other lengths ({error.message})") from error
    _compare(model, right, ours)
    return save_graph(graph, original, model, context.folder, (FEATURE,))


def _cut(
    model: Model, graph: onnx.ModelProto, inputs: list[str], mask: TensorSpec, padding: int, multiple: int
) -> None:
    constants = Constants(graph)
    cutter = Cutter(graph, constants)
    length = mask.shape[_AXIS]
    full = length if isinstance(length, int) else None
    cutter.measure(mask.name, padding, full, multiple)
    if full is not None:  # a graph of any length has nothing in it that was written for one
        try:
            lengths = follow(graph, constants, inputs, _AXIS, full)
        except Stuck as stuck:
            raise _cannot(model, str(stuck)) from stuck
        if kept := next((value.name for value in graph.graph.output if lengths.at(value.name)), None):
            raise _cannot(model, _KEPT.format(kept))
        cutter.fit(lengths)
    cutter.shorten(inputs, _AXIS)
    cutter.finish()
    drop_unused(graph)


def _cannot(model: Model, reason: str) -> UsageError:
    return UsageError(f"`{model.name}` cannot be trimmed: {reason}", hint="leave `trim` out of the recipe")


def _share(mask: np.ndarray, padding: int) -> float:
    """The share of the positions up to the last that is no padding; all of them where a row is nothing else."""
    import numpy as np

    real = mask != padding
    ends = np.where(real.any(axis=1), real.shape[1] - np.argmax(real[:, ::-1], axis=1), real.shape[1])
    return float(ends.max() / real.shape[1])


def _answers(model: Model, graph: onnx.ModelProto, runs: Runs) -> list[list[np.ndarray]]:
    names = [spec.name for spec in model.signature.outputs]
    with explained(model.name), session(graph) as running:
        return [running.run(names, run) for run in runs]


def _compare(model: Model, right: list[list[np.ndarray]], ours: list[list[np.ndarray]]) -> None:
    for run, answer in zip(right, ours, strict=True):
        for spec, a, b in zip(model.signature.outputs, run, answer, strict=True):
            if not _alike(a, b):
                raise _cannot(model, f"its output `{spec.name}` depends on the padding")


def _variants(runs: Runs, inputs: list[str], mask: str, padding: int) -> Iterator[dict[str, np.ndarray]]:
    """Each run as it is, with values of another under its padding, of another length, with a hole, and padded left."""
    import numpy as np

    random = np.random.default_rng(0)
    for run, other in zip(runs, [*runs[1:], runs[0]], strict=True):
        yield run
        given, size = run[mask], run[mask].shape[1]
        real = given != padding
        yield {n: np.where(real, a, other[n]) if n in inputs and n != mask else a for n, a in run.items()}
        one = given[real][0] if real.any() else given.dtype.type(1)
        hidden = given.dtype.type(padding)
        drawn = random.integers(1, size + 1, (len(given), 1))
        places = np.arange(size)
        for shown in (places < drawn, (places < drawn) & (places != drawn // 2), places >= drawn - 1):
            masked = np.where(shown, np.where(real, given, one), hidden)
            yield {**run, mask: masked.astype(given.dtype)}


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    import numpy as np

    if a.shape != b.shape or a.dtype.kind not in "fc":
        return np.array_equal(a, b)
    scale = float(np.nanstd(a)) if np.isfinite(a).any() else 1.0
    return bool(np.allclose(a, b, rtol=_NEAR, atol=_NEAR * scale, equal_nan=True))
