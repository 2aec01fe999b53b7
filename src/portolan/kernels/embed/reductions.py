"""Reductions and rankings of a kernel as ONNX operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from portolan.kernels.embed.nodes import Value, union
from portolan.kernels.functions import identity
from portolan.kernels.tree import Expr, Kind, Op, Ranked, Reduce

if TYPE_CHECKING:
    from portolan.kernels.embed.body import Body

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def reduced(body: Body, e: Reduce) -> Value:
    """The value of a reduction."""
    bound = {b.index: b.extent for b in e.binders}
    inner = body.inside(bound)
    mask = None if e.where is None else inner.value(e.where)
    match e.monoid:
        case "sum" if e.kind == "f" and len(factors := _factors(e.body[0])) > 1:
            return _product(inner, [inner.value(f) for f in factors], mask, list(bound))
        case "softmean":
            return _softmean(inner, inner.value(e.body[0]), inner.value(e.body[1]), mask, list(bound))
        case "logsumexp":
            top, weights = _weights(inner, inner.value(e.body[0]), mask, list(bound))
            total = body.graph.call("Log", [body.graph.reduced("ReduceSum", weights, list(bound))], "f")
            return body.graph.call("Add", [total, _dropped(inner, top, list(bound))], "f")
        case "any" | "all":
            return _truth(inner, e.monoid, inner.value(e.body[0]), mask, list(bound))
        case "argmax" | "argmin":
            return _where_best(inner, e.monoid, inner.value(e.body[0]), mask, list(bound))
        case _:
            return _plain(inner, e.monoid, inner.value(e.body[0]), mask, list(bound))


def _factors(e: Expr) -> list[Expr]:
    """The factors of a product, or of a quotient's numerator and the inverse of its denominator left whole."""
    if isinstance(e, Op) and e.name == "mul":
        return [f for arg in e.args for f in _factors(arg)]
    return [e]


def _masked(body: Body, value: Value, mask: Value | None, neutral: float | int | bool) -> Value:
    if mask is None:
        return value
    return body.graph.call("Where", [mask, value, body.graph.number(neutral, value.kind)], value.kind)


def _over(body: Body, value: Value, bound: Sequence[str]) -> Value:
    """The value as long as the indices in `bound` run, which come last."""
    axes = (*(a for a in value.axes if a not in bound), *bound)
    return Value(body.graph.whole(value, axes, body.sizes(axes)), axes, value.kind)


def _plain(body: Body, monoid: str, value: Value, mask: Value | None, bound: Sequence[str]) -> Value:
    g = body.graph
    neutral = identity(monoid, value.kind)
    if monoid in ("max", "min") and value.kind == "f":
        number = g.call("Not", [g.call("IsNaN", [value], "b")], "b")
        mask = number if mask is None else g.call("And", [mask, number], "b")
    operator = {"sum": "ReduceSum", "prod": "ReduceProd", "max": "ReduceMax", "min": "ReduceMin"}[monoid]
    return g.reduced(operator, _over(body, _masked(body, value, mask, neutral), bound), bound)


def _product(body: Body, parts: Sequence[Value], mask: Value | None, bound: Sequence[str]) -> Value:
    """A sum of products: the mask on the factor that has most of its indices."""
    parts = list(parts)
    if mask is not None:
        best = max(range(len(parts)), key=lambda n: len(set(parts[n].axes) & set(mask.axes)))
        parts[best] = _masked(body, parts[best], mask, 0.0)
    loose = [a for a in bound if not any(a in p.axes for p in parts)]
    if loose:
        parts[0] = _over(body, parts[0], loose)
    return einsum(body, parts, tuple(a for a in union(parts) if a not in bound))


def einsum(body: Body, parts: Sequence[Value], axes: tuple[str, ...]) -> Value:
    """The sum of the parts' product over all indices that `axes` lacks."""
    letter = dict(zip(union(parts), _LETTERS, strict=False))
    sides = ",".join("".join(letter[a] for a in p.axes) for p in parts)
    equation = f"{sides}->{''.join(letter[a] for a in axes)}"
    return Value(body.graph.add("Einsum", *(p.name for p in parts), equation=equation), axes, "f")


def _weights(body: Body, score: Value, mask: Value | None, bound: Sequence[str]) -> tuple[Value, Value]:
    """The largest score (0 where there is none), `bound` one wide, and the exponentials below it."""
    g = body.graph
    score = _over(body, _masked(body, score, mask, -np.inf), bound)
    places = [n for n, a in enumerate(score.axes) if a in bound]
    top = g.add("ReduceMax", score.name, g.constant(places, "i"), keepdims=1)
    none = g.add("IsInf", top, detect_positive=0)
    top = g.add("Where", none, g.constant(0.0, "f"), top)
    weights = g.add("Exp", g.add("Sub", score.name, top))
    return Value(top, score.axes, "f"), Value(weights, score.axes, "f")


def _dropped(body: Body, top: Value, bound: Sequence[str]) -> Value:
    places = [n for n, a in enumerate(top.axes) if a in bound]
    axes = tuple(a for a in top.axes if a not in bound)
    return Value(body.graph.add("Squeeze", top.name, body.graph.constant(places, "i")), axes, top.kind)


def _softmean(body: Body, score: Value, value: Value, mask: Value | None, bound: Sequence[str]) -> Value:
    g = body.graph
    if mask is not None and set(mask.axes) <= set(value.axes):
        value = _masked(body, value, mask, 0.0)
    # The weights take all masks, so that both sums leave out the same.
    _, weights = _weights(body, score, mask, bound)
    total = g.reduced("ReduceSum", weights, bound)
    parts = [weights, value]
    upper = einsum(body, parts, tuple(a for a in union(parts) if a not in bound))
    none = g.call("Equal", [total, g.number(0.0, "f")], "b")
    safe = g.call("Where", [none, g.number(1.0, "f"), total], "f")
    mean = g.call("Div", [upper, safe], "f")
    return g.call("Where", [none, g.number(0.0, "f"), mean], "f")


def _truth(body: Body, monoid: str, value: Value, mask: Value | None, bound: Sequence[str]) -> Value:
    g = body.graph
    value = g.cast(_masked(body, value, mask, monoid == "all"), "i")
    operator = "ReduceMin" if monoid == "all" else "ReduceMax"
    found = g.reduced(operator, _over(body, value, bound), bound)
    return g.call("Greater", [found, g.number(0, "i")], "b")


def _where_best(body: Body, monoid: str, value: Value, mask: Value | None, bound: Sequence[str]) -> Value:
    """Where the first best is, several indices counted as one; -1 where there is none."""
    g = body.graph
    kind: Kind = value.kind
    worst = identity(monoid[3:], kind)
    if kind == "f":
        number = g.call("Not", [g.call("IsNaN", [value], "b")], "b")
        mask = number if mask is None else g.call("And", [mask, number], "b")
    value = _over(body, _masked(body, value, mask, worst), bound)
    outer = tuple(a for a in value.axes if a not in bound)
    name = value.name
    if len(bound) > 1:
        sizes = [g.constant([0], "i")] * len(outer)
        name = g.add("Reshape", name, g.shape([*sizes, g.constant([-1], "i")]))
    operator = "ArgMax" if monoid == "argmax" else "ArgMin"
    found = Value(g.add(operator, name, axis=len(outer), keepdims=0), outer, "i")
    best = g.reduced("ReduceMax" if monoid == "argmax" else "ReduceMin", value, bound)
    none = g.call("Equal", [best, g.number(worst, kind)], "b")
    return g.call("Where", [none, g.number(-1, "i"), found], "i")


def ranked(body: Body, e: Ranked) -> Value:
    """The values of a ranking, or where they were; its rank is the last axis."""
    g, index = body.graph, e.binder.index
    inner = body.inside({index: e.binder.extent})
    value = inner.value(e.body)
    mask = g.call("Not", [g.call("IsNaN", [value], "b")], "b")
    if e.where is not None:
        mask = g.call("And", [mask, inner.value(e.where)], "b")
    worst = -np.inf if e.largest else np.inf
    kept = _over(inner, g.call("Where", [mask, value, g.number(worst, "f")], "f"), [index])
    outer = kept.axes[:-1]
    # As many of the worst at the end as are asked for: the array may be shorter than that.
    shape = g.shape([*(body.size(body.ranges[a]) for a in outer), g.constant([e.n], "i")])
    spare = g.add("Expand", g.constant(worst, "f"), shape)
    long = g.add("Concat", kept.name, spare, axis=len(outer))
    values, places = g.several("TopK", [long, g.constant([e.n], "i")], 2, axis=len(outer), largest=int(e.largest))
    axes = (*outer, e.rank)
    best = Value(values, axes, "f")
    if e.part == "value":
        return best
    there = g.call("Not", [g.call("Equal", [best, g.number(worst, "f")], "b")], "b")
    return g.call("Where", [there, Value(places, axes, "i"), g.number(-1, "i")], "i")
