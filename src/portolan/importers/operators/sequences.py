"""Sequences, which are lists while a program runs, and optional values, which are None where they hold nothing."""

from __future__ import annotations

from typing import Any

from portolan.errors import UnsupportedOperator
from portolan.importers import numpy_
from portolan.importers.operators.call import Call, Operator, sizes


def _at(call: Call, place: Any) -> int:
    return int(call.known(place, "the place in the sequence").reshape(()))


def _insert(call: Call, items: list[Any], item: Any, place: Any = None) -> list[Any]:
    found = list(items)
    found.insert(len(found) if place is None else _at(call, place), item)
    return found


def _erase(call: Call, items: list[Any], place: Any = None) -> list[Any]:
    found = list(items)
    del found[-1 if place is None else _at(call, place)]
    return found


def _joined(call: Call, items: list[Any]) -> Any:
    axis = call.get("axis")
    if all(map(numpy_.holds, items)):
        import numpy as np

        return np.stack(items, axis) if call.get("new_axis", 0) else np.concatenate(items, axis)
    parts = [call.traced.asarray(item) for item in items]
    if call.get("new_axis", 0):
        return call.traced.stack(parts, axis)
    return call.traced.concat(parts, axis % len(parts[0].shape))


def _split(call: Call, x: Any, given: Any = None) -> list[Any]:
    axis = call.get("axis", 0) % len(x.shape)
    size = x.shape[axis]
    if given is None:
        parts, whole = [1] * size, bool(call.get("keepdims", 1))
    else:
        held, whole = call.known(given, "the sizes of the parts"), True
        each = sizes(held)
        parts = each if held.ndim else [min(each[0], size - at) for at in range(0, size, each[0])]
    found, start = [], 0
    for part in parts:
        index = slice(start, start + part) if whole else start
        found.append(x[(*(slice(None) for _ in range(axis)), index)])
        start += part
    return found


def _element(call: Call, value: Any) -> Any:
    del call
    if value is None:
        raise UnsupportedOperator("an optional value that holds nothing is read", hint="check the model's inputs")
    return value


def _raw(function: Any, static: tuple[int, ...] = ()) -> Operator:
    return Operator(function, static=static, folds=False, raw=True)


OPERATORS: dict[str, Operator] = {
    "ConcatFromSequence": _raw(_joined),
    "Optional": _raw(lambda call, value=None: value),
    "OptionalGetElement": _raw(_element),
    "OptionalHasElement": _raw(lambda call, value=None: numpy_.array(value is not None)),
    "SequenceAt": _raw(lambda call, items, place: items[_at(call, place)], (1,)),
    "SequenceConstruct": _raw(lambda call, *items: list(items)),
    "SequenceEmpty": _raw(lambda call: []),
    "SequenceErase": _raw(_erase, (1,)),
    "SequenceInsert": _raw(_insert, (2,)),
    "SequenceLength": _raw(lambda call, items: numpy_.array(len(items))),
    "SplitToSequence": _raw(_split, (1,)),
}
