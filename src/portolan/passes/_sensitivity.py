"""How much each layer's precision matters to the outputs, and the cheapest choice of precisions under a budget."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portolan.errors import UsageError
from portolan.passes._hessian import run, session
from portolan.passes._weights import Layer

if TYPE_CHECKING:
    import numpy as np
    import onnx


@dataclass(frozen=True)
class Choice:
    """One precision of a layer: `bits` (32 is float), its bytes on disk, and the damage that it alone does."""

    bits: int
    stored: int
    damage: float


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
        self._session = session(_switchable(graph, self._tags), name)
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

        found = run(self._session, self._outputs, {**inputs, **self._weights, **new}, self._name)
        return [np.asarray(found[name], np.float64).ravel() for name in self._outputs]


def _switchable(graph: onnx.ModelProto, tags: Mapping[Layer, str]) -> onnx.ModelProto:
    import onnx

    from portolan.passes._weights import drop_unused

    probe = onnx.ModelProto()
    probe.CopyFrom(graph)
    users = {node.output[0]: node for node in probe.graph.node if node.output}
    for layer, tag in tags.items():
        for output, index in layer.users:
            users[output].input[index] = tag
        probe.graph.input.append(onnx.helper.make_tensor_value_info(tag, onnx.TensorProto.FLOAT, layer.shape))
    drop_unused(probe)
    return probe


def within_budget(choices: Mapping[Layer, Sequence[Choice]], budget: float) -> dict[Layer, int]:
    """Bits per layer with few bytes and a summed damage of at most `budget`.

    Greedy: of all steps to fewer bits the one with the least damage per saved byte first. For a sum of damages that is
    the best choice but for the last step.

    Args:
        choices: of each layer, most bytes first.
        budget: the largest sum of damages.
    """
    found = {layer: options[0].bits for layer, options in choices.items()}
    spent, stopped = 0.0, set()
    for layer, _, step in _steps(choices):
        if layer in stopped:
            continue
        if spent + step[1].damage - step[0].damage > budget:
            stopped.add(layer)  # its later steps start from this one
            continue
        spent += step[1].damage - step[0].damage
        found[layer] = step[1].bits
    return found


def within_bytes(choices: Mapping[Layer, Sequence[Choice]], most: int) -> dict[Layer, int]:
    """Bits per layer with little summed damage and at most `most` bytes; the fewest bits where that is not enough."""
    found = {layer: options[0].bits for layer, options in choices.items()}
    total = sum(options[0].stored for options in choices.values())
    for layer, _, (before, after) in _steps(choices):
        if total <= most:
            break
        found[layer] = after.bits
        total += after.stored - before.stored
    return found


def _steps(choices: Mapping[Layer, Sequence[Choice]]) -> list[tuple[Layer, float, tuple[Choice, Choice]]]:
    """Steps along each layer's lower convex hull of damage over bytes, by damage per saved byte."""
    steps = []
    for layer, options in choices.items():
        hull = [options[0]]
        for option in sorted(options[1:], key=lambda c: -c.stored):
            while len(hull) > 1 and _slope(hull[-1], option) <= _slope(hull[-2], hull[-1]):
                hull.pop()
            hull.append(option)
        steps += [(layer, _slope(a, b), (a, b)) for a, b in itertools.pairwise(hull)]
    return sorted(steps, key=lambda step: step[1])  # stable: the order of the graph decides between equals


def _slope(before: Choice, after: Choice) -> float:
    return (after.damage - before.damage) / max(before.stored - after.stored, 1)
