"""scikit-learn: fitted estimators and pipelines, from code or a `.skops` file, converted by skl2onnx and checked.

Estimators of LightGBM and XGBoost that follow scikit-learn are read too, alone or inside a pipeline. Nothing is
unpickled: `.skops` files are read by skops, which builds known types only.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.core.frontend import FrontEnd, Made, Shapes
from portolan.core.model import Model
from portolan.errors import ModelError, NoBackend, PortolanError, UnsupportedOperator, UsageError
from portolan.frontends import _tabular as tabular
from portolan.frontends._needs import found, need
from portolan.frontends._verify import agree, first_line

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: Per output's name in a converted graph, the methods that may have computed it; skl2onnx calls them so.
_COUNTERPARTS = {
    "label": ("predict",),
    "output_label": ("predict",),
    "probabilities": ("predict_proba", "decision_function"),
    "output_probability": ("predict_proba", "decision_function"),
    "variable": ("predict", "transform"),
    "scores": ("transform", "decision_function"),
}
_ALONE = "pip install 'portolan[sklearn]'"


class Sklearn(FrontEnd):
    """Fitted scikit-learn estimators and pipelines: objects, factories, and `.skops` files."""

    name = "sklearn"
    forms = "a `.skops` file, a fitted scikit-learn estimator"
    distributions = ("scikit-learn", "skl2onnx", "onnxmltools", "lightgbm", "xgboost", "xgboost-cpu", "skops")
    modules = ("sklearn", "skl2onnx")
    frameworks = ("sklearn", "skops", "lightgbm", "xgboost")
    fix = _ALONE

    def accepts(self, source: object) -> bool:
        """By the ending, or by the class where scikit-learn is loaded."""
        if isinstance(source, (str, Path)):
            return Path(source).suffix.lower() == ".skops"
        base = sys.modules.get("sklearn.base")
        return base is not None and isinstance(source, base.BaseEstimator)

    def load(self, source: object, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """See FrontEnd."""
        need(self, source)
        if isinstance(source, (str, Path)):
            path = Path(source)
            made = Made(_read_skops(path), source=str(path), called=path.stem)
        else:
            called = type(source).__name__.lower()
            made = Made(source, source=called, called=called)
        return self.convert(made, out, shapes, name)

    def convert(self, made: Made, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """See FrontEnd. Example inputs are a few rows: a 2-D array of numbers, or a DataFrame, a column per input."""
        need(self, made.source)
        estimator = made.thing
        _check_fitted(estimator, made.source)
        features = _asked(estimator, "n_features_in_")
        table = tabular.table(made.inputs, made.names, features, _middle(estimator, features), made.source)
        proto = _converted(estimator, table, made.source)
        model = tabular.write(proto, out, name or made.called, "sklearn")
        _verify(model, estimator, table, made.source)
        return tabular.sized(model, shapes, out)


def _asked(thing: Any, attribute: str) -> Any:
    """An attribute that a pipeline forwards to its steps; None where nobody has it."""
    try:
        return getattr(thing, attribute, None)
    except Exception:  # a pipeline's properties raise what its steps raise
        return None


def _read_skops(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"there is no file `{path}`", hint="give a `.skops` file that `skops.io.dump` wrote")
    if not found("skops"):
        raise NoBackend(f"reading `{path}` needs skops, which is not installed", hint=_ALONE)
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        return skops.io.load(path, trusted=[])
    except UntrustedTypesFoundException as error:
        raise ModelError(
            f"`{path}` is refused, since it holds types that are not known to be safe: {first_line(error)}",
            hint="make the estimator in code of your own: `file.py:factory`",
        ) from error
    except Exception as error:  # a damaged archive fails anywhere in its reader
        raise ModelError(
            f"`{path}` cannot be read by skops: {first_line(error)}", hint="write it again with `skops.io.dump`"
        ) from error


def _check_fitted(estimator: Any, source: str) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise UsageError(f"the model of `{source}` is not fitted", hint="fit it before it is returned") from error
    except TypeError:  # no estimator in the strict sense; its own methods will say
        return


def _converted(estimator: Any, table: tabular.Table, source: str) -> onnx.ModelProto:
    import sklearn.base
    from skl2onnx import to_onnx
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

    _refuse_categories(estimator, source)
    final = _final(estimator)
    options = {id(estimator): {"zipmap": False}} if sklearn.base.is_classifier(final) else None
    try:
        with warnings.catch_warnings(), _boosters(), _whole_numbers():
            warnings.simplefilter("ignore")
            proto: onnx.ModelProto = to_onnx(
                estimator, initial_types=_types(table), target_opset=tabular.OPSETS, options=options, name="model"
            )
    except PortolanError:
        raise
    except (MissingConverter, MissingShapeCalculator) as error:
        raise UnsupportedOperator(
            f"skl2onnx has no ONNX for a step of `{source}`: {first_line(error)}",
            hint="use a step that it has: https://onnx.ai/sklearn-onnx/supported.html",
        ) from error
    except Exception as error:  # converters of dozens of authors raise what they like
        raise ModelError(
            f"`{source}` cannot be written as ONNX by skl2onnx: {first_line(error)}",
            hint="try `skl2onnx.to_onnx` on its own for the whole message",
        ) from error
    return proto


def _types(table: tabular.Table) -> list[tuple[str, Any]]:
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

    kinds = {"f": FloatTensorType, "i": Int64TensorType, "O": StringTensorType}
    return [(name, kinds[array.dtype.kind]([None, array.shape[1]])) for name, array in table.columns.items()]


def _final(estimator: Any) -> Any:
    """The last step of a pipeline, or the estimator that a search found."""
    while True:
        inner = getattr(estimator, "best_estimator_", None)
        steps = getattr(estimator, "steps", None)
        if inner is not None:
            estimator = inner
        elif steps:
            estimator = steps[-1][1]
        else:
            return estimator


def _parts(estimator: Any) -> Iterator[Any]:
    """The estimator and every fitted one inside it."""
    seen: set[int] = set()
    waiting = [estimator]
    while waiting:
        part = waiting.pop()
        if id(part) in seen or not hasattr(part, "get_params"):
            continue
        seen.add(id(part))
        yield part
        with contextlib.suppress(Exception):
            waiting += list(part.get_params().values())
        waiting += [step for _, step, *_ in getattr(part, "steps", None) or getattr(part, "transformers_", None) or ()]
        waiting += [inner for inner in [getattr(part, "best_estimator_", None)] if inner is not None]


def _refuse_categories(estimator: Any, source: str) -> None:
    """Splits by category in histogram trees, which skl2onnx writes as comparisons, and silently wrong ones."""
    for part in _parts(estimator):
        categories = getattr(part, "is_categorical_", None)
        if categories is not None and any(categories):
            raise UnsupportedOperator(
                f"skl2onnx has no ONNX for the categorical features of {type(part).__name__} in `{source}`",
                hint="encode the categories in a step before it, such as OneHotEncoder",
            )


@contextlib.contextmanager
def _whole_numbers() -> Iterator[None]:
    """skl2onnx 1.20 hands over a truth value where ONNX 1.23 wants a number, in histogram gradient boosting."""
    from skl2onnx.common import tree_ensemble

    honest: Callable[..., Any] = tree_ensemble.add_node

    def add_node(*args: Any, nodes_missing_value_tracks_true: Any = 0, **kwargs: Any) -> Any:
        return honest(*args, nodes_missing_value_tracks_true=int(nodes_missing_value_tracks_true), **kwargs)

    tree_ensemble.add_node = add_node
    try:
        yield
    finally:
        tree_ensemble.add_node = honest


@contextlib.contextmanager
def _boosters() -> Iterator[None]:
    """Tells skl2onnx how LightGBM's and XGBoost's estimators are converted, where their packages are loaded."""
    if "lightgbm" in sys.modules or "xgboost" in sys.modules:
        from portolan.frontends._boosters import register

        register()
    yield


def _middle(estimator: Any, features: int | None) -> Sequence[tuple[float, float]]:
    """Where samples tell something: around what a first step has seen, or what trees compare with."""
    if features is None:
        return ()
    first = estimator.steps[0][1] if getattr(estimator, "steps", None) else estimator
    for low, high in (("data_min_", "data_max_"),):
        if hasattr(first, low):
            return list(zip(getattr(first, low), getattr(first, high), strict=True))
    mean, scale = getattr(first, "mean_", None), getattr(first, "scale_", None)
    if mean is not None and scale is not None and len(mean) == features:
        return [(float(m - 2 * s), float(m + 2 * s)) for m, s in zip(mean, scale, strict=True)]
    return tabular.bounds(features, _thresholds(first))


def _thresholds(estimator: Any) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    trees = [t for t in _flat(getattr(estimator, "estimators_", [estimator])) if hasattr(t, "tree_")]
    for tree in trees:
        for feature, value in zip(tree.tree_.feature, tree.tree_.threshold, strict=True):
            if feature >= 0:
                found.setdefault(int(feature), []).append(float(value))
    for predictor in _flat(getattr(estimator, "_predictors", [])):
        for node in predictor.nodes:
            if not node["is_leaf"]:
                found.setdefault(int(node["feature_idx"]), []).append(float(node["num_threshold"]))
    return found


def _flat(trees: Any) -> list[Any]:
    import numpy as np

    return list(np.asarray(trees, dtype=object).ravel())


def _verify(model: Model, estimator: Any, table: tabular.Table, source: str) -> None:
    wanted = []
    for spec in model.signature.outputs:
        methods = _COUNTERPARTS.get(spec.name, ("predict", "transform"))
        method = next((m for m in methods if callable(_asked(estimator, m))), None)
        if method is None:
            raise ModelError(
                f"the output `{spec.name}` of `{source}` cannot be checked: {type(estimator).__name__} has none of "
                f"{', '.join(methods)}",
                hint="end the pipeline in an estimator with predict or transform",
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names of features, which an array has not
            value = _dense(getattr(estimator, method)(table.whole))
        wanted.append(tabular.like(value, spec.dtype, len(spec.shape)))
    agree(model, table.columns, wanted, "scikit-learn", flips=tabular.FLIPS)


def _dense(value: Any) -> np.ndarray:
    import numpy as np

    return np.asarray(value.toarray() if hasattr(value, "toarray") else value)


sklearn = Sklearn()
