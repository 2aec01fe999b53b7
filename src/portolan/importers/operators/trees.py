"""Trees and forests of `ai.onnx.ml`: every tree is walked for every row at once, as deep as the deepest goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portolan.errors import UnsupportedOperator
from portolan.importers.operators.call import Call, Operator

if TYPE_CHECKING:
    import numpy as np

#: How a node compares, by the number that `TreeEnsemble` gives it, with the older operators' words.
_MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "member")
_LEAF = "LEAF"
_OTHER = "`--backend onnxruntime` runs it"


@dataclass(frozen=True)
class Forest:
    """Trees as arrays over all nodes: inner ones first, then leaves, which are their own children.

    Attributes:
        features, modes, splits: of inner nodes, and zeros for leaves.
        tracks: of inner nodes, whether a missing value passes the test.
        true, false: children.
        roots: one for each tree.
        inner: how many nodes are no leaves.
        sets: the members of tests of membership, in the order of their nodes.
    """

    features: np.ndarray
    modes: np.ndarray
    splits: np.ndarray
    tracks: np.ndarray
    true: np.ndarray
    false: np.ndarray
    roots: np.ndarray
    inner: int
    sets: Sequence[np.ndarray] = ()

    def leaves(self, call: Call, x: Any) -> Any:
        """The number of the leaf that each row [n, features] comes to in each tree: [n, trees]."""
        xp, take = call.xp, call.xp.take
        at = xp.broadcast_to(xp.asarray(self.roots.reshape(1, -1)), [x.shape[0], len(self.roots)])
        columns, kinds, bounds = (xp.asarray(part) for part in (self.features, self.modes, self.splits))
        used = set(self.modes[: self.inner].tolist())
        for _ in range(_depth(self.true, self.false, self.roots, self.inner)):
            value, bound, kind = xp.take_along(x, take(columns, at, 0), 1), take(bounds, at, 0), take(kinds, at, 0)
            passed = None
            for mode in sorted(used):
                test = self._test(call, mode, value, bound, at)
                passed = test if passed is None else xp.where(kind == mode, test, passed)
            if self.tracks.any():
                missing = xp.logical_and(xp.isnan(value), take(xp.asarray(self.tracks), at, 0))
                passed = xp.logical_or(passed, missing)
            at = xp.where(passed, take(xp.asarray(self.true), at, 0), take(xp.asarray(self.false), at, 0))
        return at - self.inner

    def _test(self, call: Call, mode: int, value: Any, bound: Any, at: Any) -> Any:
        if mode == len(_MODES) - 1:
            which = call.xp.take(call.xp.asarray(_which(self.modes, self.inner)), at, 0)
            return _member(call, value, which, self.sets)
        tests = {
            0: lambda: value <= bound, 1: lambda: value < bound, 2: lambda: value >= bound, 3: lambda: value > bound,
            4: lambda: value == bound, 5: lambda: value != bound,
        }  # fmt: skip
        return tests[mode]()


def _trees(call: Call, x: Any) -> Any:
    """`TreeEnsemble`, the operator of newer sets."""
    import numpy as np

    leaves = np.asarray(call.get("leaf_weights"))
    features, modes = np.array(call.get("nodes_featureids")), np.asarray(call.get("nodes_modes")).reshape(-1)
    splits, count = np.asarray(call.get("nodes_splits")).reshape(-1), len(features)
    _check_modes(modes, splits, call.get("membership_values"))
    tracks = np.array(call.get("nodes_missing_value_tracks_true") or np.zeros(count), bool)
    padded = [np.concatenate([part, np.zeros(len(leaves), part.dtype)]) for part in (features, modes, splits, tracks)]
    true = _children(call.get("nodes_trueleafs"), call.get("nodes_truenodeids"), count, len(leaves))
    false = _children(call.get("nodes_falseleafs"), call.get("nodes_falsenodeids"), count, len(leaves))
    roots, sets = np.array(call.get("tree_roots")), _sets(call.get("membership_values"))
    forest = Forest(padded[0], padded[1], padded[2], padded[3], true, false, roots, count, sets)
    return _voted(call, x, forest.leaves(call, x), leaves)


def _older(call: Call, votes: str) -> tuple[Forest, np.ndarray]:
    """The forest of `TreeEnsembleClassifier` and `TreeEnsembleRegressor`, and what each leaf adds: [leaves, targets].

    Nodes are named by their tree and a number in it; `votes` is the prefix of the attributes about leaves.
    """
    import numpy as np

    modes = list(call.get("nodes_modes"))
    names = list(zip(call.get("nodes_treeids"), call.get("nodes_nodeids"), strict=True))
    order = sorted(range(len(names)), key=lambda i: modes[i] == _LEAF)
    place = {names[i]: at for at, i in enumerate(order)}
    inner = sum(mode != _LEAF for mode in modes)

    def ordered(name: str, missing: float = 0) -> np.ndarray:
        given = call.get(name)
        return np.array([missing] * len(names) if given is None else given)[order]

    def child(name: str) -> np.ndarray:
        given = call.get(name)
        return np.array([place[names[i][0], given[i]] if modes[i] != _LEAF else place[names[i]] for i in order])

    splits = _numbers(call, "nodes_values")[order]
    kinds = np.array([0 if modes[i] == _LEAF else _MODES.index(modes[i]) for i in order])
    children = child("nodes_truenodeids"), child("nodes_falsenodeids")
    # A tree begins at the node that is nobody's child.
    below = {c for side in children for at, c in enumerate(side[:inner].tolist()) if c != at}
    first: dict[int, int] = {}
    for at, i in enumerate(order):
        if at not in below:
            first.setdefault(names[i][0], at)
    tracks = ordered("nodes_missing_value_tracks_true").astype(bool)
    forest = Forest(
        ordered("nodes_featureids").astype(np.int64), kinds, splits, tracks, *children,
        np.array([first[tree] for tree in sorted(first)]), inner,
    )  # fmt: skip
    ids = np.array(call.get(f"{votes}_ids"), np.int64)
    wide = max(int(call.get("n_targets", 0)), int(ids.max(initial=0)) + 1, len(call.get("classlabels_int64s") or ()))
    table = np.zeros((len(names) - inner, wide), splits.dtype)
    nodes = zip(call.get(f"{votes}_treeids"), call.get(f"{votes}_nodeids"), strict=True)
    for name, target, weight in zip(nodes, ids, _numbers(call, f"{votes}_weights"), strict=True):
        table[place[name] - inner, target] += weight
    return forest, table


def _numbers(call: Call, name: str) -> np.ndarray:
    import numpy as np

    tensor = call.get(f"{name}_as_tensor")
    return np.array(call.get(name, ()), np.float32) if tensor is None else np.asarray(tensor).reshape(-1)


def _gathered(call: Call, forest: Forest, table: np.ndarray, x: Any) -> Any:
    """What each row's leaves add, not yet joined: [n, trees, targets]."""
    return call.xp.take(call.xp.asarray(table), forest.leaves(call, x), 0)


def _based(call: Call, scores: Any) -> Any:
    base = _numbers(call, "base_values")
    return scores + call.xp.asarray(base.astype("float32")) if len(base) else scores


def _regressor(call: Call, x: Any) -> Any:
    x = call.xp.astype(x, "float32")
    forest, table = _older(call, "target")
    if call.get("post_transform", "NONE") != "NONE":
        raise UnsupportedOperator("`TreeEnsembleRegressor` with a last step is not supported", hint=_OTHER)
    each, how = _gathered(call, forest, table, x), call.get("aggregate_function", "SUM")
    if how not in ("SUM", "AVERAGE"):
        raise UnsupportedOperator(f"`TreeEnsembleRegressor` that joins by {how} is not supported", hint=_OTHER)
    total = call.xp.reduce("sum", each, (1,), False)
    return _based(call, total / len(forest.roots) if how == "AVERAGE" else total)


def _classifier(call: Call, x: Any) -> Any:
    """Labels and scores. Two classes of which only one has votes are told apart by its score alone."""
    import numpy as np

    labels = call.get("classlabels_int64s")
    if labels is None:
        raise UnsupportedOperator("`TreeEnsembleClassifier` with labels of text is not supported", hint=_OTHER)
    xp, last = call.xp, call.get("post_transform", "NONE")
    if last not in ("NONE", "LOGISTIC", "SOFTMAX"):
        raise UnsupportedOperator(f"`TreeEnsembleClassifier` with {last} is not supported", hint=_OTHER)
    forest, table = _older(call, "class")
    scores = xp.reduce("sum", _gathered(call, forest, table, xp.astype(x, "float32")), (1,), False)
    names = xp.asarray(np.array(labels, np.int64))
    voted = np.unique(np.array(call.get("class_ids")))
    if len(labels) == 2 and len(voted) == 1:
        one = _only(call, scores[:, int(voted[0]) : int(voted[0]) + 1])
        positive = bool((_numbers(call, "class_weights") >= 0).all())
        both = xp.concat([1 - one, one] if positive else [-1 * one, one], 1)
        chosen = xp.astype(one[:, 0] > (0.5 if positive else 0.0), "int64")
        return xp.take(names, chosen, 0), xp.sigmoid(both) if last == "LOGISTIC" and not positive else both
    scores = _based(call, scores)
    chosen = xp.astype(scores[:, 1] > 0, "int64") if len(labels) == 2 else xp.argmax(scores, 1)
    after = {"NONE": lambda v: v, "LOGISTIC": xp.sigmoid, "SOFTMAX": lambda v: xp.softmax(v, -1)}[last]
    return xp.take(names, chosen, 0), after(scores)


def _only(call: Call, score: Any) -> Any:
    """The one score with its base: of two values the second is that of the class that counts."""
    base = _numbers(call, "base_values")
    return score + float(base[-1]) if len(base) else score


def _children(leaf: Any, ids: Any, count: int, leaves: int) -> np.ndarray:
    import numpy as np

    own = np.array(ids) + np.where(np.array(leaf) != 0, count, 0)
    return np.concatenate([own, count + np.arange(leaves)]).astype(np.int64)


def _depth(true: np.ndarray, false: np.ndarray, roots: np.ndarray, count: int) -> int:
    level, depth = {int(r) for r in roots if r < count}, 0
    while level and depth <= count:
        depth += 1
        level = {int(c) for n in level for c in (true[n], false[n]) if c < count}
    return depth


def _check_modes(modes: np.ndarray, splits: np.ndarray, members: Any) -> None:
    if len(modes) != len(splits) or modes.max(initial=0) >= len(_MODES) or (modes == 6).any() != (members is not None):
        raise UnsupportedOperator("the trees' tests cannot be read", hint="convert the model again")


def _sets(members: Any) -> list[np.ndarray]:
    """The sets of member tests in the order of their nodes: a NaN ends each."""
    import numpy as np

    if members is None:
        return []
    flat = np.asarray(members).reshape(-1)
    ends = np.flatnonzero(np.isnan(flat))
    return [part[~np.isnan(part)] for part in np.split(flat, ends + 1) if len(part)]


def _which(modes: np.ndarray, inner: int) -> np.ndarray:
    """For each node with a member test, the number of its set; -1 elsewhere."""
    import numpy as np

    mine = (modes == len(_MODES) - 1) & (np.arange(len(modes)) < inner)
    return np.where(mine, np.cumsum(mine) - 1, -1).astype(np.int64)


def _member(call: Call, value: Any, which: Any, sets: Sequence[np.ndarray]) -> Any:
    found = value != value
    for number, held in enumerate(sets):
        inside = value != value
        for one in held.tolist():
            inside = call.xp.logical_or(inside, value == one)
        found = call.xp.logical_or(found, call.xp.logical_and(which == number, inside))
    return found


def _voted(call: Call, x: Any, leaf: Any, leaves: np.ndarray) -> Any:
    """The leaves' weights joined for each target, then made what the model gives."""
    import numpy as np

    targets, how = np.array(call.get("leaf_targetids")), call.get("aggregate_function", 1)
    if call.get("post_transform", 0) not in (0, 1, 2):
        raise UnsupportedOperator("`TreeEnsemble` with that last step is not supported", hint="`--backend onnxruntime`")
    columns = []
    weights, owner = call.xp.take(call.xp.asarray(leaves), leaf, 0), call.xp.take(call.xp.asarray(targets), leaf, 0)
    for target in range(call.get("n_targets", 1)):
        mine = owner == target
        if how in (0, 1):
            total = call.xp.reduce("sum", call.xp.where(mine, weights, 0 * weights), (1,), False)
            columns.append(total / leaf.shape[1] if how == 0 else total)
        else:
            edge = np.asarray(np.inf if how == 2 else -np.inf, leaves.dtype)
            held = call.xp.where(mine, weights, call.xp.asarray(edge))
            columns.append(call.xp.reduce("min" if how == 2 else "max", held, (1,), False))
    found = call.xp.astype(call.xp.stack(columns, 1), call.xp.dtype(x))
    if call.get("post_transform", 0) == 1:
        return call.xp.softmax(found, -1)
    return call.xp.sigmoid(found) if call.get("post_transform", 0) == 2 else found


OPERATORS: dict[str, Operator] = {
    "TreeEnsemble": Operator(_trees, folds=False),
    "TreeEnsembleClassifier": Operator(_classifier, folds=False),
    "TreeEnsembleRegressor": Operator(_regressor, folds=False),
}
