"""How much each layer's precision matters to the outputs, and the cheapest choice of precisions under a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portolan.errors import UsageError
from portolan.passes._observe import explained, session
from portolan.passes._surgery import drop_unused
from portolan.passes._weights import Layer

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: Steps of bytes that choices are compared in.
_UNITS = 2**14


@dataclass(frozen=True)
class Choice:
    """One precision of a layer.

    Attributes:
        bits: 32 is float.
        stored: bytes on disk.
        damage: what it does alone, see `Switchboard.damage`.
        group: weights under one scale.
    """

    bits: int
    stored: int
    damage: float
    group: int = 0


class Switchboard:
    """A model whose weights are inputs, so that trying other weights costs a run and not a session.

    Args:
        graph: what `layers` looked at.
        chosen: its layers, each an input of its own.
        weights: the original weights, by initializer.
        runs: inputs to judge on.
        name: what to call the model in an error.

    Raises:
        UsageError: no output is float.
        ModelError: ONNX Runtime cannot load or run it.
    """

    def __init__(
        self,
        graph: onnx.ModelProto,
        chosen: Sequence[Layer],
        weights: Mapping[str, np.ndarray],
        runs: Sequence[Mapping[str, np.ndarray]],
        name: str,
    ) -> None:
        self._name, self._runs = name, runs
        self._tags = {layer: f"switchable weight {i}" for i, layer in enumerate(chosen)}
        self._weights = {self._tags[layer]: weights[layer.name] for layer in chosen}
        self._outputs = [v.name for v in graph.graph.output if v.type.tensor_type.elem_type == 1]
        if not self._outputs:
            raise UsageError(
                f"no output of `{name}` is float32, so there is no error to measure",
                hint="use `quantize` with `mode=weights`, which does not measure",
            )
        with explained(name), session(_switchable(graph, self._tags)) as running:
            self._session = running
        self._right = [self._answer(inputs, {}) for inputs in runs]

    def damage(self, changed: Mapping[Layer, np.ndarray]) -> float:
        """One minus the mean cosine of outputs with these weights and the original outputs.

        Args:
            changed: the arrays of some layers, shaped as their initializers; the others stay as they were.
        """
        import numpy as np

        new = {self._tags[layer]: array for layer, array in changed.items()}
        lost = []
        for inputs, right in zip(self._runs, self._right, strict=True):
            for want, got in zip(right, self._answer(inputs, new), strict=True):
                size = float(np.linalg.norm(want) * np.linalg.norm(got))
                lost.append(1 - float(np.dot(want, got)) / size if size > 0 else float(np.any(want != got)))
        return max(0.0, float(np.mean(lost)))

    def _answer(self, inputs: Mapping[str, Any], new: Mapping[str, Any]) -> list[np.ndarray]:
        import numpy as np

        with explained(self._name):
            found = self._session.run(self._outputs, {**inputs, **self._weights, **new})
        return [np.asarray(array, np.float64).ravel() for array in found]


def _switchable(graph: onnx.ModelProto, tags: Mapping[Layer, str]) -> onnx.ModelProto:
    import onnx

    probe = onnx.ModelProto()
    probe.CopyFrom(graph)
    users = {node.output[0]: node for node in probe.graph.node if node.output}
    for layer, tag in tags.items():
        for output, index in layer.users:
            users[output].input[index] = tag
        probe.graph.input.append(onnx.helper.make_tensor_value_info(tag, onnx.TensorProto.FLOAT, layer.shape))
    drop_unused(probe, keep_shapes=True)
    return probe


def within_budget(choices: Mapping[Layer, Sequence[Choice]], budget: float) -> dict[Layer, Choice]:
    """A precision per layer with the fewest bytes and a summed damage of at most `budget`.

    Args:
        choices: of each layer, most bytes and no damage first.
        budget: the largest sum of damages.
    """
    import numpy as np

    damages, picks, _ = _table(choices)
    enough = np.flatnonzero(damages <= budget)
    if not len(enough):
        return {layer: options[0] for layer, options in choices.items()}
    return _walk(choices, picks, int(enough[0]))


def within_bytes(choices: Mapping[Layer, Sequence[Choice]], most: int) -> dict[Layer, Choice]:
    """A precision per layer with the least summed damage and at most `most` bytes; the smallest where none fits."""
    import numpy as np

    damages, picks, unit = _table(choices)
    place = min(int(most // unit), len(damages) - 1)
    if most < 0 or not np.isfinite(damages[place]):
        return {layer: min(options, key=lambda c: c.stored) for layer, options in choices.items()}
    return _walk(choices, picks, place)


def _table(choices: Mapping[Layer, Sequence[Choice]]) -> tuple[np.ndarray, list[np.ndarray], float]:
    """The least damage for every number of bytes, by dynamic programming over the layers.

    Greedy choice by damage per byte, the usual way, fails where one layer is half of the model, as embeddings are.

    Returns:
        The damage by units of bytes, which choice of each layer gives it, and the bytes in a unit.
    """
    import math

    import numpy as np

    total = sum(max(c.stored for c in options) for options in choices.values())
    unit = max(1.0, total / _UNITS)
    sizes = [[math.ceil(c.stored / unit) for c in options] for options in choices.values()]
    best = np.zeros(sum(map(max, sizes)) + 1)
    picks = []
    for options, widths in zip(choices.values(), sizes, strict=True):
        rows = np.full((len(options), len(best)), np.inf)
        for row, choice, width in zip(rows, options, widths, strict=True):
            row[width:] = best[: len(best) - width] + choice.damage
        picks.append(rows.argmin(0))
        best = rows.min(0)
    return best, picks, unit


def _walk(choices: Mapping[Layer, Sequence[Choice]], picks: Sequence[np.ndarray], place: int) -> dict[Layer, Choice]:
    """The choice of each layer that the table took on its way to `place`."""
    import math

    total = sum(max(c.stored for c in options) for options in choices.values())
    unit = max(1.0, total / _UNITS)
    found = {}
    for layer, pick in reversed(list(zip(choices, picks, strict=True))):
        choice = choices[layer][int(pick[place])]
        found[layer] = choice
        place -= math.ceil(choice.stored / unit)
    return {layer: found[layer] for layer in choices}
