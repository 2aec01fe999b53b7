"""Recipes in as few words as tell them apart: options that are at their defaults go without saying."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portolan.core import registry
from portolan.core.plain import call_text
from portolan.core.recipe import Recipe
from portolan.core.schema import Schema
from portolan.errors import PortolanError


def label(recipe: Recipe) -> dict[str, str]:
    """`{"passes": "simplify + quantize(mode=static)", "backend": "openvino(precision=bf16)"}`; `serving` if chosen."""
    steps = [_call(step.name, step.options, _schema("passes", step.name)) for step in recipe.passes]
    backend = _call(recipe.backend, recipe.options, _schema("backends", recipe.backend))
    served = {"serving": str(recipe.served)} if recipe.serving else {}
    return {"passes": " + ".join(steps) or "-", "backend": backend, **served}


def _schema(group: registry.Group, name: str) -> Schema | None:
    try:
        found: Schema = registry.Registry(group).get(name).schema
    except PortolanError:
        return None
    return found


def _call(name: str, options: Mapping[str, Any], schema: Schema | None) -> str:
    usual = {} if schema is None else {key: p.default for key, p in schema.parameters.items()}
    said = {key: value for key, value in options.items() if key not in usual or usual[key] != value}
    return call_text(name, said)
