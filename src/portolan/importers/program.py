"""An ONNX graph as plain data: steps with decoded attributes, constants as NumPy arrays, and a run over any namespace.

Sizes stay out of the arrays' library: what only depends on shapes and constants is computed in NumPy as the program
runs, so a tracer sees numbers there. Where a tracer counts with symbols, those arrays hold objects. Sequences: lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portolan.errors import ModelError, PortolanError
from portolan.importers import numpy_
from portolan.importers.operators import TABLE
from portolan.importers.operators.call import Call

if TYPE_CHECKING:
    import numpy as np

#: Operators whose result holds no element of their inputs: only sizes.
_MEASURES = ("Shape", "Size", "SequenceLength")
#: What an operator of some library raises when it is given what it does not take.
_FAILURES = (
    ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One node: its operator as the table names it, and the version of that operator's set.

    Attributes of the type `Program` are the bodies of If, Loop and Scan.
    """

    operator: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.operator} giving `{next(iter(filter(None, self.outputs)), '?')}`"

    @property
    def bodies(self) -> list[Program]:
        """The programs that it runs."""
        return [value for value in self.attributes.values() if isinstance(value, Program)]


@dataclass(frozen=True)
class Program:
    """A graph without functions.

    Attributes:
        name: what to call the model in an error.
        inputs: names in order.
        outputs: names in order.
        steps: in an order that computes everything before it is used.
        constants: initializers and constant nodes, writable.
        weights: the names of those constants that training may change: floats that no operator takes for a setting or
            a statistic, of two elements or more (single numbers are such as the 0.5 of an activation), and biases.
        deciding: those inputs whose elements some size depends on, so that a library that compiles for fixed sizes
            must know them.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    constants: Mapping[str, np.ndarray]
    weights: tuple[str, ...] = ()
    deciding: tuple[str, ...] = ()

    def run(self, xp: Any, values: Mapping[str, Any], wanted: Sequence[str] = ()) -> dict[str, Any]:
        """Computes outputs.

        Args:
            xp: the namespace that traced values belong to (see `torch_.Torch`).
            values: the inputs, and constants that are no NumPy arrays, such as parameters. An input that is a NumPy
                array is a constant too.
            wanted: the names to give; the program's outputs without.

        Raises:
            UnsupportedOperator: a size depends on what an input holds, or the namespace lacks something.
            ModelError: an operator failed.
        """
        found = self._values(xp, values)
        return {name: xp.asarray(found[name]) for name in wanted or self.outputs}

    def called(self, xp: Any, scope: Mapping[str, Any], inputs: Sequence[Any]) -> list[Any]:
        """As a body: its outputs for `inputs`, with the values around it in sight."""
        found = self._values(xp, {**scope, **dict(zip(self.inputs, inputs, strict=False))})
        return [found[name] for name in self.outputs]

    def _values(self, xp: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        found = {**self.constants, **values, "": None}
        for step in self.steps:
            found.update(self._step(step, xp, found))
        return found

    def _step(self, step: Step, xp: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        operator = TABLE[step.operator]
        given = [values[name] for name in step.inputs]
        folded = operator.folds and all(v is None or numpy_.holds(v) for v in given)
        space = numpy_.NumPy() if folded else xp
        call = Call(space, xp, step.version, step.attributes, len(step.outputs), values)
        try:
            arguments = given
            if not operator.raw:
                arguments = [_argument(call, i, v, operator.static) for i, v in enumerate(given)]
            found = operator.function(call, *arguments)
        except PortolanError as error:
            raise type(error)(error.message, hint=error.hint, where=error.where or f"{step} of {self.name}") from error
        except _FAILURES as error:
            raise ModelError(f"{step} of `{self.name}` cannot be computed: {error}", hint="check the shapes") from error
        parts = found if isinstance(found, tuple) else (found,)
        if folded:
            parts = tuple(numpy_.array(part) if numpy_.number(part) else part for part in parts)
        return {name: part for name, part in zip(step.outputs, parts, strict=False) if name}


def _argument(call: Call, position: int, value: Any, static: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, list):
        return value
    return call.known(value, f"input {position}") if position in static else call.xp.asarray(value)


def deciding(steps: Sequence[Step], inputs: Sequence[str], outer: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """The inputs whose elements reach a place where an operator needs to know them.

    Args:
        steps: of a graph.
        inputs: its names.
        outer: for a body, which inputs of the model each value around it holds something of.
    """
    reach = {**outer, **{name: frozenset((name,)) for name in inputs}}
    return _decided(steps, reach)


def _decided(steps: Sequence[Step], reach: dict[str, frozenset[str]]) -> frozenset[str]:
    none: frozenset[str] = frozenset()
    found = none
    for step in steps:
        given = [reach.get(name, none) for name in step.inputs]
        for i in TABLE[step.operator].static:
            found |= given[i] if i < len(given) else none
        everything = none.union(*given)
        for body in step.bodies:
            # What a loop carries may hold something of whatever entered it.
            inside = {**reach, **dict.fromkeys(body.inputs, everything)}
            found |= _decided(body.steps, inside)
            everything |= none.union(*(inside.get(name, none) for name in body.outputs))
        reach |= dict.fromkeys(step.outputs, none if step.operator in _MEASURES else everything)
    return found
