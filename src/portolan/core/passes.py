"""Pass: a function from Model to Model whose annotated signature is its schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from portolan.core.interpreters import missing, variable
from portolan.core.model import Model
from portolan.core.schema import Schema
from portolan.core.target import Target

if TYPE_CHECKING:
    import numpy as np

Need = Literal["nothing", "calibration", "training"]
Params = Mapping[str, Any]
Feeds = Mapping[str, "np.ndarray"]
#: What kind of change a pass makes, in the order that a search tries them in; see `misplaced`.
Stage = Literal["graph", "structure", "recovery", "sparsity", "length", "precision", "layers", "kernels"]
STAGES: tuple[Stage, ...] = ("graph", "structure", "recovery", "sparsity", "length", "precision", "layers", "kernels")


@dataclass(frozen=True)
class Context:
    """What a pass works with.

    Attributes:
        folder: an empty folder that the new model's files go into.
        target: where the result is to run; choices such as u8u8 read its features.
        calibration: samples per input, first axis the samples; None when the pass needs none. What a pass chooses on
            samples must be other samples than those that it fitted on; none of them is ever used to judge the result.
        labels: the labels of these samples, for training; None without.
        original: the model that the recipe started from: the teacher.
    """

    folder: Path
    target: Target
    calibration: Mapping[str, np.ndarray] | None = None
    labels: np.ndarray | None = None
    original: Model | None = None


@dataclass(frozen=True)
class Pass:
    """A registered pass.

    Attributes:
        name: as in recipes.
        function: `(model, context, *, keyword options) -> Model`; it never changes the input's files.
        needs: the data it needs with given options.
        produces: the features it adds with given options.
        lossy: whether outputs change with given options.
        stage: what kind of change it makes with given options, which says where in a recipe it may stand.
        refuse: why it cannot help this model with given options, or None; asked before any time is spent.
        distributions: packages whose versions decide the result.
        folds: whether it folds constants and drops dead parts on its way with given options, as `simplify` does.
        left: the least share of a model's operations that it leaves on some inputs, with given options: the roofline of
            what comes out goes by it.
        module: with given options, a module that may live in an environment of its own, where the pass is then
            applied: the interpreter that PORTOLAN_PYTHON_<MODULE> names. None for this one.
    """

    name: str
    function: Callable[..., Model]
    needs: Callable[[Params], Need]
    produces: Callable[[Params], tuple[str, ...]]
    lossy: Callable[[Params], bool]
    stage: Callable[[Params], Stage]
    refuse: Callable[[Model, Params, Target], str | None]
    distributions: tuple[str, ...]
    folds: Callable[[Params], bool] = lambda p: False
    left: Callable[[Params, Model, Sequence[Feeds]], float] = lambda p, m, f: 1.0
    module: Callable[[Params], str | None] = lambda p: None

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
    stage: Callable[[Params], Stage] = lambda p: "graph",
    refuse: Callable[[Model, Params, Target], str | None] = lambda m, p, t: None,
    distributions: tuple[str, ...] = (),
    folds: Callable[[Params], bool] = lambda p: False,
    left: Callable[[Params, Model, Sequence[Feeds]], float] = lambda p, m, f: 1.0,
    module: Callable[[Params], str | None] = lambda p: None,
) -> Callable[[Callable[..., Model]], Pass]:
    """Turns a function into a Pass; see Pass for what each keyword says."""

    def able(model: Model, options: Params, target: Target) -> str | None:
        name = module(options)
        if name is not None and missing(name):
            where = f"or name an interpreter that has it in `{variable(name)}`"
            return f"the package `{name}` is not installed: `pip install {name}`, {where}"
        return refuse(model, options, target)

    def wrap(function: Callable[..., Model]) -> Pass:
        return Pass(
            function.__name__, function, needs, produces, lossy, stage, able, distributions, folds, left, module
        )

    return wrap


def misplaced(before: Stage, after: Stage) -> str | None:
    """Why a pass of the kind `after` must not follow one of the kind `before`; None if it may.

    Returns:
        The reason, as a clause that a refusal can end with.
    """
    if before == "kernels":
        return "a kernel hides the operators that the other passes look for: put kernels in last"
    if before == "layers" and after != "kernels":
        return "layers were measured as they are: change them before that"
    if before == "precision" and after not in ("layers", "kernels"):
        if after == "precision":
            return "the weights have a reduced precision already, and a second one would lose twice"
        return "weights of reduced precision are on a grid that any later change leaves: reduce the precision last"
    if before == "length" and after in ("structure", "recovery", "sparsity"):
        return "sizes that depend on the data are hidden from it: cut lengths afterwards"
    if before == "sparsity" and after == "structure":
        return "its smaller matrices mix the zeros with the rest, so none would be left: make zeros afterwards"
    if after == "graph" and before != "graph":
        return "a simplified graph is what the other passes look for: simplify first"
    return None
