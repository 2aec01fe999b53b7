"""Operators that combine the elements along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from portolan.importers.operators.call import Call, Operator, axes_of, sizes


def _reduction(
    name: str, before: Callable[[Any, Any], Any] | None = None, after: Callable[[Any, Any], Any] | None = None
) -> Callable[..., Any]:
    """A reduction by the namespace's `name`, with something done to the elements before and to the result after."""

    def function(call: Call, x: Any, axes: Any = None) -> Any:
        chosen = axes_of(call, axes)
        if not chosen and call.get("noop_with_empty_axes", 0):
            return x if before is None else (after or _same)(call.xp, before(call.xp, x))
        every = tuple(axis % len(x.shape) for axis in chosen) if chosen else tuple(range(len(x.shape)))
        value = x if before is None else before(call.xp, x)
        value = call.xp.reduce(name, value, every, bool(call.get("keepdims", 1)))
        return value if after is None else after(call.xp, value)

    return function


def _same(xp: Any, x: Any) -> Any:
    del xp
    return x


def _log_sum_exp(call: Call, x: Any, axes: Any = None) -> Any:
    chosen = axes_of(call, axes)
    every = tuple(axis % len(x.shape) for axis in chosen) if chosen else tuple(range(len(x.shape)))
    top = call.xp.reduce("max", x, every, True)
    value = call.xp.log(call.xp.reduce("sum", call.xp.exp(x - top), every, True)) + top
    if call.get("keepdims", 1):
        return value
    return call.xp.reshape(value, [s for i, s in enumerate(value.shape) if i not in every])


def _arg(largest: bool) -> Callable[..., Any]:
    def function(call: Call, x: Any) -> Any:
        axis, last = call.get("axis", 0) % len(x.shape), call.get("select_last_index", 0)
        value = x if largest else -x
        found = call.xp.argmax(call.xp.flip(value, (axis,)) if last else value, axis)
        found = x.shape[axis] - 1 - found if last else found
        if not call.get("keepdims", 1):
            return found
        return call.xp.reshape(found, [1 if i == axis else s for i, s in enumerate(x.shape)])

    return function


def _cumulative(call: Call, x: Any, axis: Any) -> Any:
    along = sizes(axis)[0] % len(x.shape)
    value = call.xp.flip(x, (along,)) if call.get("reverse", 0) else x
    total = call.xp.cumsum(value, along)
    total = total - value if call.get("exclusive", 0) else total
    return call.xp.flip(total, (along,)) if call.get("reverse", 0) else total


def _cumulative_product(call: Call, x: Any, axis: Any) -> Any:
    along = sizes(axis)[0] % len(x.shape)
    value = call.xp.flip(x, (along,)) if call.get("reverse", 0) else x
    if call.get("exclusive", 0):
        # What lies before: the axis moved on by one, a one in front.
        cut = tuple(slice(0, x.shape[i] - 1) if i == along else slice(None) for i in range(len(x.shape)))
        one = tuple(slice(0, 1) if i == along else slice(None) for i in range(len(x.shape)))
        value = call.xp.concat([call.xp.ones_like(value[one]), value[cut]], along)
    total = call.xp.astype(call.xp.cumprod(value, along), call.xp.dtype(x))
    return call.xp.flip(total, (along,)) if call.get("reverse", 0) else total


def _absolute(xp: Any, x: Any) -> Any:
    return xp.abs(x)


def _squared(xp: Any, x: Any) -> Any:
    del xp
    return x * x


def _root(xp: Any, x: Any) -> Any:
    return xp.sqrt(x)


def _logarithm(xp: Any, x: Any) -> Any:
    return xp.log(x)


_REDUCTIONS = {
    "ReduceL1": _reduction("sum", _absolute),
    "ReduceL2": _reduction("sum", _squared, _root),
    "ReduceLogSum": _reduction("sum", None, _logarithm),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _reduction("max"),
    "ReduceMean": _reduction("mean"),
    "ReduceMin": _reduction("min"),
    "ReduceProd": _reduction("prod"),
    "ReduceSum": _reduction("sum"),
    "ReduceSumSquare": _reduction("sum", _squared),
}
OPERATORS: dict[str, Operator] = {
    **{name: Operator(function, static=(1,)) for name, function in _REDUCTIONS.items()},
    "ArgMax": Operator(_arg(largest=True)),
    "ArgMin": Operator(_arg(largest=False)),
    "CumProd": Operator(_cumulative_product, static=(1,)),
    "CumSum": Operator(_cumulative, static=(1,)),
}
