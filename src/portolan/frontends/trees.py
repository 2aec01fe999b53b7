"""Gradient-boosted trees in their own formats: LightGBM's text, XGBoost's `.ubj`, and Booster objects."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.core.frontend import FrontEnd, Made, Shapes
from portolan.core.model import Model
from portolan.errors import ModelError, NoBackend, UsageError
from portolan.frontends import _tabular as tabular
from portolan.frontends._needs import found, need
from portolan.frontends._verify import agree, first_line

if TYPE_CHECKING:
    import numpy as np
    import onnx

_PACKAGES = {".txt": "lightgbm", ".ubj": "xgboost"}
_WRITERS = {"lightgbm": "`booster.save_model('model.txt')`", "xgboost": "`booster.save_model('model.ubj')`"}


class Trees(FrontEnd):
    """LightGBM and XGBoost models in their own formats, and Booster objects."""

    name = "trees"
    forms = "LightGBM's `.txt`, XGBoost's `.ubj`, a Booster"
    distributions = ("onnxmltools", "skl2onnx", "lightgbm", "xgboost", "xgboost-cpu")
    modules = ("onnxmltools",)
    fix = "pip install 'portolan[trees]'"

    def accepts(self, source: object) -> bool:
        """By the ending, or by the class where its package is loaded."""
        if isinstance(source, (str, Path)):
            return Path(source).suffix.lower() in _PACKAGES
        return _package(source) is not None

    def load(self, source: object, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """See FrontEnd."""
        need(self, source)
        if isinstance(source, (str, Path)):
            path = Path(source)
            made = Made(_read(path, self.fix), source=str(path), called=path.stem)
        else:
            made = Made(source, source="the Booster", called="booster")
        return self.convert(made, out, shapes, name)

    def convert(self, made: Made, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """See FrontEnd. Example inputs are a few rows of numbers."""
        need(self, made.source)
        booster, package = made.thing, _package(made.thing)
        lightgbm = package == "lightgbm"
        features = int(booster.num_feature() if lightgbm else booster.num_features())
        middle = tabular.bounds(features, dict(_gathered(booster, lightgbm)))
        table = tabular.table(made.inputs, made.names, features, middle, made.source)
        proto = _converted(booster, lightgbm, next(iter(table.columns)), features, made.source)
        model = tabular.write(proto, out, name or made.called, str(package))
        _verify(model, booster, table.whole, lightgbm)
        return tabular.sized(model, shapes, out)


def _package(source: object) -> str | None:
    """`lightgbm` or `xgboost` for a Booster of theirs; None for anything else."""
    for package in _PACKAGES.values():
        booster = getattr(sys.modules.get(package), "Booster", None)
        if booster is not None and isinstance(source, booster):
            return package
    return None


def _read(path: Path, fix: str) -> Any:
    package = _PACKAGES[path.suffix.lower()]
    if not path.is_file():
        raise UsageError(f"there is no file `{path}`", hint=f"give a file that {_WRITERS[package]} wrote")
    if not found(package):
        command = "pip install xgboost-cpu" if package == "xgboost" else fix
        raise NoBackend(f"reading `{path}` needs {package}, which is not installed", hint=command)
    try:
        if package == "lightgbm":
            import lightgbm

            return lightgbm.Booster(model_file=str(path))
        import xgboost

        booster = xgboost.Booster()
        booster.load_model(str(path))
    except Exception as error:  # each library has an error of its own
        raise ModelError(
            f"`{path}` cannot be read by {package}: {first_line(error)}",
            hint=f"write it again with {_WRITERS[package]}",
        ) from error
    return booster


def _gathered(booster: Any, lightgbm: bool) -> Iterator[tuple[int, list[float]]]:
    """Per feature, the values that the trees compare it with."""
    found: dict[int, list[float]] = {}
    names = None if lightgbm else booster.feature_names
    waiting: list[Any] = (
        [tree["tree_structure"] for tree in booster.dump_model()["tree_info"]]
        if lightgbm
        else [json.loads(text) for text in booster.get_dump(dump_format="json")]
    )
    while waiting:
        node = waiting.pop()
        feature, value = (node.get("split_feature"), node.get("threshold")) if lightgbm else _split(node, names)
        if feature is not None and isinstance(value, (int, float)):
            found.setdefault(int(feature), []).append(float(value))
        waiting += [node[key] for key in ("left_child", "right_child") if key in node] + node.get("children", [])
    yield from found.items()


def _split(node: dict[str, Any], names: list[str] | None) -> tuple[int | None, Any]:
    split = node.get("split")
    if split is None:
        return None, None
    return (names.index(split) if names else int(str(split).removeprefix("f"))), node.get("split_condition")


def _converted(booster: Any, lightgbm: bool, called: str, features: int, source: str) -> onnx.ModelProto:
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    types = [(called, FloatTensorType([None, features]))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if lightgbm:
                proto: onnx.ModelProto = onnxmltools.convert_lightgbm(
                    booster, name="model", initial_types=types, target_opset=15, zipmap=False
                )
            else:
                proto = onnxmltools.convert_xgboost(booster, name="model", initial_types=types, target_opset=15)
    except Exception as error:  # the converter raises what it likes
        raise ModelError(
            f"`{source}` cannot be written as ONNX by onnxmltools: {first_line(error)}",
            hint="its objective or its kind of split is not known there: refit with another",
        ) from error
    return proto


def _verify(model: Model, booster: Any, rows: np.ndarray, lightgbm: bool) -> None:
    import numpy as np

    if lightgbm:
        answer = np.asarray(booster.predict(rows))
    else:
        import xgboost

        answer = np.asarray(booster.predict(xgboost.DMatrix(rows, feature_names=booster.feature_names)))
    scores = labels = answer
    if "label" in {spec.name for spec in model.signature.outputs}:
        scores = answer if answer.ndim == 2 else np.stack([1 - answer, answer], axis=1)
        labels = scores.argmax(axis=1)
    wanted = [
        tabular.like(labels if spec.name == "label" else scores, spec.dtype, len(spec.shape))
        for spec in model.signature.outputs
    ]
    agree(model, {model.signature.inputs[0].name: rows}, wanted, str(_package(booster)), flips=tabular.FLIPS)


trees = Trees()
