"""Structured pruning: which bundles of channels go, what the layers behind them become, and the smaller graph.

With calibration data a bundle costs what its loss adds to the error of the layers behind it once these are fitted
anew (optimal brain surgeon, for blocks), and they are fitted anew by least squares. Without, it is judged by the size
of the weights on both of its sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portolan.core.model import Model
from portolan.passes._coupling import Axis, Coupling, Group, couple, own_vectors
from portolan.passes._moments import Moment, joined, moments
from portolan.passes._surgery import Constants, drop_unused

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: Bundles are dropped in so many rounds, each judged after the fit of the one before.
_ROUNDS = 8
#: Keeps directions that calibration hardly showed where they were, as a share of the mean channel's power.
_RIDGE = 1e-3


@dataclass(frozen=True)
class Cut:
    """How much to drop.

    Attributes:
        kind: `channels`, `neurons` or `heads`.
        ratio: the share of each group.
        align: what is left of a group is a multiple of this; heads are whole anyway.
    """

    kind: str
    ratio: float
    align: int

    def left(self, count: int) -> int:
        """How many of `count` stay: at least one step, at most all."""
        step = 1 if self.kind == "heads" else self.align
        return min(count, max(1, round(count * (1 - self.ratio) / step)) * step)


def shrink(
    model: Model, graph: onnx.ModelProto, cut: Cut, runs: Sequence[Mapping[str, np.ndarray]] | None
) -> tuple[int, int]:
    """Drops bundles of channels from the graph.

    Args:
        model: the model, for its signature.
        graph: with its weights as initializers; it is changed.
        cut: how much of what.
        runs: calibration inputs; None to go by the weights' size.

    Returns:
        How many groups of that kind there are, and how many got smaller.
    """
    constants = Constants(graph)
    own_vectors(graph, constants)
    coupling = couple(graph, constants, heads=cut.kind == "heads")
    groups = [group for group in coupling.groups() if _kind(group, coupling) == cut.kind]
    smaller = [group for group in groups if cut.left(len(group)) < len(group)]
    seen = _seen(model, graph, coupling, smaller, runs) if runs is not None and smaller else None
    removed: dict[Axis, np.ndarray] = {}
    for group in smaller:
        drop = len(group) - cut.left(len(group))
        gone = _by_weights(group, coupling, drop) if seen is None else _by_outputs(group, coupling, seen, removed, drop)
        _mark(group, gone, coupling, removed)
    _apply(graph, coupling, removed)
    return len(groups), len(smaller)


def _kind(group: Group, coupling: Coupling) -> str | None:
    """What a group is; None where nothing constant sums over it."""
    uses = [use for use in coupling.uses if use.weight in group.positions]
    if not uses:
        return None
    if coupling.crossed & group.positions.keys():
        return "heads"
    if any(use.convolution for use in uses) or coupling.convolved & group.positions.keys():
        return "channels"
    return "neurons"


def _uses(group: Group, coupling: Coupling) -> dict[Axis, list[Axis]]:
    """The weights that sum over a group, and the activations that each is multiplied with."""
    found: dict[Axis, list[Axis]] = {}
    for use in coupling.uses:
        if use.weight in group.positions:
            found.setdefault(use.weight, []).append(use.activation)
    return found


def _seen(
    model: Model,
    graph: onnx.ModelProto,
    coupling: Coupling,
    groups: Sequence[Group],
    runs: Sequence[Mapping[str, np.ndarray]],
) -> dict[Axis, Moment]:
    """The moments of what each summing weight is multiplied with; of all its users together."""
    uses = {weight: found for group in groups for weight, found in _uses(group, coupling).items()}
    axes = {tensor: axis for activations in uses.values() for tensor, axis in activations}
    known = moments(graph, axes, joined(model, runs), model.name)
    result: dict[Axis, Moment] = {}
    for weight, activations in uses.items():
        for tensor, _ in activations:
            result[weight] = result[weight] + known[tensor] if weight in result else known[tensor]
    return result


def _by_weights(group: Group, coupling: Coupling, drop: int) -> np.ndarray:
    """The bundles whose weights in front times those behind are smallest."""
    import numpy as np

    uses = _uses(group, coupling)
    front, behind = np.zeros(len(group)), np.zeros(len(group))
    for axis, positions in group.positions.items():
        if not coupling.constants.floating(axis[0]):
            continue
        w = np.moveaxis(coupling.constants[axis[0]].astype(np.float64), axis[1], 0)
        size = (w.reshape(len(w), -1) ** 2).sum(1)[positions].sum(1)
        if axis in uses:
            behind += size
        else:
            front += size
    return np.argsort(front * behind, kind="stable")[:drop]


def _by_outputs(
    group: Group, coupling: Coupling, seen: Mapping[Axis, Moment], removed: Mapping[Axis, np.ndarray], drop: int
) -> np.ndarray:
    """The bundles that the layers behind can best do without; these are fitted anew."""
    import numpy as np

    constants = coupling.constants
    fits = {}
    for axis in _uses(group, coupling):
        w = np.moveaxis(constants[axis[0]].astype(np.float64), axis[1], 0)
        alive = ~removed[axis] if axis in removed else np.ones(len(w), bool)
        fits[axis] = _Fit(seen[axis].mean, w.reshape(len(w), -1), group.positions[axis], alive)
    left = np.arange(len(group))
    for rounds in range(min(drop, _ROUNDS), 0, -1):
        now = -(-(drop - (len(group) - len(left))) // rounds)
        order = np.argsort(sum(fit.costs(left) for fit in fits.values()), kind="stable")
        for fit in fits.values():
            fit.drop(left[order[:now]])
        left = np.sort(left[order[now:]])
    for axis, fit in fits.items():
        shape = np.moveaxis(constants[axis[0]], axis[1], 0).shape
        constants.put(axis[0], np.moveaxis(fit.whole().reshape(shape), 0, axis[1]))
    return np.setdiff1d(np.arange(len(group)), left)


class _Fit:
    """A weight behind a group, and what it becomes as bundles go: optimal brain surgeon with blocks of inputs.

    Args:
        mean: E[x x'] of its inputs, [K, K].
        weight: [K, outputs].
        positions: where each bundle's inputs are, [bundles, m].
        alive: which inputs are still there.
    """

    def __init__(self, mean: np.ndarray, weight: np.ndarray, positions: np.ndarray, alive: np.ndarray) -> None:
        import numpy as np

        self._whole, self._positions, self._rows = weight, positions, np.flatnonzero(alive)
        self._ridge = ridge = _RIDGE * max(float(np.trace(mean)) / len(mean), 1e-30)
        h = mean[np.ix_(self._rows, self._rows)] + ridge * np.eye(len(self._rows))
        self._inverse, self._weight = np.linalg.inv(h), weight[self._rows]
        self._power = max(float((self._weight * (h @ self._weight)).sum()), 1e-30)

    def _places(self, bundles: np.ndarray) -> np.ndarray:
        """Where these bundles' inputs are among those left, [bundles, m]."""
        import numpy as np

        return np.asarray(np.searchsorted(self._rows, self._positions[bundles]))

    def costs(self, bundles: np.ndarray) -> np.ndarray:
        """What the loss of each of these bundles adds to the squared error of the output, as a share of its power."""
        import numpy as np

        here = self._places(bundles)
        parts = self._weight[here]
        if here.shape[1] == 1:
            found = (parts[:, 0] ** 2).sum(1) / self._inverse[here[:, 0], here[:, 0]]
        else:
            blocks = self._inverse[here[:, :, None], here[:, None, :]]
            found = (parts * np.linalg.solve(blocks, parts)).sum((1, 2))
        # Without what the ridge alone would say: an input that was always zero costs nothing.
        found = found - self._ridge * (parts**2).sum((1, 2))
        return np.asarray(found.clip(0) / self._power)

    def drop(self, bundles: np.ndarray) -> None:
        """Takes bundles out; the weights that are left make up for them as far as they can."""
        import numpy as np

        gone = self._places(bundles).ravel()
        stays = np.setdiff1d(np.arange(len(self._rows)), gone)
        across = self._inverse[np.ix_(stays, gone)]
        factor = np.linalg.solve(self._inverse[np.ix_(gone, gone)], across.T).T
        self._weight = self._weight[stays] - factor @ self._weight[gone]
        self._inverse = self._inverse[np.ix_(stays, stays)] - factor @ across.T
        self._rows = self._rows[stays]

    def whole(self) -> np.ndarray:
        """The weight [K, outputs] with what is left of it fitted anew."""
        found = self._whole.copy()
        found[self._rows] = self._weight
        return found


def _mark(group: Group, gone: np.ndarray, coupling: Coupling, removed: dict[Axis, np.ndarray]) -> None:
    import numpy as np

    for axis, positions in group.positions.items():
        mask = removed.setdefault(axis, np.zeros(coupling.sizes[axis[0]][axis[1]] or 0, bool))
        mask[positions[gone].ravel()] = True


def _apply(graph: onnx.ModelProto, coupling: Coupling, removed: Mapping[Axis, np.ndarray]) -> None:
    """Takes the positions out of all constants, and sets the sizes that the graph names."""
    import numpy as np

    constants = coupling.constants
    for (name, axis), mask in removed.items():
        if name in constants:
            constants.put(name, np.compress(~mask, constants[name], axis))
    nodes = {node.output[0]: node for node in graph.graph.node}
    lists: dict[tuple[str, int], np.ndarray] = {}
    for fix in coupling.fixes:
        if fix.axis not in removed:
            continue
        size, node = int((~removed[fix.axis]).sum()) // fix.unit, nodes[fix.node]
        if fix.place < 0:
            next(a for a in node.attribute if a.name == "group").i = size
        else:
            key = (fix.node, fix.place)
            lists.setdefault(key, constants[node.input[fix.place]].copy())[fix.index] = size
    for (output, place), values in lists.items():
        nodes[output].input[place] = constants.add(f"{nodes[output].input[place]}.{output}", values)
    drop_unused(graph)
