"""What a kernel must fulfil before anything is made of it: indices bound, reads inside, extents known."""

from __future__ import annotations

from collections.abc import Mapping

from portolan.kernels.bounds import Affine, affine, extent, facts, inside, lowest
from portolan.kernels.tree import (
    Expr,
    Extent,
    Load,
    Op,
    Program,
    Ranked,
    Reduce,
    Scan,
    children,
    conjuncts,
    extents_of,
    free,
    walk,
)
from portolan.kernels.trouble import Place

_NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}


def check(program: Program, place: Place, line: int) -> None:
    """Refuses what cannot be right for any arrays.

    Raises:
        KernelError: an index without an extent, or an element outside of its array.
    """
    for tensor, value in zip(program.outputs, program.values, strict=True):
        _axes(program, tensor.axes, value, place, line)
        ranges = {str(a): a for a in tensor.axes} | {k: v for k, v in extents_of(program).items() if isinstance(v, int)}
        _reads(program, value, ranges, (), place)
        _nested(value, place, line)
    for stage in program.stages:
        axes = program.tensor(stage.tensor).axes
        loose = free(stage.value) - {str(a) for a in axes} - {stage.index}
        if loose:
            raise place.fault(line, f"the new `{stage.tensor}` mentions `{min(loose)}`, which is none of its axes")
        if any(isinstance(e, (Scan, Ranked)) for e in walk(stage.value)):
            raise place.fault(line, "a stage cannot hold a scan or a ranking", "put it behind the loop")
        _reads(program, stage.value, {**{str(a): a for a in axes}, stage.index: stage.extent}, (), place)


def _axes(program: Program, axes: tuple[Extent, ...], value: Expr, place: Place, line: int) -> None:
    known, ranks = set(program.symbols), extents_of(program)
    for axis in axes:
        if axis not in known and not isinstance(ranks.get(str(axis)), int):
            hint = "every axis of a result is one of an argument, or a rank of `smallest` or `largest`"
            raise place.fault(program.line, f"the extent of the result's axis `{axis}` is not known", hint)
    loose = sorted(free(value) - {str(a) for a in axes})
    if loose:
        names = " ".join(str(a) for a in axes)
        hint = f"reduce it, such as `sum(... for {loose[0]} in {loose[0].upper()})`, or add it to the annotation"
        raise place.fault(line, f"the result mentions `{loose[0]}`, and its axes are `{names}`", hint)
    for e in walk(value):
        if isinstance(e, Ranked) and e.rank in known:
            raise place.fault(
                line, f"`{e.rank}` is an axis of an argument, not a new one", "give the ranking a new index"
            )
        if isinstance(e, Scan) and e.axis not in axes:
            raise place.fault(
                line, f"a scan runs along `{e.axis}`, which is no axis of the result", f"add `{e.axis}` to it"
            )


def _nested(value: Expr, place: Place, line: int) -> None:
    """A scan runs once along its axis: not inside of a ranking, nor of another scan along the same axis twice."""
    for e in walk(value):
        if isinstance(e, Ranked) and any(isinstance(x, (Scan, Ranked)) for x in walk(e.body)):
            raise place.fault(line, "a ranking cannot hold a scan or another ranking", "split the kernel in two")
    scans = {e.axis for e in walk(value) if isinstance(e, Scan)}
    if len(scans) > 1:
        raise place.fault(
            line, f"scans along {' and '.join(f'`{s}`' for s in sorted(scans))}", "split the kernel in two"
        )
    if scans and any(isinstance(e, Ranked) for e in walk(value)):
        raise place.fault(line, "a ranking and a scan in one kernel", "split the kernel in two")


def _reads(program: Program, e: Expr, ranges: Mapping[str, Extent], known: tuple[Affine, ...], place: Place) -> None:
    match e:
        case Load(tensor=name, index=index):
            for size, part in zip(program.tensor(name).axes, index, strict=True):
                _read(e, part, size, ranges, known, place)
        case Reduce(binders=binders, where=where):
            ranges = {**ranges, **{b.index: b.extent for b in binders}}
            for condition in conjuncts(where):
                _reads(program, condition, ranges, known + facts([condition] if where is None else [where]), place)
            known = known + facts([where] if where is not None else [])
            for body in e.body:
                _reads(program, body, ranges, known, place)
            return
        case Ranked(binder=binder, where=where):
            ranges = {**ranges, binder.index: binder.extent}
            _reads(program, e.body, ranges, known + facts([where] if where is not None else []), place)
            return
        case Op(name="where", args=(condition, yes, no)):
            _reads(program, condition, ranges, known, place)
            _reads(program, yes, ranges, known + facts([condition]), place)
            _reads(program, no, ranges, known + facts(_negation(condition)), place)
            return
        case _:
            pass
    for child in children(e):
        _reads(program, child, ranges, known, place)


def _negation(condition: Expr) -> list[Expr]:
    """The opposite of a single comparison; nothing for anything else."""
    if isinstance(condition, Op) and condition.name in _NEGATED:
        return [Op(_NEGATED[condition.name], condition.args, "b")]
    return []


def _read(
    load: Load, part: Expr, size: Extent, ranges: Mapping[str, Extent], known: tuple[Affine, ...], place: Place
) -> None:
    """An affine index has to be proved inside; others (gathers, bit arithmetic) are kept inside when they run."""
    form = affine(part)
    if form is None:
        return
    low, high = inside(part, size, ranges, known)
    if low and high:
        return
    text, shown = show(part), f"{load.tensor}[{', '.join(show(p) for p in load.index)}]"
    limit = size if isinstance(size, int) else size.upper()
    unsure = "can be negative" if not low else f"can reach `{limit}` or more"
    never = not known and not low and _sure_negative(form, ranges)
    guard = f"0 <= {text} < {limit}" if not low and not high else f"{text} >= 0" if not low else f"{text} < {limit}"
    message = (
        f"`{shown}`: the index `{text}` {'is' if never else unsure if not never else ''}{' negative' if never else ''}"
    )
    raise place.fault(load.line, message, f"add `if {guard}` to the generator, or `where({guard}, ..., 0.0)` around it")


def _sure_negative(form: Affine, ranges: Mapping[str, Extent]) -> bool:
    top = lowest(form.times(-1), ranges).times(-1)
    return not top.terms and top.constant < 0


def show(e: Expr) -> str:
    """An index expression as the user would write it."""
    form = affine(e)
    if form is None:
        return "..."
    words = []
    for name, factor in form.terms:
        shown = name[1:].upper() if name.startswith("#") else name
        words.append((factor, shown if abs(factor) == 1 else f"{abs(factor)} * {shown}"))
    if form.constant or not words:
        words.append((1 if form.constant >= 0 else -1, str(abs(form.constant))))
    words.sort(key=lambda w: w[0] < 0)
    first, *rest = words
    text = f"-{first[1]}" if first[0] < 0 else first[1]
    return text + "".join(f" {'-' if f < 0 else '+'} {t}" for f, t in rest)


def bound_of(value: Extent) -> Affine:
    """An extent as an affine form."""
    return extent(value)
