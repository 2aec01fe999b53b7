"""Pass: a function from Model to Model whose annotated signature is its schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from portolan.core.model import Model
from portolan.core.schema import Schema
from portolan.core.target import Target

if TYPE_CHECKING:
    import numpy as np

Need = Literal["nothing", "calibration", "training"]
Params = Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """What a pass works with.

    Attributes:
        folder: an empty folder that the new model's files go into.
        calibration: samples per input, first axis the samples; None when the pass needs none.
        target: where the result is to run; choices such as u8u8 read its features.
    """

    folder: Path
    target: Target
    calibration: Mapping[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Pass:
    """A registered pass.

    Attributes:
        name: as in recipes.
        function: `(model, context, *, keyword options) -> Model`; it never changes the input's files.
        needs: the data it needs with given options.
        produces: the features it adds with given options.
        lossy: whether outputs change with given options.
        refuse: why it cannot help this model with given options, or None; asked before any time is spent.
        distributions: packages whose versions decide the result.
    """

    name: str
    function: Callable[..., Model]
    needs: Callable[[Params], Need]
    produces: Callable[[Params], tuple[str, ...]]
    lossy: Callable[[Params], bool]
    refuse: Callable[[Model, Params, Target], str | None]
    distributions: tuple[str, ...]

    @property
    def schema(self) -> Schema:
        """The options, read from the function's signature."""
        return Schema.of(self.function, self.name)

    @property
    def about(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().splitlines()[0]

    def __call__(self, model: Model, context: Context, **options: Any) -> Model:
        """Applies the pass."""
        return self.function(model, context, **self.schema.check(options))


def compression(
    *,
    needs: Callable[[Params], Need] = lambda p: "nothing",
    produces: Callable[[Params], tuple[str, ...]] = lambda p: (),
    lossy: Callable[[Params], bool] = lambda p: False,
    refuse: Callable[[Model, Params, Target], str | None] = lambda m, p, t: None,
    distributions: tuple[str, ...] = (),
) -> Callable[[Callable[..., Model]], Pass]:
    """Turns a function into a Pass; see Pass for what each keyword says."""

    def wrap(function: Callable[..., Model]) -> Pass:
        return Pass(function.__name__, function, needs, produces, lossy, refuse, distributions)

    return wrap
