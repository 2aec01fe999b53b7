"""`file.py:function`: code of the user's own that makes a model of any framework, or that is one.

A function without arguments is a factory: it is called, and what it returns is handed to the front end whose kind it
is, with example inputs and their names where it returns those too. A function with arguments is itself the model, for
frameworks whose models are functions.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path
from typing import Any

from portolan.core import userfile
from portolan.core.frontend import FrontEnd, Made, Shapes
from portolan.core.model import Model
from portolan.core.registry import FRONTENDS
from portolan.errors import UsageError
from portolan.frontends._needs import absent, found, need

_HINT = "return the model, (model, example_inputs) or (model, example_inputs, input_names)"


class Factory(FrontEnd):
    """Python code that makes a model, or a function that is one. It is the user's own, and is run."""

    name = "factory"
    forms = "`file.py:factory`"
    #: What any framework's factory may need: which one it is shows only when it is called.
    distributions = ("torch", "onnxscript", "transformers", "scikit-learn", "skl2onnx", "onnxmltools", "lightgbm",
                     "xgboost", "xgboost-cpu", "jax", "jax2onnx", "tensorflow", "tf2onnx")  # fmt: skip

    def accepts(self, source: object) -> bool:
        """By the form `file.py:function`."""
        return isinstance(source, (str, Path)) and userfile.is_reference(source)

    def load(self, source: object, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """See FrontEnd. The function returns a model with or without inputs, or takes inputs and is the model."""
        reference = str(source)
        wanted = self.home(reference)
        if wanted is not self and not _all_found(wanted, reference):
            need(wanted, reference)
        made = _made(reference)
        front_end = _reader(made)
        if front_end is None:
            kind = type(made.thing).__name__
            raise UsageError(f"`{reference}` gives {kind}, expected a model of {_known()}", hint=_HINT)
        return front_end.convert(made, out, shapes, name)

    def home(self, source: object) -> FrontEnd:
        """The front end whose packages are missing here for a file that imports its framework; else this one."""
        found = [FRONTENDS.get(name) for name in FRONTENDS.names()]
        path, _ = userfile.split(str(source))
        imported = _imports(path)
        concerned = [front_end for front_end in found if imported & set(front_end.frameworks)]
        lacking = [front_end for front_end in concerned if not _all_found(front_end, str(source))]
        if not lacking and len(concerned) == 1:  # the framework is here, and its converter perhaps elsewhere
            lacking = [front_end for front_end in concerned if absent(front_end)]
        return lacking[0] if lacking else self


def _all_found(front_end: FrontEnd, source: str) -> bool:
    """Whether the frameworks of this front end that the file imports are all in this interpreter."""
    imported = _imports(userfile.split(source)[0])
    return all(found(module) for module in imported & set(front_end.frameworks))


def _made(source: str) -> Made:
    function, called = userfile.function(source), userfile.split(source)[1]
    made = Made(None, source=source, called=called)
    if not _is_factory(function):
        return dataclasses.replace(made, thing=function, inputs=getattr(function, "example_inputs", None))
    with userfile.importing_from(userfile.split(source)[0].resolve().parent), userfile.blamed_on(source):
        result = function()
    parts = result if isinstance(result, tuple) else (result,)
    if not 1 <= len(parts) <= 3:
        raise UsageError(f"`{source}` gives a tuple of {len(parts)}", hint=_HINT)
    names = list(parts[2]) if len(parts) > 2 else None
    return dataclasses.replace(made, thing=parts[0], inputs=parts[1] if len(parts) > 1 else None, names=names)


def _is_factory(function: Any) -> bool:
    """Whether it can be called without arguments. A class is one: its instance is the model."""
    if isinstance(function, type):
        return True
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return not any(p.default is p.empty and p.kind in by_position for p in parameters)


def _reader(made: Made) -> FrontEnd | None:
    if isinstance(made.thing, (str, Path)):  # a path would be read by its form, and is no model at hand
        return None
    found = (FRONTENDS.get(name) for name in FRONTENDS.names())
    return next((front_end for front_end in found if front_end.accepts(made.thing)), None)


def _known() -> str:
    return ", ".join(name for name in FRONTENDS.names() if FRONTENDS.get(name).frameworks)


def _imports(path: Path) -> set[str]:
    """The top-level modules that a Python file imports anywhere; none where it cannot be parsed."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return set()
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names}


factory = Factory()
