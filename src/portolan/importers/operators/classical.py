"""Classical machine learning: the operators of the domain `ai.onnx.ml` that compute with numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from portolan.errors import UnsupportedOperator
from portolan.importers.operators.call import Call, Operator

if TYPE_CHECKING:
    import numpy as np

#: How a node of a tree compares, by the number that `TreeEnsemble` gives it.
_MODES = ("less_equal", "less", "greater_equal", "greater", "equal", "not_equal", "member")


def _binarize(call: Call, x: Any) -> Any:
    return call.xp.astype(x > call.get("threshold", 0.0), call.xp.dtype(x))


def _extract(call: Call, x: Any, places: Any) -> Any:
    found = call.xp.take(x, call.xp.reshape(places, [-1]), len(x.shape) - 1)
    return call.xp.reshape(found, [1, -1]) if len(x.shape) == 1 else found


def _scale(call: Call, x: Any) -> Any:
    import numpy as np

    offset, factor = (np.array(call.get(name), np.float32) for name in ("offset", "scale"))
    x = call.xp.astype(x, "float32")
    return (x - call.xp.asarray(offset)) * call.xp.asarray(factor)


def _label(call: Call, x: Any) -> Any:
    """Keys to values, numbers both: the place of each element among the sorted keys."""
    import numpy as np

    keys, values, default = _pair(call)
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    default = values.dtype.type(default)
    flat = call.xp.reshape(x, [-1, 1])
    table = call.xp.asarray(np.reshape(keys, [1, -1]))
    same = flat == table
    if keys.dtype.kind == "f":
        same = call.xp.logical_or(same, call.xp.logical_and(call.xp.isnan(flat), call.xp.isnan(table)))
    place = call.xp.argmax(call.xp.astype(same, "int32"), 1)
    hit = call.xp.reduce("max", call.xp.astype(same, "int32"), (1,), False) > 0
    found = call.xp.where(hit, call.xp.take(call.xp.asarray(values), place, 0), call.xp.asarray(np.asarray(default)))
    return call.xp.reshape(found, list(x.shape))


def _pair(call: Call) -> tuple[np.ndarray, np.ndarray, Any]:
    import numpy as np

    found = {}
    for side in ("keys", "values"):
        kinds = {f"{side}_int64s": np.int64, f"{side}_floats": np.float32}
        given = next((np.array(call.get(n), t) for n, t in kinds.items() if call.get(n) is not None), None)
        given = call.get(f"{side}_tensor") if given is None else given
        if given is None or given.dtype.kind not in "fiub":
            raise UnsupportedOperator(
                "`LabelEncoder` of strings is not supported: arrays hold numbers",
                hint="`--backend onnxruntime` runs it",
            )
        found[side] = given
    tensor = call.get("default_tensor")
    if tensor is not None:
        default: Any = tensor.reshape(-1)[0]
    else:
        default = (
            call.get("default_int64", -1) if found["values"].dtype.kind == "i" else call.get("default_float", -0.0)
        )
    return found["keys"], found["values"], default


def _trees(call: Call, x: Any) -> Any:
    """Every tree walked for every row at once, as deep as the deepest: child = where(test, true, false)."""
    import numpy as np

    leaves = np.asarray(call.get("leaf_weights"))
    features, modes = np.array(call.get("nodes_featureids")), np.asarray(call.get("nodes_modes")).reshape(-1)
    splits, roots = np.asarray(call.get("nodes_splits")).reshape(-1), np.array(call.get("tree_roots"))
    count = len(features)
    # Nodes first, then leaves, which are their own children.
    true = _children(call.get("nodes_trueleafs"), call.get("nodes_truenodeids"), count, len(leaves))
    false = _children(call.get("nodes_falseleafs"), call.get("nodes_falsenodeids"), count, len(leaves))
    _check_modes(modes, splits, call.get("membership_values"))
    sets = _sets(call.get("membership_values"))
    take, xp = call.xp.take, call.xp
    at = xp.broadcast_to(xp.asarray(roots.reshape(1, -1)), [x.shape[0], len(roots)])
    padded = [np.concatenate([part, np.zeros(len(leaves), part.dtype)]) for part in (features, modes, splits)]
    columns, kinds, bounds = (xp.asarray(part) for part in padded)
    for _ in range(_depth(true, false, roots, count)):
        value, bound, kind = xp.take_along(x, take(columns, at, 0), 1), take(bounds, at, 0), take(kinds, at, 0)
        tests = [value <= bound, value < bound, value >= bound, value > bound, value == bound, value != bound]
        tests.append(_member(call, value, take(xp.asarray(_which(modes, len(leaves))), at, 0), sets))
        passed = tests[0]
        for number, test in enumerate(tests[1:], 1):
            passed = xp.where(kind == number, test, passed)
        at = xp.where(passed, take(xp.asarray(true), at, 0), take(xp.asarray(false), at, 0))
    return _voted(call, x, at - count, leaves)


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


def _which(modes: np.ndarray, leaves: int) -> np.ndarray:
    """For each node with a member test, the number of its set; -1 elsewhere."""
    import numpy as np

    found = np.where(modes == 6, np.cumsum(modes == 6) - 1, -1)
    return np.concatenate([found, np.full(leaves, -1)]).astype(np.int64)


def _member(call: Call, value: Any, which: Any, sets: list[np.ndarray]) -> Any:
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


def _grams(call: Call, x: Any) -> Any:
    """Counts of n-grams from a list, with up to so many elements skipped between their members."""
    import numpy as np

    pool = call.get("pool_int64s")
    if pool is None:
        raise UnsupportedOperator(
            "`TfIdfVectorizer` of strings is not supported", hint="`--backend onnxruntime` runs it"
        )
    starts, places, weights = call.get("ngram_counts"), call.get("ngram_indexes"), call.get("weights")
    flat = call.xp.reshape(x, [1, -1]) if len(x.shape) == 1 else x
    zero = call.xp.astype(flat[:, 0] * 0, "float32")
    columns, number = [zero] * (max(places) + 1), 0
    for length, (start, end) in enumerate(zip(starts, [*starts[1:], len(pool)], strict=True), 1):
        for first in range(start, end, length):
            place = places[number]
            number += 1
            if call.get("min_gram_length") <= length <= call.get("max_gram_length"):
                count = _occurrences(call, flat, pool[first : first + length])
                columns[place] = zero if count is None else count
    factors = np.ones(len(columns), np.float32)
    if weights is not None:
        factors[np.array(places)] = weights
    counts = call.xp.stack(columns, 1)
    if call.get("mode") != "TF":
        counts = call.xp.astype(counts > 0, "float32") if call.get("mode") == "IDF" else counts
        counts = counts * call.xp.asarray(factors)
    return call.xp.reshape(counts, [-1]) if len(x.shape) == 1 else counts


def _occurrences(call: Call, x: Any, gram: list[int]) -> Any:
    total: Any = None
    for skip in range(1 if len(gram) == 1 else call.get("max_skip_count") + 1):
        last = x.shape[1] - (len(gram) - 1) * (skip + 1)
        if last <= 0:
            continue
        same: Any = None
        for i, member in enumerate(gram):
            begin = i * (skip + 1)
            hit = x[:, begin : begin + last] == member
            same = hit if same is None else call.xp.logical_and(same, hit)
        count = call.xp.reduce("sum", call.xp.astype(same, "float32"), (1,), False)
        total = count if total is None else total + count
    return total


OPERATORS: dict[str, Operator] = {
    "ArrayFeatureExtractor": Operator(_extract, folds=False),
    "Binarizer": Operator(_binarize, folds=False),
    "LabelEncoder": Operator(_label, folds=False),
    "Scaler": Operator(_scale, folds=False),
    "TfIdfVectorizer": Operator(_grams, folds=False),
    "TreeEnsemble": Operator(_trees, folds=False),
}
