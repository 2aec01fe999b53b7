"""What goes into a model and what comes out: names, element types and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portolan.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

Dim = int | str


@dataclass(frozen=True)
class TensorSpec:
    """One tensor. A dimension is a size, or a name where the size is free. `dtype` is NumPy's name, or `string`."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def to_json(self) -> dict[str, Any]:
        """The tensor object of the contract."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    def __str__(self) -> str:
        return f"{self.name}:{'x'.join(map(str, self.shape))} {self.dtype}"


@dataclass(frozen=True)
class Signature:
    """A model's inputs and outputs, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def free(self) -> list[str]:
        """The names of inputs' dimensions that have no size, each once."""
        return list(dict.fromkeys(d for spec in self.inputs for d in spec.shape if isinstance(d, str)))

    @property
    def batch(self) -> Dim | None:
        """The batch axis: its static size, its name where it is free, None where the inputs' first axes differ."""
        firsts = [spec.shape[0] if spec.shape else None for spec in self.inputs]
        fixed = {first for first in firsts if isinstance(first, int)}
        if not firsts or None in firsts or len(fixed) > 1:
            return None
        return fixed.pop() if fixed else firsts[0]

    @property
    def freed(self) -> Signature:
        """The same with a free first axis everywhere."""
        inputs, outputs = (
            tuple(TensorSpec(s.name, s.dtype, ("batch", *s.shape[1:])) for s in specs)
            for specs in (self.inputs, self.outputs)
        )
        return Signature(inputs, outputs)

    def check(self, inputs: Mapping[str, np.ndarray], where: str | None = None) -> None:
        """Checks names, element types and shapes of one call's inputs.

        Raises:
            UsageError: says which input, what was expected and what was got.
        """
        expected = {spec.name: spec for spec in self.inputs}
        missing, extra = expected.keys() - inputs.keys(), inputs.keys() - expected.keys()
        if missing or extra:
            lacking = f"lacks {_ticks(missing)}" if missing else ""
            unknown = f"has unknown {_ticks(extra)}" if extra else ""
            raise UsageError(
                f"the data {' and '.join(filter(None, (lacking, unknown)))}",
                hint=f"the model's inputs are {_ticks(expected)}",
                where=where,
            )
        for name, spec in expected.items():
            array = inputs[name]
            kind = "string" if array.dtype.kind in "OU" else str(array.dtype)
            if kind != spec.dtype:
                raise UsageError(
                    f"input `{name}` has type {array.dtype}, expected {spec.dtype}",
                    hint=f"convert it: `data['{name}'].astype('{spec.dtype}')`",
                    where=where,
                )
            fits = len(array.shape) == len(spec.shape) and all(
                isinstance(want, str) or got == want for got, want in zip(array.shape, spec.shape, strict=True)
            )
            if not fits:
                want = "x".join(map(str, spec.shape))
                got = "x".join(map(str, array.shape))
                raise UsageError(
                    f"input `{name}` has shape {got}, expected {want}",
                    hint="the first axis of each array holds the samples",
                    where=where,
                )


def _ticks(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "nothing"
