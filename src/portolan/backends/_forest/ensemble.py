"""What ONNX says of an ensemble of trees, as the kernel reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]

DOMAIN = "ai.onnx.ml"
CLASSES = "TreeEnsembleClassifier"
TREES = (CLASSES, "TreeEnsembleRegressor")
#: As `forest.c` counts them.
_TRANSFORMS = {b"NONE": 0, b"LOGISTIC": 1, b"SOFTMAX": 2}
_NO_LABEL, _LARGEST, _SIDE_OF_ZERO, _SIDE_OF_HALF = range(4)
#: By mode: whether a value equal to the threshold goes with those below it, and whether these take the true branch.
_MODES = {
    b"BRANCH_LEQ": (True, True),
    b"BRANCH_LT": (False, True),
    b"BRANCH_GT": (True, False),
    b"BRANCH_GTE": (False, False),
}
_LEAF = b"LEAF"
#: The bit of a feature's number that sends NaN to the branch of what is below.
_MISSING = 2**31
#: Numbers of trees, nodes and features are smaller than that.
_MOST = 2**31
_MOST_SUMS = 2**20
#: How much larger than the votes themselves their table may be: what is not voted for takes memory too.
_SPARSE = 8
#: Numbers that any table may have.
_ROOM = 2**23
NODE = np.dtype([("at", np.float32), ("feature", np.uint32), ("child", np.uint32), ("vote", np.float32)])
TREE = np.dtype([(name, np.uint32) for name in ("root", "depth", "target", "none")])


class Unreadable(ValueError):
    """An ensemble that the kernel has no form for; the message says with what."""


@dataclass(frozen=True)
class Ensemble:
    """Trees, and what is made of their votes.

    Attributes:
        nodes: all inner nodes and leaves, `NODE` [nodes].
        trees: `TREE` [trees], the shallowest first.
        votes: f32 [leaves, sums]: what leaves add; None where each holds what it adds to its tree's target.
        base: f64 [sums]: what is added in the end.
        transform: which numbers become scores, as `forest.c` counts.
        label: where the label comes from, likewise.
        names: i64, what classes are called; empty without a label.
        features: how many of a row are read at least.
        missing: whether NaN goes to a branch of its own anywhere.
    """

    nodes: Array
    trees: Array
    votes: Array | None
    base: Array
    transform: int
    label: int
    names: Array
    features: int
    missing: bool

    @property
    def outputs(self) -> int:
        """Scores of a row."""
        return 2 if self.label in (_SIDE_OF_ZERO, _SIDE_OF_HALF) else len(self.base)


def read(node: onnx.NodeProto) -> Ensemble:
    """The ensemble of a TreeEnsembleClassifier or TreeEnsembleRegressor.

    Raises:
        Unreadable: it is broken, or of a kind that the kernel cannot do.
    """
    values = {attribute.name: attribute for attribute in node.attribute}
    if doubles := sorted(name for name in values if name.endswith("_as_tensor")):
        raise Unreadable(f"{doubles[0]} in float64")
    meaning = _Meaning.of(values, node.op_type == CLASSES)
    nodes = _Nodes.of(values)
    order, depths = nodes.places()
    table, target = _table(nodes, meaning.votes, meaning.sums)
    if meaning.label == _LARGEST and not _complete(nodes, meaning.votes, meaning.sums, table.shape[1]):
        raise Unreadable("classes that nobody votes for")  # they are not the largest, even if the others are below zero
    written, leaf = _written(nodes, order), nodes.leaf[order]
    rows = table[order][leaf]
    wide = rows.shape[1] > 1
    written["vote"][leaf] = np.arange(len(rows), dtype=np.int32).view(np.float32) if wide else rows[:, 0]
    trees = np.zeros(len(depths), TREE)
    trees["root"] = np.searchsorted(nodes.tree[order], np.arange(len(depths)))
    trees["depth"], trees["target"] = depths, target
    return Ensemble(
        written, trees[np.argsort(depths, kind="stable")], rows if wide else None, meaning.base,
        meaning.transform, meaning.label, meaning.names, int(nodes.feature.max()) + 1, bool(nodes.missing.any()),
    )  # fmt: skip


@dataclass(frozen=True)
class _Meaning:
    """What is made of votes.

    Attributes:
        votes: with the sums that they are for, counted from 0.
        base, transform, label, names: as in Ensemble.
    """

    votes: _Votes
    base: Array
    transform: int
    label: int
    names: Array

    @property
    def sums(self) -> int:
        """How many a row has."""
        return len(self.base)

    @classmethod
    def of(cls, values: Mapping[str, Any], classes: bool) -> _Meaning:
        votes = _Votes.of(values, "class" if classes else "target")
        transform = values["post_transform"].s if "post_transform" in values else b"NONE"
        if transform not in _TRANSFORMS:
            raise Unreadable(f"post_transform {_said(transform)}")
        how = values["aggregate_function"].s if "aggregate_function" in values else b"SUM"
        if how not in (b"SUM", b"AVERAGE"):
            raise Unreadable(f"aggregate_function {_said(how)}")
        names = np.array(values["classlabels_int64s"].ints if "classlabels_int64s" in values else [], np.int64)
        label, sums = _NO_LABEL, values["n_targets"].i if "n_targets" in values else 1
        if classes:
            if not len(names):
                raise Unreadable("labels that are no integers")
            label, sums = _LARGEST, len(names)
            if sums == 2:  # one sum, which stands for the second class though votes name the first
                if votes.target.any():
                    raise Unreadable("votes for both of two classes, where ONNX Runtime has rules of its own")
                label, sums = _SIDE_OF_HALF if (votes.weight >= 0).all() else _SIDE_OF_ZERO, 1
        if transform != b"NONE" and (label == _SIDE_OF_HALF or (label == _NO_LABEL and sums == 1)):
            raise Unreadable(f"post_transform {_said(transform)} of one sum, which runtimes read differently")
        if not 0 < sums < _MOST_SUMS:
            raise Unreadable(f"{sums} sums")
        base = np.array(values["base_values"].floats if "base_values" in values else [], np.float64)
        if len(base) not in (0, sums):
            raise Unreadable(f"{len(base)} base_values for {sums} sums")
        if how == b"AVERAGE":
            votes = replace(votes, weight=votes.weight / len(np.unique(values["nodes_treeids"].ints)))
        return cls(votes, base if len(base) else np.zeros(sums), _TRANSFORMS[transform], label, names)


def _said(value: bytes) -> str:
    return value.decode(errors="replace")


@dataclass(frozen=True)
class _Votes:
    """What leaves say: of which tree and node, for which target, how much."""

    tree: Array
    node: Array
    target: Array
    weight: Array

    @classmethod
    def of(cls, values: Mapping[str, Any], kind: str) -> _Votes:
        names = [f"{kind}_{name}" for name in ("treeids", "nodeids", "ids", "weights")]
        if lacking := next((name for name in names if name not in values), None):
            raise Unreadable(f"no {lacking}")
        *whole, weight = (values[name] for name in names)
        tree, node, target = (np.array(one.ints, np.int64) for one in whole)
        votes = cls(tree, node, target, np.array(weight.floats, np.float64))
        if len({len(tree), len(node), len(target), len(votes.weight)}) > 1 or not len(tree):
            raise Unreadable(f"{kind}_* of different lengths, or none")
        return votes


@dataclass(frozen=True)
class _Nodes:
    """Nodes in the order of their trees and numbers.

    Attributes:
        key: number of each among all, by tree and node; ascending.
        span: what a tree's number is multiplied with in it.
        tree: which tree each is of, counted from 0.
        leaf: whether it is a leaf.
        at: the threshold: what is at most that goes below, the rest above. NaN where nothing is.
        feature: what it compares.
        missing: whether NaN goes below.
        below, above: where they lead, as places in this order; leaves lead nowhere.
    """

    key: Array
    span: int
    tree: Array
    leaf: Array
    at: Array
    feature: Array
    missing: Array
    below: Array
    above: Array

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> _Nodes:
        needed = ("treeids", "nodeids", "featureids", "truenodeids", "falsenodeids")
        if lacking := next((n for n in (*needed, "modes", "values") if f"nodes_{n}" not in values), None):
            raise Unreadable(f"no nodes_{lacking}")
        ids = {name: np.array(values[f"nodes_{name}"].ints, np.int64) for name in needed}
        modes = np.array(values["nodes_modes"].strings, dtype=object)
        at = np.array(values["nodes_values"].floats, np.float32)
        given = values.get("nodes_missing_value_tracks_true")
        tracks = np.array(given.ints if given is not None and given.ints else np.zeros(len(modes)), bool)
        if len({len(array) for array in (*ids.values(), modes, at, tracks)}) > 1 or not len(modes):
            raise Unreadable("nodes_* of different lengths, or none")
        if min(array.min() for array in ids.values()) < 0 or max(array.max() for array in ids.values()) >= _MOST:
            raise Unreadable("numbers of nodes below zero, or too large")
        if unknown := {*modes} - {*_MODES, _LEAF}:
            raise Unreadable(f"nodes of the mode {min(unknown).decode(errors='replace')}")
        span = int(max(ids[name].max() for name in ("nodeids", "truenodeids", "falsenodeids"))) + 1
        order = np.argsort(ids["treeids"] * span + ids["nodeids"], kind="stable")
        ids, modes, at, tracks = {n: array[order] for n, array in ids.items()}, modes[order], at[order], tracks[order]
        key, leaf = ids["treeids"] * span + ids["nodeids"], modes == _LEAF
        with_equal, straight = (np.array([_MODES.get(mode, (True, True))[k] for mode in modes]) for k in (0, 1))
        under = np.nextafter(at, np.float32(-np.inf))
        under[np.isneginf(at)] = np.nan  # nothing is below minus infinity
        true, false = (
            np.where(leaf, 0, _place(key, ids["treeids"] * span + ids[name], ~leaf))
            for name in ("truenodeids", "falsenodeids")
        )
        return cls(
            key, span, np.unique(ids["treeids"], return_inverse=True)[1], leaf,
            np.where(leaf, np.float32(np.nan), np.where(with_equal, at, under)), np.where(leaf, 0, ids["featureids"]),
            (tracks == straight) & ~leaf, np.where(straight, true, false), np.where(straight, false, true),
        )  # fmt: skip

    def places(self) -> tuple[Array, Array]:
        """All nodes tree by tree, what a node leads to side by side; and the depth of each tree.

        Raises:
            Unreadable: what hangs together is no tree.
        """
        inner = ~self.leaf
        parents = np.bincount(np.concatenate([self.below[inner], self.above[inner]]), minlength=len(self.leaf))
        level = np.flatnonzero(parents == 0)
        if parents.max() > 1 or len(level) != self.tree[-1] + 1 or (self.tree[level] != np.arange(len(level))).any():
            raise Unreadable("nodes that make no tree")
        levels, depths = [level], np.zeros(len(level), np.int64)
        while len(inner := level[~self.leaf[level]]):
            level = np.stack([self.above[inner], self.below[inner]], axis=1).ravel()
            depths[self.tree[level]] = len(levels)
            levels.append(level)
        order = np.concatenate(levels)
        if len(order) != len(self.leaf):  # what no root leads to goes round in a circle
            raise Unreadable("nodes that make no tree")
        return order[np.argsort(self.tree[order], kind="stable")], depths


def _place(keys: Array, wanted: Array, used: Array) -> Array:
    found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    if (keys[found] != wanted)[used].any():
        raise Unreadable("a node that leads nowhere")
    return found


def _written(nodes: _Nodes, order: Array) -> Array:
    """The nodes as the kernel reads them, in that order, without votes."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    written = np.zeros(len(order), NODE)
    written["at"] = nodes.at[order]
    written["feature"] = np.where(nodes.missing, nodes.feature | _MISSING, nodes.feature)[order]
    written["child"] = place[np.where(nodes.leaf, np.arange(len(order)), nodes.above)][order]
    return written


def _table(nodes: _Nodes, votes: _Votes, targets: int) -> tuple[Array, Array]:
    """What each node adds to sums, and the sum that each tree begins with.

    Returns:
        f32 [nodes, 1 or targets], and [trees].
    """
    if votes.target.min() < 0 or votes.target.max() >= targets:
        raise Unreadable("votes for a target that is not there")
    place = _place(nodes.key, votes.tree * nodes.span + votes.node, np.ones(len(votes.tree), bool))
    if not nodes.leaf[place].all():
        raise Unreadable("votes of a node that is no leaf")
    tree = nodes.tree[place]
    first, last = (np.full(nodes.tree[-1] + 1, fill) for fill in (targets, -1))
    np.minimum.at(first, tree, votes.target)
    np.maximum.at(last, tree, votes.target)
    alone = bool((first >= last).all())  # one target for each tree, as boosting has
    if not alone and len(nodes.leaf) * targets > max(_SPARSE * len(votes.target), _ROOM):
        raise Unreadable("few votes for many sums")
    table = np.zeros((len(nodes.leaf), 1 if alone else targets), np.float64)
    np.add.at(table, (place, np.where(alone, 0, votes.target)), votes.weight)
    return table.astype(np.float32), np.maximum(last, 0) if alone else np.zeros_like(last)


def _complete(nodes: _Nodes, votes: _Votes, targets: int, width: int) -> bool:
    """Whether each leaf votes for all of its tree's targets, and each target has votes."""
    pairs = np.unique(np.stack([votes.tree * nodes.span + votes.node, votes.target]), axis=1).shape[1]
    return pairs == nodes.leaf.sum() * width and len(np.unique(votes.target)) == targets
