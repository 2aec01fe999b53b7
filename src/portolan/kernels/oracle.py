"""What a kernel means, in NumPy and float64, from the same tree: what every compiled variant is held against.

A value is an array whose dimensions are named by the indices it mentions, 1 wide where it mentions none of them. The
whole index space is made, so this is for small sizes, or for chosen places of large results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from portolan.kernels.functions import OPS, identity
from portolan.kernels.tree import (
    Carry,
    Expr,
    Ext,
    Extent,
    Idx,
    Load,
    Num,
    Op,
    Program,
    Ranked,
    Reduce,
    Scan,
    extents_of,
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Named:
    """An array with a name for each dimension."""

    data: Array
    axes: tuple[str, ...]

    def over(self, axes: Sequence[str]) -> Array:
        """The array with one dimension for each of `axes`, 1 wide where it has none."""
        order = [a for a in axes if a in self.axes]
        moved = self.data.transpose([self.axes.index(a) for a in order])
        shape = iter(moved.shape)
        return moved.reshape([next(shape) if a in self.axes else 1 for a in axes])


def sizes_of(program: Program, arrays: Sequence[Array]) -> dict[str, int]:
    """The size of each symbol, from arrays whose shapes are known to fit."""
    found: dict[str, int] = {}
    for tensor, array in zip(program.inputs, arrays, strict=True):
        for axis, size in zip(tensor.axes, array.shape, strict=True):
            if isinstance(axis, str):
                found[axis] = size
    return found


def evaluate(program: Program, arrays: Sequence[Array], at: Mapping[str, Sequence[int]] | None = None) -> list[Array]:
    """The results in float64 and int64.

    Args:
        program: the kernel.
        arrays: its arguments, as numbers that NumPy knows.
        at: for some axes of the results, the places wanted; all by default. An axis that a scan or a stage runs along
            is always whole.
    """
    sizes = sizes_of(program, arrays)
    tensors = {t.name: _wide(a) for t, a in zip(program.inputs, arrays, strict=True)}
    with np.errstate(all="ignore"):
        for stage in program.stages:
            axes = [str(a) for a in program.tensor(stage.tensor).axes]
            for number in range(_size(stage.extent, sizes)):
                places = {a: np.arange(sizes[a]) for a in axes} | {stage.index: np.asarray([number])}
                value = _Oracle(sizes, tensors, places).value(stage.value)
                whole = np.broadcast_to(value.over([*axes, stage.index])[..., 0], [sizes[a] for a in axes])
                tensors = {**tensors, stage.tensor: whole}
        return [_result(program, i, sizes, tensors, at or {}) for i in range(len(program.outputs))]


def _result(
    program: Program,
    number: int,
    sizes: Mapping[str, int],
    tensors: Mapping[str, Array],
    at: Mapping[str, Sequence[int]],
) -> Array:
    extents = extents_of(program)
    axes = [str(a) for a in program.outputs[number].axes]
    places = {a: np.asarray(at.get(a, range(_size(extents[a], sizes))), np.int64) for a in axes}
    whole = {s: np.arange(n) for s, n in sizes.items()}
    value = _Oracle(sizes, tensors, places, whole).value(program.values[number])
    return np.broadcast_to(value.over(axes), [len(places[a]) for a in axes])


def _wide(array: Array) -> Array:
    return array.astype(np.int64 if array.dtype.kind in "iu" else np.float64)


def _size(extent: Extent, sizes: Mapping[str, int]) -> int:
    return extent if isinstance(extent, int) else sizes[extent]


class _Oracle:
    """Evaluates expressions where the free indices take `places`."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        tensors: Mapping[str, Array],
        places: Mapping[str, Array],
        whole: Mapping[str, Array] | None = None,
        carries: Mapping[str, Named] | None = None,
    ) -> None:
        self.sizes, self.tensors, self.places = sizes, tensors, places
        self.whole, self.carries = whole or {}, carries or {}
        self._known: dict[Expr, Named] = {}

    def value(self, e: Expr) -> Named:
        """The value of `e`."""
        if e not in self._known:
            self._known[e] = self._value(e)
        return self._known[e]

    def _value(self, e: Expr) -> Named:
        match e:
            case Num(value=value, kind=kind):
                return Named(np.asarray(value, {"f": np.float64, "i": np.int64, "b": bool}[kind]), ())
            case Idx(name=name):
                return Named(np.asarray(self.places[name]), (name,))
            case Ext(symbol=symbol):
                return Named(np.asarray(self.sizes[symbol]), ())
            case Carry(name=name):
                return self.carries[name]
            case Load(tensor=name, index=index):
                return self._load(self.tensors[name], [self.value(i) for i in index])
            case Op(name=name, args=args):
                axes, values = self._aligned([self.value(a) for a in args])
                return Named(np.asarray(OPS[name].numpy(*values)), axes)
            case Reduce():
                return self._reduce(e)
            case Ranked():
                return self._ranked(e)
            case Scan():
                return self._scan(e)

    def _aligned(self, values: Sequence[Named]) -> tuple[tuple[str, ...], list[Array]]:
        axes = tuple(dict.fromkeys(a for v in values for a in v.axes))
        return axes, [v.over(axes) for v in values]

    def _load(self, array: Array, index: Sequence[Named]) -> Named:
        axes, parts = self._aligned(index)
        if not index:
            return Named(array, ())
        if 0 in array.shape:
            # Nothing of it is ever taken: it can only be masked, or under an empty reduction.
            return Named(np.zeros(np.broadcast_shapes(*(p.shape for p in parts)), array.dtype), axes)
        kept = tuple(np.clip(p, 0, n - 1) for p, n in zip(parts, array.shape, strict=True))
        return Named(array[kept], axes)

    def _inside(self, more: Mapping[str, Array]) -> _Oracle:
        return _Oracle(self.sizes, self.tensors, {**self.places, **more}, self.whole, self.carries)

    def _masked(
        self, where: Expr | None, parts: Sequence[Expr], bound: Mapping[str, int]
    ) -> tuple[tuple[str, ...], Array, list[Array]]:
        """Outer axes, the mask and the parts, all over outer axes and then the bound ones."""
        inner = self._inside({name: np.arange(size) for name, size in bound.items()})
        found = [inner.value(p) for p in parts]
        mask = Named(np.asarray(True), ()) if where is None else inner.value(where)
        outer = tuple(dict.fromkeys(a for v in (*found, mask) for a in v.axes if a not in bound))
        axes = (*outer, *bound)
        shape = np.broadcast_shapes(
            *(v.over(axes).shape for v in (*found, mask)), (1,) * len(outer) + tuple(bound.values())
        )
        whole = [np.broadcast_to(v.over(axes), shape) for v in (*found, mask)]
        flat = [w.reshape(*shape[: len(outer)], int(np.prod(list(bound.values())))) for w in whole]
        return outer, flat[-1], flat[:-1]

    def _reduce(self, e: Reduce) -> Named:
        bound = {b.index: _size(b.extent, self.sizes) for b in e.binders}
        outer, mask, parts = self._masked(e.where, e.body, bound)
        return Named(np.asarray(_reduced(e, mask, parts)), outer)

    def _ranked(self, e: Ranked) -> Named:
        bound = {e.binder.index: _size(e.binder.extent, self.sizes)}
        outer, mask, (value,) = self._masked(e.where, [e.body], bound)
        worst = -np.inf if e.largest else np.inf
        usable = mask & ~np.isnan(value) & (value != worst)
        key = np.where(usable, -value if e.largest else value, np.inf)
        short = max(0, e.n - key.shape[-1])
        fill = [(0, 0)] * (key.ndim - 1) + [(0, short)]
        key, value, usable = (
            np.pad(a, fill, constant_values=c) for a, c in ((key, np.inf), (value, worst), (usable, False))
        )
        order = np.argsort(key, axis=-1, kind="stable")[..., : e.n]
        there = np.take_along_axis(usable, order, -1)
        found = np.take_along_axis(value, order, -1) if e.part == "value" else order
        result = np.where(there, found, worst if e.part == "value" else -1)
        return Named(result[..., np.asarray(self.places[e.rank])], (*outer, e.rank))

    def _scan(self, e: Scan) -> Named:
        steps, carry = [], Named(np.asarray(0.0), ())
        for number in range(len(self.whole[e.axis])):
            places = {**self.places, e.axis: np.asarray([number])}
            carries = {**self.carries, e.carry: carry}
            found = _Oracle(self.sizes, self.tensors, places, self.whole, carries).value(e.step)
            axes = tuple(a for a in found.axes if a != e.axis)
            carry = Named(found.over((*axes, e.axis))[..., 0], axes)
            steps.append(carry)
        axes = tuple(dict.fromkeys(a for s in steps for a in s.axes))
        if not steps:
            return Named(np.zeros(0), (e.axis,))
        over = [s.over(axes) for s in steps]
        shape = np.broadcast_shapes(*(s.shape for s in over))
        whole = np.stack([np.broadcast_to(s, shape) for s in over], -1)
        return Named(whole[..., np.asarray(self.places[e.axis])], (*axes, e.axis))


def _reduced(e: Reduce, mask: Array, parts: Sequence[Array]) -> Array:
    value = parts[0]
    if value.dtype.kind == "f" and e.monoid in ("max", "min", "argmax", "argmin"):
        mask = mask & ~np.isnan(value)
    neutral = identity(e.monoid, "f" if value.dtype.kind == "f" else "i")
    match e.monoid:
        case "sum" | "prod":
            return np.asarray(getattr(np, e.monoid)(np.where(mask, value, neutral), axis=-1))
        case "max" | "min":
            return np.asarray(getattr(np, e.monoid)(np.where(mask, value, neutral), axis=-1, initial=neutral))
        case "any":
            return np.asarray((value & mask).any(-1))
        case "all":
            return np.asarray((value | ~mask).all(-1))
        case "argmax" | "argmin":
            return _where_best(e.monoid, mask, value)
        case "logsumexp":
            top, weights = _weights(value, mask)
            return np.asarray(np.log(weights.sum(-1)) + top[..., 0])
        case _:
            _, weights = _weights(value, mask)
            total = weights.sum(-1)
            return np.asarray(np.where(total == 0, 0.0, (weights * np.where(mask, parts[1], 0)).sum(-1) / total))


def _where_best(monoid: str, mask: Array, value: Array) -> Array:
    if value.shape[-1] == 0:
        return np.full(value.shape[:-1], -1)
    largest = monoid == "argmax"
    worst = identity(monoid[3:], "f" if value.dtype.kind == "f" else "i")
    # The worst value of all never wins against nothing.
    best = np.where(mask, value, worst)
    found = best.argmax(-1) if largest else best.argmin(-1)
    return np.where((best == worst).all(-1), -1, found)


def _weights(score: Array, mask: Array) -> tuple[Array, Array]:
    score = np.where(mask, score, -np.inf)
    top = np.max(score, axis=-1, keepdims=True, initial=-np.inf)
    top = np.where(np.isneginf(top), 0.0, top)
    return top, np.exp(score - top)
