"""RNN, LSTM and GRU as loops over the sequence, in ONNX's own order of gates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from portolan.errors import UnsupportedOperator
from portolan.importers.operators.call import Call, Operator

State = tuple[Any, ...]
Activation = Callable[[Any], Any]


@dataclass(frozen=True)
class Weights:
    """What one direction needs: recurrent weights [size, gates], the recurrent bias, peepholes, activations."""

    r: Any
    bias: Any
    peepholes: Any
    functions: tuple[Activation, ...]


#: One step: (call, input of the gates [batch, gates], state, weights) to the next state.
Cell = Callable[[Call, Any, State, Weights], State]


def _lstm(call: Call, x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, h: Any = None, c: Any = None,
          peepholes: Any = None) -> tuple[Any, ...]:  # fmt: skip
    return _run(call, _lstm_cell, ("Sigmoid", "Tanh", "Tanh"), 4, (x, w, r, b, lengths, peepholes), (h, c))


def _gru(call: Call, x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, h: Any = None) -> tuple[Any, ...]:
    return _run(call, _gru_cell, ("Sigmoid", "Tanh"), 3, (x, w, r, b, lengths, None), (h,))


def _rnn(call: Call, x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, h: Any = None) -> tuple[Any, ...]:
    return _run(call, _rnn_cell, ("Tanh",), 1, (x, w, r, b, lengths, None), (h,))


def _activations(call: Call, usual: tuple[str, ...], directions: int) -> list[tuple[Activation, ...]]:
    """For each direction; what has parameters of its own is refused."""
    known: Mapping[str, Activation] = {
        "sigmoid": call.xp.sigmoid, "tanh": call.xp.tanh, "relu": call.xp.relu, "softsign": _softsign(call),
    }  # fmt: skip
    given = [name.lower() for name in call.get("activations") or usual * directions]
    odd = [name for name in given if name not in known]
    if odd or call.get("clip") or call.get("input_forget", 0) or len(given) != len(usual) * directions:
        raise UnsupportedOperator(
            "a recurrent layer with a clip, coupled gates or activations of other kinds is not supported",
            hint="export it in its plain form",
        )
    each = len(usual)
    return [tuple(known[name] for name in given[i * each : (i + 1) * each]) for i in range(directions)]


def _softsign(call: Call) -> Activation:
    return lambda x: x / (1 + call.xp.abs(x))


def _run(
    call: Call, cell: Cell, usual: tuple[str, ...], gates: int, given: tuple[Any, ...], first: State
) -> tuple[Any, ...]:
    """Both directions: outputs [steps, directions, batch, size], then the last of each state."""
    x, w, r, b, lengths, peepholes = given
    size, both = call.get("hidden_size"), call.get("direction", "forward")
    rows_first = bool(call.get("layout", 0))
    if rows_first:
        x = call.xp.transpose(x, [1, 0, 2])
        first = tuple(None if s is None else call.xp.transpose(s, [1, 0, 2]) for s in first)
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[both]
    functions = _activations(call, usual, len(backwards))
    outputs, ends = [], []
    for i, reverse in enumerate(backwards):
        bias = call.xp.astype(w[i, :, 0] * 0, call.xp.dtype(x)) if b is None else b[i, : gates * size]
        again = None if b is None else b[i, gates * size :]
        state = tuple(_zeros(call, x, r, size) if s is None else s[i] for s in first)
        put_in = call.xp.matmul(x, call.xp.transpose(w[i], [1, 0])) + bias
        recurrent = call.xp.transpose(r[i], [1, 0])
        weights = Weights(recurrent, again, None if peepholes is None else peepholes[i], functions[i])
        found, end = _steps(call, cell, put_in, state, weights, (reverse, lengths))
        outputs.append(call.xp.stack(found, 0))
        ends.append(end)
    last = tuple(call.xp.stack([end[k] for end in ends], 0) for k in range(len(first)))
    whole = call.xp.stack(outputs, 1)
    if rows_first:
        return (call.xp.transpose(whole, [2, 0, 1, 3]), *(call.xp.transpose(s, [1, 0, 2]) for s in last))
    return (whole, *last)


def _steps(
    call: Call, cell: Cell, put_in: Any, state: State, weights: Weights, way: tuple[bool, Any]
) -> tuple[list[Any], State]:
    """Each step's output, in the order of the sequence, and the last state; behind a row's length nothing changes."""
    reverse, lengths = way
    found = []
    steps = range(put_in.shape[0])
    for step in reversed(steps) if reverse else steps:
        new = cell(call, put_in[step], state, weights)
        if lengths is None:
            state = new
            found.append(state[0])
            continue
        alive = call.xp.reshape(lengths > step, [-1, 1])
        found.append(call.xp.where(alive, new[0], 0 * new[0]))
        state = tuple(call.xp.where(alive, after, before) for after, before in zip(new, state, strict=True))
    return (found[::-1] if reverse else found), state


def _zeros(call: Call, x: Any, r: Any, size: int) -> Any:
    return call.xp.broadcast_to(r[0, :1, :1] * 0, [x.shape[1], size])


def _parts(x: Any, count: int) -> list[Any]:
    size = x.shape[-1] // count
    return [x[..., i * size : (i + 1) * size] for i in range(count)]


def _added(x: Any, bias: Any) -> Any:
    return x if bias is None else x + bias


def _rnn_cell(call: Call, put_in: Any, state: State, weights: Weights) -> State:
    (h,) = state
    return (weights.functions[0](_added(put_in + call.xp.matmul(h, weights.r), weights.bias)),)


def _lstm_cell(call: Call, put_in: Any, state: State, weights: Weights) -> State:
    h, c = state
    i, o, f, g = _parts(_added(put_in + call.xp.matmul(h, weights.r), weights.bias), 4)
    gate, inner, outer = weights.functions
    if weights.peepholes is not None:
        p, q, s = _parts(weights.peepholes, 3)
        i, f = i + p * c, f + s * c
    c = gate(f) * c + gate(i) * inner(g)
    o = o if weights.peepholes is None else o + q * c
    return gate(o) * outer(c), c


def _gru_cell(call: Call, put_in: Any, state: State, weights: Weights) -> State:
    (h,) = state
    size, r, bias = h.shape[-1], weights.r, weights.bias
    gate, inner = weights.functions
    zx, rx, hx = _parts(put_in, 3)
    if bias is None:
        bias = r[0] * 0
    zr = call.xp.matmul(h, r[:, : 2 * size]) + bias[: 2 * size]
    z, reset = (gate(a + b) for a, b in zip((zx, rx), _parts(zr, 2), strict=True))
    rh, rb = r[:, 2 * size :], bias[2 * size :]
    if call.get("linear_before_reset", 0):
        new = inner(hx + reset * (call.xp.matmul(h, rh) + rb))
    else:
        new = inner(hx + call.xp.matmul(reset * h, rh) + rb)
    return ((1 - z) * new + z * h,)


OPERATORS: dict[str, Operator] = {
    "GRU": Operator(_gru, folds=False),
    "LSTM": Operator(_lstm, folds=False),
    "RNN": Operator(_rnn, folds=False),
}
