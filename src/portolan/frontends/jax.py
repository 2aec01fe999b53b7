"""JAX: a function of arrays, or a Flax or Equinox module, written as ONNX by jax2onnx and checked against JAX.

A function carries its weights in itself: a closure, a `functools.partial`, or globals of its file.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.core.frontend import FrontEnd, Made, Shapes
from portolan.core.model import Model
from portolan.core.signature import Dim
from portolan.errors import ModelError, UnknownName, UnsupportedOperator, UsageError
from portolan.frontends import _graphs as graphs
from portolan.frontends._needs import need
from portolan.frontends._verify import agree, first_line

if TYPE_CHECKING:
    import numpy as np

OPSET = 18
_MODULES = (("flax.nnx", "Module"), ("equinox", "Module"))
_ROWS = 2


class Jax(FrontEnd):
    """JAX functions, and modules of Flax NNX and Equinox."""

    name = "jax"
    forms = "a JAX function (`file.py:function`)"
    distributions = ("jax", "jaxlib", "jax2onnx", "onnxruntime")
    modules = ("jax", "jax2onnx", "onnxruntime")
    frameworks = ("jax", "flax", "equinox")
    fix = "portolan env add jax"

    def accepts(self, source: object) -> bool:
        """A function, where JAX is loaded: a file that names one belongs to the front end of factories."""
        if "jax" not in sys.modules or isinstance(source, (str, Path)):
            return False
        if isinstance(source, (types.FunctionType, functools.partial)) or type(source).__module__.startswith("jaxlib"):
            return callable(source)
        known = [getattr(sys.modules.get(module), name, None) for module, name in _MODULES]
        return any(kind is not None and isinstance(source, kind) for kind in known)

    def load(self, source: object, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """See FrontEnd."""
        need(self, source)
        called = str(getattr(source, "__name__", type(source).__name__.lower()))
        given = getattr(source, "example_inputs", None)
        return self.convert(Made(source, given, source=called, called=called), out, shapes, name)

    def convert(self, made: Made, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """See FrontEnd. Example inputs are arrays by position or by the names of the function's parameters."""
        need(self, made.source)
        examples = _examples(made, shapes or {})
        axes = {key: tuple((shapes or {}).get(key) or value.shape) for key, value in examples.items()}
        answer = _answer(made, list(examples.values()))
        proto = _converted(made, examples, axes, list(answer))
        graphs.name_axes(proto, axes)
        model = graphs.write(proto, out, name or made.called, "jax")
        agree(model, examples, list(answer.values()), "JAX")
        if model.signature.free:
            other = {key: _longer(value, axes[key]) for key, value in examples.items()}
            agree(model, other, list(_answer(made, list(other.values())).values()), "JAX")
        return model


def _examples(made: Made, shapes: Shapes) -> dict[str, np.ndarray]:
    """The inputs by name, in the sizes that are asked for and in the types that JAX computes with."""
    import jax.numpy as jnp
    import numpy as np

    parameters = _parameters(made.thing)
    given = made.inputs
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif given is not None:
        values = given if isinstance(given, (tuple, list)) else (given,)
        called = made.names or parameters[: len(values)]
        if len(called) != len(values):
            raise UsageError(
                f"`{made.source}` names {len(called)} inputs and has {len(values)}", hint="give one name per input"
            )
        pairs = list(zip(called, values, strict=True))
    else:
        wanted = parameters or ["x"]
        missing = [key for key in wanted if key not in shapes]
        if missing:
            raise UsageError(
                f"`{made.source}` has no example inputs, and no shape for `{missing[0]}`",
                hint=f"give `--shapes {missing[0]}:1x224x224x3`, or return (function, example_inputs)",
            )
        rng = np.random.default_rng(0)
        sizes = {key: [_ROWS if isinstance(d, str) else d for d in shapes[key]] for key in wanted}
        pairs = [(key, rng.standard_normal(size).astype(np.float32)) for key, size in sizes.items()]
    for key in shapes:
        if key not in dict(pairs):
            raise UnknownName("input", key, dict(pairs))
    return {key: _fitted(key, np.asarray(jnp.asarray(_array(value, made))), shapes.get(key)) for key, value in pairs}


def _parameters(function: Any) -> list[str]:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in signature.parameters.values() if p.kind in kinds and p.default is p.empty]


def _array(value: Any, made: Made) -> Any:
    import numpy as np

    if not hasattr(value, "shape") and not isinstance(value, (int, float, bool)):
        raise UsageError(
            f"an example input of `{made.source}` is a {type(value).__name__}, expected an array",
            hint="wrap the function so that it takes arrays only, and bind the rest with functools.partial",
        )
    if getattr(value, "dtype", None) is not None and np.asarray(value).dtype.kind in "OUS":
        raise UsageError(f"an example input of `{made.source}` holds strings", hint="JAX computes with numbers only")
    return value


def _fitted(name: str, value: np.ndarray, shape: Sequence[Dim] | None) -> np.ndarray:
    """The example cut or repeated to `shape`; free axes get at least two."""
    import numpy as np

    if shape is None:
        return value
    if len(shape) != value.ndim:
        text, have = "x".join(map(str, shape)), "x".join(map(str, value.shape))
        raise UsageError(f"the shape {text} does not fit the input `{name}`", hint=f"its example has shape {have}")
    for axis, size in enumerate(shape):
        wanted = max(_ROWS, value.shape[axis]) if isinstance(size, str) else size
        value = np.take(value, np.arange(wanted) % value.shape[axis], axis)
    return value


def _longer(value: np.ndarray, shape: Sequence[Dim]) -> np.ndarray:
    import numpy as np

    for axis, size in enumerate(shape):
        if isinstance(size, str):
            value = np.take(value, np.arange(value.shape[axis] + 1) % value.shape[axis], axis)
    return value


def _answer(made: Made, values: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What JAX computes, by the outputs' names: a dict's keys, `output`, or `output_0` and so on."""
    import jax
    import numpy as np

    try:
        answer = made.thing(*values)
    except Exception as error:  # the user's own function
        raise UsageError(
            f"`{made.source}` raised {type(error).__name__} on its example inputs: {first_line(error)}",
            hint="run the function on its own to see the whole traceback",
        ) from error
    leaves = [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(answer)]
    names = ["output"] if len(leaves) == 1 else [f"output_{i}" for i in range(len(leaves))]
    if isinstance(answer, dict) and len(answer) == len(leaves):
        names = sorted(map(str, answer))  # as JAX orders a dict's leaves
    return dict(zip(names, leaves, strict=True))


def _converted(
    made: Made, examples: Mapping[str, np.ndarray], axes: Mapping[str, Sequence[Dim]], outputs: list[str]
) -> Any:
    import jax
    from jax2onnx import to_onnx

    specs = [jax.ShapeDtypeStruct(tuple(axes[key]), value.dtype) for key, value in examples.items()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return to_onnx(
                made.thing, inputs=specs, model_name="model", opset=OPSET, return_mode="proto",
                input_names=list(examples), output_names=outputs,
            )  # fmt: skip
    except NotImplementedError as error:
        raise UnsupportedOperator(
            f"jax2onnx has no ONNX for an operation of `{made.source}`: {first_line(error)}",
            hint="write it with other operations of jax.numpy or jax.lax",
        ) from error
    except Exception as error:  # tracing runs the user's own code: anything can come out
        raise ModelError(
            f"`{made.source}` cannot be written as ONNX by jax2onnx: {first_line(error)}",
            hint="jit needs a function without branches on values: try `jax.make_jaxpr` on it for the whole message",
        ) from error


jax = Jax()
