"""The gradient of a kernel with stages: each stage a kernel of its own, run forward and then backward.

One kernel makes the array after a stage from the one before it, and is told the stage's number. All arrays are kept.
From the last one, the derivatives of what comes behind the loop; then, stage by stage backward, those of the array
before and, added up, of all that stages read besides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from portolan.kernels.derive.plan import LIKE, SUM, Plan, fresh, plan, read, seed_name
from portolan.kernels.derive.terms import substituted
from portolan.kernels.tree import Expr, Idx, Load, Num, Program, Tensor
from portolan.kernels.trouble import KernelError

Step = tuple[Program, Callable[..., Any]]


@dataclass(frozen=True)
class Staged:
    """Kernels of a gradient through stages.

    Attributes:
        program: what is differentiated.
        forward: the array after a stage, from the one before it.
        number: the name of the argument that brings the stage's number.
        last: the derivatives of what comes behind the loop.
        each: those of one stage.
        narrow: for each argument of fewer bits, its derivative from f32.
        wanted: the arguments that have one.
    """

    program: Program
    forward: Program
    number: str
    last: Plan
    each: Plan
    narrow: tuple[Program, ...]
    wanted: tuple[str, ...]

    @property
    def programs(self) -> tuple[Program, ...]:
        """All kernels."""
        return (self.forward, *self.last.programs, *self.each.programs, *self.narrow)

    def through(self, steps: Sequence[Step], given: Mapping[str, Any]) -> dict[str, Any]:
        """The derivatives, as `grad_NAME`, by what computes each kernel.

        Args:
            steps: `programs`, each with a function of arrays.
            given: the arguments, and the derivatives of the results.
        """
        name = self.program.stages[0].tensor
        first, last = 1, 1 + len(self.last.programs)
        each = last + len(self.each.programs)
        numbers = [np.asarray([n], np.int32) for n in range(self._stages(given))]
        arrays = [given[name]]
        for number in numbers:
            arrays.append(
                ran(steps[:1], {**given, name: arrays[-1], self.number: number})[self.forward.outputs[0].name]
            )
        found = ran(steps[first:last], {**given, name: arrays.pop()})
        sums = {key: value for key, value in found.items() if key.startswith("grad_")}
        for number, array in zip(reversed(numbers), reversed(arrays), strict=True):
            before = {f"{SUM}{key.removeprefix('grad_')}": value for key, value in sums.items()}
            seed = {seed_name(self.forward, self.forward.outputs[0]): sums[f"grad_{name}"]}
            made = ran(steps[last:each], {**given, name: array, self.number: number, **before, **seed})
            sums |= {key: value for key, value in made.items() if key.startswith("grad_")}
        return ran(steps[each:], sums)

    def like(self, name: str) -> str:
        """The argument or result of the differentiated kernel whose shape an argument of a kernel has."""
        if name == seed_name(self.forward, self.forward.outputs[0]):
            return self.program.stages[0].tensor
        return name.removeprefix(SUM).removeprefix("grad_")

    def _stages(self, given: Mapping[str, Any]) -> int:
        extent = self.program.stages[0].extent
        if isinstance(extent, int):
            return extent
        places = ((t.name, n) for t in self.program.inputs for n, axis in enumerate(t.axes) if axis == extent)
        name, place = next(places)
        return int(given[name].shape[place])


def staged(program: Program) -> Staged:
    """The kernels of a gradient through stages.

    Raises:
        KernelError: a part has no derivative here.
    """
    stage = program.stages[0]
    array = program.tensor(stage.tensor)
    number = Tensor(fresh("stage", {t.name for t in program.inputs}), (1,), "i32")
    place: Expr = Load(number.name, (Num(0, "i"),), "i")
    value = substituted(stage.value, {stage.index: place})
    after = Tensor(fresh(f"{array.name}_next", {t.name for t in program.inputs}), array.axes, "f32")
    inputs = read([*program.inputs, number], [value], [after])
    source = ("", program.path, program.line)
    forward = Program(f"{program.name}_stage", inputs, (after,), (), (value,), *source)
    try:
        each = plan(forward, added=frozenset(t.name for t in inputs) - {array.name})
    except KernelError as error:
        raise KernelError(f"kernel `{program.name}`: in a stage: {error.message}", hint=error.hint) from error
    end = Program(f"{program.name}_end", program.inputs, program.outputs, (), program.values, *source)
    last = plan(end, every=frozenset((*each.wanted, array.name)))
    wanted = tuple(t.name for t in program.inputs if t.name in (*each.wanted, *last.wanted))
    narrow = [_narrowed(program, t) for t in program.inputs if t.name in wanted and t.dtype != "f32"]
    return Staged(program, forward, number.name, last, each, tuple(narrow), wanted)


def _narrowed(program: Program, tensor: Tensor) -> Program:
    axes = tuple(f"a{n}" for n in range(len(tensor.axes)))
    name = f"grad_{tensor.name}"
    value: Expr = Load(name, tuple(map(Idx, axes)), "f")
    inputs, outputs = (Tensor(name, axes, "f32"),), (Tensor(f"{name}_{tensor.dtype}", axes, tensor.dtype),)
    return Program(f"{program.name}_{name}", inputs, outputs, (), (value,), "", program.path, program.line)


def ran(steps: Sequence[Step], given: Mapping[str, Any]) -> dict[str, Any]:
    """All arrays after some kernels have run, by name."""
    known = dict(given)
    for program, call in steps:
        found = call(*(known[source(t.name, known)] for t in program.inputs))
        several = found if len(program.outputs) > 1 else (found,)
        known |= zip((o.name for o in program.outputs), several, strict=True)
    return known


def source(name: str, known: Mapping[str, object]) -> str:
    """The array that an argument is, or has the sizes of."""
    return name if name in known else name.removeprefix(LIKE)
