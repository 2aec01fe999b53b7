"""If, Loop and Scan. What is known as the program runs decides at once; loops are written out."""

from __future__ import annotations

from typing import Any

from portolan.errors import UnsupportedOperator
from portolan.importers import numpy_
from portolan.importers.operators.call import Call, Operator


def _if(call: Call, condition: Any) -> tuple[Any, ...]:
    held = condition if numpy_.holds(condition) else call.traced.known(condition)
    if held is not None:
        return tuple(call.body("then_branch" if held.any() else "else_branch"))
    # Nobody knows: both are computed, and elements chosen.
    ways = zip(call.body("then_branch"), call.body("else_branch"), strict=True)
    return tuple(_either(call, condition, *pair) for pair in ways)


def _either(call: Call, condition: Any, yes: Any, no: Any) -> Any:
    if isinstance(yes, list) or isinstance(no, list) or tuple(yes.shape) != tuple(no.shape):
        raise UnsupportedOperator(
            "the branches of `If` give results of different sizes, and which is taken is known only as the model runs",
            hint="`--backend onnxruntime` runs it",
        )
    xp = call.traced
    return xp.where(xp.reshape(xp.asarray(condition), []), xp.asarray(yes), xp.asarray(no))


def _loop(call: Call, limit: Any = None, condition: Any = None, *carried: Any) -> tuple[Any, ...]:
    last = None if limit is None else int(call.known(limit, "the number of rounds").reshape(()))
    going = condition is None or bool(call.known(condition, "the condition").any())
    state, rounds, found = list(carried), 0, []
    while going and (last is None or rounds < last):
        keep, *results = call.body("body", numpy_.array(rounds), numpy_.array(True), *state)
        state, scanned = results[: len(carried)], results[len(carried) :]
        found.append(scanned)
        going = bool(call.known(keep, "the condition").any())
        rounds += 1
    return (*state, *_stacked(call, found, call.outputs - len(carried), 0))


def _stacked(call: Call, found: list[list[Any]], count: int, axis: int) -> list[Any]:
    if count and not found:
        raise UnsupportedOperator("a loop without a round collects nothing", hint="`--backend onnxruntime` runs it")
    return [_stack(call, [row[i] for row in found], axis) for i in range(count)]


def _stack(call: Call, parts: list[Any], axis: int) -> Any:
    if all(map(numpy_.holds, parts)):
        import numpy as np

        return np.stack(parts, axis)
    return call.traced.stack([call.traced.asarray(part) for part in parts], axis)


def _scan(call: Call, *inputs: Any) -> tuple[Any, ...]:
    """Over slices of the last inputs; the first ones are carried. Before operator set 9 a batch came first."""
    if call.version < 9:
        return _batched(call, *inputs)
    count = call.get("num_scan_inputs")
    state, read = list(inputs[: len(inputs) - count]), inputs[len(inputs) - count :]
    axes, ways = call.get("scan_input_axes", [0] * count), call.get("scan_input_directions", [0] * count)
    rounds = read[0].shape[axes[0]]
    if type(rounds) is not int:
        raise UnsupportedOperator("`Scan` over a free size is not supported", hint="give it one: `--shapes`")
    found = []
    for step in range(rounds):
        places = [rounds - 1 - step if way else step for way in ways]
        slices = [_slice(v, axis % len(v.shape), at) for v, axis, at in zip(read, axes, places, strict=True)]
        results = call.body("body", *state, *slices)
        state, scanned = results[: len(state)], results[len(state) :]
        found.append(scanned)
    outputs = call.outputs - len(state)
    targets, turns = call.get("scan_output_axes", [0] * outputs), call.get("scan_output_directions", [0] * outputs)
    parts = []
    for i in range(outputs):
        rows = [row[i] for row in found]
        rank = len(rows[0].shape) + 1
        parts.append(_stack(call, rows[::-1] if turns[i] else rows, targets[i] % rank))
    return (*state, *parts)


def _batched(call: Call, lengths: Any, *inputs: Any) -> tuple[Any, ...]:
    count = call.get("num_scan_inputs")
    if lengths is not None or any(call.get("directions", [])):
        raise UnsupportedOperator("`Scan` of operator set 8 with lengths is not supported", hint="export a newer one")
    rows = []
    for at in range(inputs[0].shape[0]):
        state, read = [v[at] for v in inputs[: len(inputs) - count]], [v[at] for v in inputs[len(inputs) - count :]]
        found = []
        for step in range(read[0].shape[0]):
            results = call.body("body", *state, *(v[step] for v in read))
            state, scanned = results[: len(state)], results[len(state) :]
            found.append(scanned)
        rows.append([*state, *_stacked(call, found, call.outputs - len(state), 0)])
    return tuple(_stacked(call, rows, call.outputs, 0))


def _slice(x: Any, axis: int, at: int) -> Any:
    return x[(*(slice(None) for _ in range(axis)), at)]


OPERATORS: dict[str, Operator] = {
    "If": Operator(_if, folds=False, raw=True),
    "Loop": Operator(_loop, static=(0,), folds=False, raw=True),
    "Scan": Operator(_scan, folds=False, raw=True),
}
