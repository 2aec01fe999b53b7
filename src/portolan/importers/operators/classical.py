"""Classical machine learning: the operators of the domain `ai.onnx.ml` that compute with numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from portolan.errors import UnsupportedOperator
from portolan.importers.operators.call import Call, Operator

if TYPE_CHECKING:
    import numpy as np


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
}
