"""What an operator's function is given beside its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portolan.errors import UnsupportedOperator
from portolan.importers import numpy_

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
        scope: every value computed so far, for bodies.
    """

    xp: Any
    traced: Any
    version: int
    attributes: Mapping[str, Any]
    outputs: int
    scope: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def known(self, value: Any, what: str = "an input") -> np.ndarray:
        """What an array holds, now.

        Raises:
            UnsupportedOperator: only a run of what is being traced would tell.
        """
        if numpy_.holds(value):
            return value  # type: ignore[no-any-return]
        found: np.ndarray | None = self.traced.known(value)
        if found is None:
            raise UnsupportedOperator(
                f"{what} is known only as the model runs",
                hint="export the model with fixed sizes (`--shapes`), or use `--backend onnxruntime`",
            )
        return found

    def body(self, name: str, *inputs: Any) -> list[Any]:
        """The results of the body that the attribute `name` holds."""
        return self.attributes[name].called(self.traced, self.scope, inputs)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Operator:
    """One entry of the table.

    Attributes:
        function: `(call, *inputs)` to a result or a tuple of them; absent inputs are None or missing.
        static: the inputs that must be known as the program is read or traced; they come as NumPy arrays.
        raw: whether its inputs come as they are: lists, NumPy's arrays among others.
        folds: whether it is computed in NumPy where all inputs are known; False where NumPy lacks what it needs.
    """

    function: Callable[..., Any]
    static: tuple[int, ...] = ()
    folds: bool = True
    raw: bool = False


def sizes(values: np.ndarray) -> list[Any]:
    """Whole numbers as Python's own, or a tracer's symbols."""
    return list(values.reshape(-1).tolist())


def axes_of(call: Call, given: np.ndarray | None, name: str = "axes") -> list[int] | None:
    """Axes, which newer versions of an operator take as an input and older ones as an attribute."""
    found: Sequence[int] | None = sizes(given) if given is not None else call.get(name)
    return None if found is None else list(found)
