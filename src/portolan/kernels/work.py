"""How much there is to do: operations and bytes of one call, by the formula as it is written."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from portolan.kernels.functions import OPS
from portolan.kernels.tree import Expr, Ext, Extent, Idx, Num, Op, Program, Ranked, Reduce, Scan, extents_of, free

_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1, "i32": 4}
_SAMPLES = 20_000


def flops(program: Program, sizes: Mapping[str, int]) -> float:
    """Float operations of one call: each function one, each element that a reduction takes one.

    What does not depend on an index is counted once for it, and masked elements not at all: this is the work that a
    good program does, not the loops that a bad one runs.
    """
    total = 0.0
    for value in program.values:
        total += _work(value, dict(extents_of(program)), 1.0, sizes)
    for stage in program.stages:
        ranges: dict[str, Extent] = {str(a): a for a in program.tensor(stage.tensor).axes}
        total += _work(stage.value, {**ranges, stage.index: stage.extent}, 1.0, sizes)
    return total


def _work(e: Expr, ranges: Mapping[str, Extent], share: float, sizes: Mapping[str, int]) -> float:
    """Operations of each distinct part of `e`, over the indices that the part mentions."""
    total, seen = 0.0, set()

    def visit(x: Expr, ranges: Mapping[str, Extent], share: float) -> None:
        nonlocal total
        if x in seen:
            return
        seen.add(x)
        match x:
            case Reduce(binders=binders, where=where, body=body):
                ranges = {**ranges, **{b.index: b.extent for b in binders}}
                share = share if where is None else share * taken(where, ranges, sizes)
                total += share * _space(free(x) | {b.index for b in binders}, ranges, sizes)
                for part in body:
                    visit(part, ranges, share)
                return
            case Ranked(binder=binder, body=inner):
                ranges = {**ranges, binder.index: binder.extent}
                total += _space((free(x) - {x.rank}) | {binder.index}, ranges, sizes)
                visit(inner, ranges, share)
                return
            case Op(kind="f"):
                total += share * _space(free(x), ranges, sizes)
            case _:
                pass
        for child in _below(x):
            visit(child, ranges, share)

    visit(e, ranges, share)
    return total


def _below(e: Expr) -> tuple[Expr, ...]:
    match e:
        case Op(args=args):
            return args
        case Scan(step=step):
            return (step,)
        case _:
            return ()


def _space(names: frozenset[str] | set[str], ranges: Mapping[str, Extent], sizes: Mapping[str, int]) -> float:
    total = 1.0
    for name in names:
        if name in ranges:
            total *= _size(ranges[name], sizes)
    return total


def _size(extent: Extent, sizes: Mapping[str, int]) -> int:
    return extent if isinstance(extent, int) else sizes.get(extent, 8)


def taken(where: Expr, ranges: Mapping[str, Extent], sizes: Mapping[str, int]) -> float:
    """The share of elements for which a predicate holds; 1 where it reads arrays, whose contents are not known."""
    rng = np.random.default_rng(0)
    places = {n: rng.integers(0, max(1, _size(e, sizes)), _SAMPLES) for n, e in ranges.items()}

    def value(e: Expr) -> np.ndarray | None:
        match e:
            case Num(value=number):
                return np.asarray(number)
            case Idx(name=name):
                return places.get(name)
            case Ext(symbol=symbol):
                return np.asarray(sizes.get(symbol, 8))
            case Op(name=name, args=args) if name in OPS:
                parts = [value(a) for a in args]
                return None if any(p is None for p in parts) else np.asarray(OPS[name].numpy(*parts))
            case _:
                return None

    held = value(where)
    return 1.0 if held is None else max(float(np.broadcast_to(held, (_SAMPLES,)).mean()), 1 / _SAMPLES)


def traffic(program: Program, sizes: Mapping[str, int]) -> float:
    """Bytes of all arguments and results: what has to move at least."""
    ranks = extents_of(program)
    total = 0.0
    for tensor in (*program.inputs, *program.outputs):
        count = 1.0
        for axis in tensor.axes:
            count *= _size(ranks.get(str(axis), axis), sizes)
        total += count * _BYTES[tensor.dtype]
    return total
