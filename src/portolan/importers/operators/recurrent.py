"""LSTM and GRU as loops over the sequence, in ONNX's own order of gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from portolan.errors import UnsupportedOperator
from portolan.importers.operators.call import Call, Operator

State = tuple[Any, ...]
#: One step: (call, input of the gates [batch, gates], state, recurrent weights, recurrent bias) to the next state.
Cell = Callable[[Call, Any, State, Any, Any], State]


def _lstm(call: Call, x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, h: Any = None, c: Any = None,
          peepholes: Any = None) -> tuple[Any, ...]:  # fmt: skip
    _check(call, ["Sigmoid", "Tanh", "Tanh"], lengths, peepholes)
    return _run(call, _lstm_cell, 4, x, w, r, b, (h, c))


def _gru(call: Call, x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, h: Any = None) -> tuple[Any, ...]:
    _check(call, ["Sigmoid", "Tanh"], lengths, None)
    return _run(call, _gru_cell, 3, x, w, r, b, (h,))


def _check(call: Call, usual: list[str], lengths: Any, peepholes: Any) -> None:
    given = call.get("activations")
    odd = given is not None and any(g.lower() != u.lower() for g, u in zip(given, usual * 2, strict=False))
    if odd or lengths is not None or peepholes is not None or call.get("layout", 0) or call.get("clip"):
        raise UnsupportedOperator(
            "a recurrent layer with other activations, lengths, peepholes, a clip or another layout is not supported",
            hint="export it in its plain form",
        )


def _run(call: Call, cell: Cell, gates: int, x: Any, w: Any, r: Any, b: Any, first: State) -> tuple[Any, ...]:
    """Both directions: outputs [steps, directions, batch, size], then the last of each state."""
    size, both = call.get("hidden_size"), call.get("direction", "forward")
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[both]
    outputs, ends = [], []
    for i, reverse in enumerate(backwards):
        bias = call.xp.astype(w[i, :, 0] * 0, call.xp.dtype(x)) if b is None else b[i, : gates * size]
        again = None if b is None else b[i, gates * size :]
        state = tuple(_zeros(call, x, r, size) if s is None else s[i] for s in first)
        put_in = call.xp.matmul(x, call.xp.transpose(w[i], [1, 0])) + bias
        steps = range(x.shape[0])
        found = []
        for step in reversed(steps) if reverse else steps:
            state = cell(call, put_in[step], state, call.xp.transpose(r[i], [1, 0]), again)
            found.append(state[0])
        outputs.append(call.xp.stack(found[::-1] if reverse else found, 0))
        ends.append(state)
    last = tuple(call.xp.stack([end[k] for end in ends], 0) for k in range(len(first)))
    return (call.xp.stack(outputs, 1), *last)


def _zeros(call: Call, x: Any, r: Any, size: int) -> Any:
    return call.xp.broadcast_to(r[0, :1, :1] * 0, [x.shape[1], size])


def _parts(x: Any, count: int) -> list[Any]:
    size = x.shape[-1] // count
    return [x[..., i * size : (i + 1) * size] for i in range(count)]


def _lstm_cell(call: Call, put_in: Any, state: State, r: Any, bias: Any) -> State:
    h, c = state
    total = put_in + call.xp.matmul(h, r)
    i, o, f, g = _parts(total if bias is None else total + bias, 4)
    sigmoid = call.xp.sigmoid
    c = sigmoid(f) * c + sigmoid(i) * call.xp.tanh(g)
    return sigmoid(o) * call.xp.tanh(c), c


def _gru_cell(call: Call, put_in: Any, state: State, r: Any, bias: Any) -> State:
    (h,) = state
    size = h.shape[-1]
    zx, rx, hx = _parts(put_in, 3)
    if bias is None:
        bias = r[0] * 0
    zr = call.xp.matmul(h, r[:, : 2 * size]) + bias[: 2 * size]
    z, reset = (call.xp.sigmoid(a + b) for a, b in zip((zx, rx), _parts(zr, 2), strict=True))
    rh, rb = r[:, 2 * size :], bias[2 * size :]
    if call.get("linear_before_reset", 0):
        new = call.xp.tanh(hx + reset * (call.xp.matmul(h, rh) + rb))
    else:
        new = call.xp.tanh(hx + call.xp.matmul(reset * h, rh) + rb)
    return ((1 - z) * new + z * h,)


OPERATORS: dict[str, Operator] = {"GRU": Operator(_gru, folds=False), "LSTM": Operator(_lstm, folds=False)}
