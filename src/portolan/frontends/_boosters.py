"""LightGBM's and XGBoost's estimators told to skl2onnx, so that pipelines may end in them."""

from __future__ import annotations

import sys
from typing import Any


def register() -> None:
    """Registers those converters of onnxmltools whose packages are loaded. Doing it twice changes nothing."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )

    choices = {"nocl": [True, False], "zipmap": [True, False, "columns"]}
    for package, prefix, converter in (("lightgbm", "LGBM", _lightgbm), ("xgboost", "XGB", _xgboost)):
        module = sys.modules.get(package)
        if module is None or not hasattr(module, f"{prefix}Classifier"):
            continue
        update_registered_converter(
            getattr(module, f"{prefix}Classifier"), f"Portolan{prefix}Classifier",
            calculate_linear_classifier_output_shapes, converter, options=choices,
        )  # fmt: skip
        update_registered_converter(
            getattr(module, f"{prefix}Regressor"), f"Portolan{prefix}Regressor",
            calculate_linear_regressor_output_shapes, converter,
        )  # fmt: skip


def _lightgbm(scope: Any, operator: Any, container: Any) -> None:
    from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm

    operator.split = None  # all trees in one operator
    convert_lightgbm(scope, operator, container)


def _xgboost(scope: Any, operator: Any, container: Any) -> None:
    from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost

    convert_xgboost(scope, operator, container)
