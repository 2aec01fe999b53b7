"""The gradient of a kernel as its user holds it: called on arrays, printed in the notation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from portolan.errors import UsageError
from portolan.kernels.arrays import result_shapes, sizes
from portolan.kernels.derive.notation import notation
from portolan.kernels.derive.plan import plan, seed_name
from portolan.kernels.derive.staged import Staged, ran, source, staged
from portolan.kernels.tree import Program

if TYPE_CHECKING:
    from portolan.kernels.decorated import Kernel

Array = np.ndarray[Any, Any]


class Gradient:
    """Reverse-mode derivatives of a kernel, by a few kernels.

    Call it with the kernel's arguments and then the derivative of each result (float32); it gives one derivative for
    each argument, None for those of integers and those that do not change the results smoothly. Where an argument has
    corners (`max`, `abs`), the derivative is that of the branch which is taken, of the first largest element. A kernel
    with stages is run stage by stage: forward, keeping the array after each, and then backward.

    Attributes:
        kernels: what is run, in order.
        wanted: the arguments that have a derivative.
    """

    def __init__(self, program: Program) -> None:
        from portolan.kernels.decorated import Kernel

        made = staged(program) if program.stages else plan(program)
        self.program = program
        self.kernels: tuple[Kernel, ...] = tuple(Kernel(p) for p in made.programs)
        self.wanted = made.wanted
        self._staged = made if isinstance(made, Staged) else None

    def __call__(self, *arrays: Any, threads: int = 1) -> tuple[Array | None, ...]:
        """The derivatives.

        Args:
            arrays: the kernel's arguments, then the derivative of each of its results.
            threads: to share the work among.

        Raises:
            UsageError: arrays that do not fit.
        """
        p = self.program
        if len(arrays) != len(p.inputs) + len(p.outputs):
            raise UsageError(
                f"the gradient of `{p.name}` takes {len(p.inputs)} arguments and {len(p.outputs)} derivatives of "
                f"results, not {len(arrays)} arrays"
            )
        steps = [(k.program, partial(k, threads=threads)) for k in self.kernels]
        return self.through(steps, list(map(np.asarray, arrays)))

    def through(self, steps: Sequence[tuple[Program, Callable[..., Any]]], arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The derivatives by the gradient's programs, each with what computes it (in any framework's arrays)."""
        p = self.program
        names = [*(t.name for t in p.inputs), *(seed_name(p, o) for o in p.outputs)]
        given: dict[str, Any] = dict(zip(names, arrays, strict=True))
        found = ran(steps, given) if self._staged is None else self._staged.through(steps, given)
        return tuple(
            found.get(f"grad_{t.name}_{t.dtype}", found.get(f"grad_{t.name}")) if t.name in self.wanted else None
            for t in p.inputs
        )

    def sizes(self, given: Mapping[str, int]) -> list[dict[str, int]]:
        """The sizes of each kernel's axes, from those of the differentiated kernel."""
        p = self.program
        shapes = {t.name: tuple(given[a] if isinstance(a, str) else a for a in t.axes) for t in p.inputs}
        results = zip(p.outputs, result_shapes(p, given), strict=True)
        shapes |= {seed_name(p, o): shape for o, shape in results}
        if self._staged is not None:
            shapes[self._staged.number] = (1,)
        found = []
        for kernel in self.kernels:
            own = sizes(kernel.program, [shapes[self._like(t.name, shapes)] for t in kernel.program.inputs])
            found.append(own)
            made = zip(kernel.program.outputs, result_shapes(kernel.program, own), strict=True)
            shapes |= {o.name: shape for o, shape in made}
        return found

    def _like(self, name: str, known: Mapping[str, object]) -> str:
        found = source(name, known)
        return found if found in known or self._staged is None else self._staged.like(found)

    def __str__(self) -> str:
        return "\n\n".join(notation(k.program) for k in self.kernels)

    def __repr__(self) -> str:
        return f"gradient of {self.program.name} by {', '.join(self.wanted)}"
