"""Which channels must go together: one mechanism for every architecture (after DepGraph, arXiv:2301.12900).

Each position along each axis of each tensor is a number. Every operator says which positions of its inputs and outputs
are the same channel (`_coupling_rules`), and which must stay as they are. Positions that are connected form a bundle:
remove all of it and the graph is consistent; bundles that touch the same axes are alternatives, of which some can be
kept. An operator without a rule keeps everything that it touches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from portolan.passes._surgery import Constants, Shape, captured, shapes, users

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: One axis of one tensor.
Axis = tuple[str, int]


@dataclass(frozen=True)
class Use:
    """A constant weight that sums over the channels of an activation.

    Attributes:
        weight: the weight and its axis that is summed over.
        activation: what it is multiplied with, and the axis of the channels there.
        convolution: whether by a convolution.
    """

    weight: Axis
    activation: Axis
    convolution: bool


@dataclass(frozen=True)
class Fix:
    """A number in the graph that names the size of an axis, to be set when the axis shrinks.

    Attributes:
        node: the node that reads it, by its first output.
        place: among its inputs; -1 for the attribute `group`.
        index: in that constant.
        axis: whose size it is; for `group`, the inputs' channels.
        unit: what the size is divided by.
    """

    node: str
    place: int
    index: int
    axis: Axis
    unit: int = 1


@dataclass(frozen=True, eq=False)
class Group:
    """Bundles that touch the same axes: alternatives to choose among.

    Attributes:
        positions: for each axis, where each bundle touches it: [bundles, positions per bundle].
    """

    positions: dict[Axis, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.positions.values())))


@dataclass(eq=False)
class Coupling:
    """What is known about a graph's axes while its operators are asked.

    Attributes:
        constants: the graph's.
        sizes: of every tensor whose number of axes is known.
        heads: in a split of one axis into three or more, couple the last but one (fused q, k, v and their heads), not
            the first (a flattened image and its channels).
        uses: weights that sum over channels.
        fixes: sizes that stand in the graph.
        crossed: axes along which activations are multiplied with activations, each slice by itself: attention heads.
        convolved: axes of weights of convolutions.
    """

    constants: Constants
    sizes: dict[str, Shape]
    heads: bool
    uses: list[Use] = field(default_factory=list)
    fixes: list[Fix] = field(default_factory=list)
    crossed: set[Axis] = field(default_factory=set)
    convolved: set[Axis] = field(default_factory=set)
    _bases: dict[Axis, int] = field(default_factory=dict)
    _count: int = 0
    _pairs: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    _kept: list[np.ndarray] = field(default_factory=list)

    def axis(self, tensor: str, axis: int) -> np.ndarray | None:
        """The numbers of the positions along an axis; None where its size is free or unknown."""
        import numpy as np

        size = self.sizes[tensor][axis]
        if size is None:
            return None
        key = (tensor, axis % len(self.sizes[tensor]))
        if key not in self._bases:
            self._bases[key] = self._count
            self._count += size
        return np.arange(self._bases[key], self._bases[key] + size)

    def same(self, a: np.ndarray | None, b: np.ndarray | None) -> None:
        """These positions are the same channels, one by one; where that cannot be known, they stay."""
        if a is not None and b is not None and len(a) == len(b):
            self._pairs.append((a, b))
        else:
            self.keep(a)
            self.keep(b)

    def keep(self, positions: np.ndarray | None) -> None:
        """These positions must stay."""
        if positions is not None:
            self._kept.append(positions)

    def keep_tensor(self, tensor: str) -> None:
        """All of a tensor must stay."""
        for axis in range(len(self.sizes.get(tensor, ()))):
            self.keep(self.axis(tensor, axis))

    def groups(self) -> Iterator[Group]:
        """The bundles that may be removed, by what they touch, in the order of the graph."""
        import numpy as np
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not self._count:
            return
        ends = [np.concatenate(side) if self._pairs else np.zeros(0, int) for side in zip(*self._pairs, strict=True)]
        left, right = ends if ends else (np.zeros(0, int), np.zeros(0, int))
        edges = coo_array((np.ones(len(left)), (left, right)), shape=(self._count, self._count))
        count, bundle = connected_components(edges, directed=False)
        stays = np.zeros(count, bool)
        if self._kept:
            stays[bundle[np.concatenate(self._kept)]] = True
        keys = list(self._bases)
        starts = np.array([self._bases[key] for key in keys])
        block = np.searchsorted(starts, np.arange(self._count), side="right") - 1
        touched = np.unique(np.stack([bundle, block]), axis=1, return_counts=True)
        kinds: dict[bytes, list[int]] = {}
        borders = np.searchsorted(touched[0][0], np.arange(count + 1))
        for b in np.flatnonzero(~stays):
            part = slice(borders[b], borders[b + 1])
            kinds.setdefault(np.concatenate([touched[0][1, part], touched[1][part]]).tobytes(), []).append(int(b))
        for kind, members in kinds.items():
            numbers = np.frombuffer(kind, touched[0].dtype).reshape(2, -1)
            rank = np.full(count, -1)
            rank[members] = np.arange(len(members))
            positions = {}
            for which in numbers[0]:
                start, stop = starts[which], starts[which + 1] if which + 1 < len(starts) else self._count
                owner = rank[bundle[start:stop]]
                order = np.argsort(owner, kind="stable")
                positions[keys[which]] = order[np.sum(owner < 0) :].reshape(len(members), -1)
            yield Group(positions)


def couple(proto: onnx.ModelProto, constants: Constants, *, heads: bool) -> Coupling:
    """Asks every operator of a graph."""
    from portolan.passes._coupling_rules import RULES

    coupling = Coupling(constants, shapes(proto), heads)
    outside = [name for name, readers in users(proto).items() if ("", 0) in readers]
    for name in (*(value.name for value in proto.graph.input), *outside):
        coupling.keep_tensor(name)
    for node in proto.graph.node:
        names = [name for name in (*node.input, *node.output) if name]
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        known = rule is not None and not captured(node) and all(name in coupling.sizes for name in names)
        if rule is None or not known or not rule(coupling, proto, node):
            for name in names:
                coupling.keep_tensor(name)
    return coupling


def own_vectors(proto: onnx.ModelProto, constants: Constants, most: int = 16384) -> None:
    """Gives each node its own copy of small constants that several share: equal biases do not tie layers together."""
    seen: set[str] = set()
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            if name not in constants or not constants.shape(name):
                continue
            shape = constants.shape(name)
            vector = len(shape) == 1 or sum(size > 1 for size in shape) == 1
            if name in seen and vector and math.prod(shape) <= most:
                node.input[place] = constants.add(f"{name}.{node.output[0]}", constants[name])
            seen.add(name)
