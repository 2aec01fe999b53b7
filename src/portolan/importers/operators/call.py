"""What an operator's function is given beside its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Attributes:
        xp: the namespace that its arrays belong to.
        traced: the namespace of the model's inputs, for arrays that are made from sizes.
        version: of the operator's set.
        attributes: of the node.
        outputs: how many results are read.
    """

    xp: Any
    traced: Any
    version: int
    attributes: Mapping[str, Any]
    outputs: int

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)


@dataclass(frozen=True)
class Operator:
    """One entry of the table.

    Attributes:
        function: `(call, *inputs)` to a result or a tuple of them; absent inputs are None or missing.
        static: the inputs that must be known as the program is read or traced; they come as NumPy arrays.
        folds: whether it is computed in NumPy where all inputs are known; False where NumPy lacks what it needs.
    """

    function: Callable[..., Any]
    static: tuple[int, ...] = ()
    folds: bool = True


def sizes(values: np.ndarray) -> list[Any]:
    """Whole numbers as Python's own, or a tracer's symbols."""
    return list(values.reshape(-1).tolist())


def axes_of(call: Call, given: np.ndarray | None, name: str = "axes") -> list[int] | None:
    """Axes, which newer versions of an operator take as an input and older ones as an attribute."""
    found: Sequence[int] | None = sizes(given) if given is not None else call.get(name)
    return None if found is None else list(found)
