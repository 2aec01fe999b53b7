"""Compiled kernels as operators of OpenVINO: through a library of C++, or in Python where no compiler makes one.

The library shares a kernel's tasks among the threads that infer. In Python a call waits for the interpreter and for
helper threads to wake up, since OpenVINO lends none of its own to operators in Python. The kernel itself runs without
the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portolan.backends._artefact import Operator
from portolan.backends._openvino_door import Door, opened
from portolan.core.carried import Carried
from portolan.core.native import Library, Pool
from portolan.core.silence import runtime

_TYPES = {"f32": "f32", "f16": "f16", "bf16": "bf16", "i8": "i8", "i32": "i32"}


@dataclass(frozen=True)
class Extended:
    """What a core was given.

    Attributes:
        operators: the kernels.
        door: the library that they came through; without kernels None, in Python the reason.
    """

    operators: tuple[Operator, ...] = ()
    door: Door | str | None = None

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """Domain and name of each operator."""
        return tuple((kernel.domain, kernel.name) for kernel, _ in self.operators)

    @property
    def way(self) -> str:
        """How kernels are called."""
        return "compiled" if isinstance(self.door, Door) else f"python: {self.door}"


def extend(core: Any, operators: Sequence[Operator], brought: Path | None, threads: int) -> Extended:
    """Adds kernels to a core.

    Args:
        core: of OpenVINO.
        operators: the kernels, each with its folder.
        brought: the folder that came with the model, which may hold a door too.
        threads: for calls through Python.
    """
    if not operators:
        return Extended()
    runtime("openvino.frontend.onnx")
    kernels = [(kernel, folder.library(kernel)) for kernel, folder in operators]
    door = opened(brought)
    if isinstance(door, Door):
        door.add(core, kernels)
    else:
        pool = Pool(threads)
        for kernel, library in kernels:
            core.add_extension(_extension(kernel, library, pool))
    return Extended(tuple(operators), door)


def _extension(kernel: Carried, library: Library, pool: Pool) -> Any:
    openvino = runtime("openvino")
    frontend = runtime("openvino.frontend.onnx")
    operator = _operator(openvino, kernel, library, pool)
    count = len(kernel.inputs)

    def convert(node: Any) -> Any:
        return operator([node.get_input(n) for n in range(count)]).outputs()

    return frontend.ConversionExtension(kernel.name, kernel.domain, convert)


def _operator(openvino: Any, kernel: Carried, library: Library, pool: Pool) -> Any:
    types = [getattr(openvino.Type, _TYPES[o.dtype]) for o in kernel.outputs]

    class Call(openvino.Op):  # type: ignore[misc]
        """One call of the kernel in a graph."""

        def __init__(self, inputs: Any) -> None:
            super().__init__(self, inputs)

        def validate_and_infer_types(self) -> None:
            """Sizes where the arguments' are known."""
            known: dict[str, Any] = {}
            for number, argument in enumerate(kernel.inputs):
                shape = self.get_input_partial_shape(number)
                for axis, size in zip(argument.axes, shape, strict=True):
                    if isinstance(axis, str) and (axis not in known or known[axis].is_dynamic):
                        known[axis] = size
            for number, output in enumerate(kernel.outputs):
                sizes = [openvino.Dimension(a) if isinstance(a, int) else known[a] for a in output.axes]
                self.set_output_type(number, types[number], openvino.PartialShape(sizes))

        def clone_with_new_inputs(self, inputs: Any) -> Any:
            """The same operator elsewhere."""
            return Call(inputs)

        def has_evaluate(self) -> bool:
            """It computes by itself."""
            return True

        def evaluate(self, outputs: Any, inputs: Any) -> bool:
            """Calls the library on the tensors in place."""
            given = [i.data for i in inputs]
            sizes = kernel.sizes([a.shape for a in given])
            shapes = kernel.results(sizes)
            for output, shape in zip(outputs, shapes, strict=True):
                output.shape = shape
            if any(0 in shape for shape in shapes):
                return True
            library([*given, *(o.data for o in outputs)], sizes, pool)
            return True

    return Call
