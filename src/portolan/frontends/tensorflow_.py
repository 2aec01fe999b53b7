"""TensorFlow: SavedModel folders, `.keras` files and Keras models, written as ONNX by tf2onnx and checked.

Both formats can hold more than arithmetic. A SavedModel's graph may read and write files, and a `.keras` file may name
any Python class: what an ordinary model has no need of is refused before anything is loaded.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.core.frontend import FrontEnd, Made, Shapes
from portolan.core.model import Model
from portolan.core.signature import Dim
from portolan.errors import ModelError, UnknownName, UnsupportedOperator, UsageError
from portolan.frontends import _graphs as graphs
from portolan.frontends import _keras_files as files
from portolan.frontends._needs import need
from portolan.frontends._verify import agree, first_line

if TYPE_CHECKING:
    import numpy as np

OPSET = 18
_SAVED = "saved_model.pb"
_SIGNATURE = "serving_default"
#: Sizes of free axes that a model is compared at.
_SIZES = (2, 3)
Call = Callable[..., Any]


class _Keras:
    """A Keras model as a function of its inputs by name, whose weights may be arguments too."""

    def __init__(self, model: Any, inputs: Sequence[str]) -> None:
        self._model, self._inputs = model, inputs

    def __call__(self, **tensors: Any) -> Any:
        return self._model(self._values(tensors), training=False)

    def stateless(self, weights: Sequence[Any], **tensors: Any) -> Any:
        """What it computes with these numbers in the place of its `weights`."""
        trained = len(self._model.trainable_variables)
        answer, _ = self._model.stateless_call(
            weights[:trained], weights[trained:], self._values(tensors), training=False
        )
        return answer

    @property
    def weights(self) -> list[Any]:
        """Its variables, those that training changes first."""
        return [*self._model.trainable_variables, *self._model.non_trainable_variables]

    def _values(self, tensors: Mapping[str, Any]) -> Any:
        values = [tensors[key] for key in self._inputs]
        return values[0] if len(values) == 1 else values


class TensorFlow(FrontEnd):
    """SavedModel folders, `.keras` files, and Keras models."""

    name = "tensorflow"
    forms = "a SavedModel folder, a `.keras` file, a Keras model"
    distributions = ("tensorflow", "tensorflow-cpu", "keras", "tf2onnx", "onnxruntime")
    modules = ("tensorflow", "tf2onnx", "onnxruntime")
    frameworks = ("tensorflow", "keras")
    fix = "portolan env add tensorflow"

    def accepts(self, source: object) -> bool:
        """A folder with a `saved_model.pb`, the ending `.keras`, or a model where Keras is loaded."""
        if isinstance(source, (str, Path)):
            if Path(source).suffix.lower() == ".keras":
                return True
            return bool(str(source)) and (Path(source) / _SAVED).is_file()
        kind = getattr(sys.modules.get("keras"), "Model", None)
        return kind is not None and isinstance(source, kind)

    def load(self, source: object, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """See FrontEnd."""
        need(self, source)
        if not isinstance(source, (str, Path)):
            return self.convert(Made(source, source="the Keras model", called=str(source.name)), out, shapes, name)  # type: ignore[attr-defined]
        path = Path(source)
        _quiet()
        if path.suffix.lower() == ".keras":
            return self.convert(Made(files.keras(path), source=str(path), called=path.stem), out, shapes, name)
        call, axes, kept = files.saved_model(path, _SIGNATURE)
        model = _exported(call, axes, shapes or {}, out, name or path.resolve().name, str(path))
        del kept  # its variables live as long as it does
        return model

    def convert(self, made: Made, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """See FrontEnd. A Keras model that was never called has no shapes: then example inputs give them."""
        need(self, made.source)
        _quiet()
        model = made.thing
        if made.inputs is not None and not getattr(model, "built", False):
            model(made.inputs)
        inputs = getattr(model, "inputs", None)
        if not inputs:
            raise UsageError(
                f"`{made.source}` does not know the shapes of its inputs",
                hint="build it with `keras.Input`, or call it once on an example before it is returned",
            )
        called = made.names or [str(tensor.name).partition(":")[0] for tensor in inputs]
        if len(called) != len(inputs):
            raise UsageError(
                f"`{made.source}` names {len(called)} inputs and has {len(inputs)}", hint="give one name per input"
            )
        axes: files.Axes = {key: (str(t.dtype), tuple(t.shape)) for key, t in zip(called, inputs, strict=True)}
        return _exported(_Keras(model, called), axes, shapes or {}, out, name or made.called, made.source)


def _quiet() -> None:
    """TensorFlow's start-up notes go nowhere, no GPU is taken, and Keras computes with TensorFlow."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"
    for logger in ("tensorflow", "tf2onnx"):
        logging.getLogger(logger).setLevel(logging.ERROR)


def _exported(call: Call, axes: files.Axes, shapes: Shapes, out: Path, name: str, source: str) -> Model:
    """Converts `call`, whose inputs have these types and sizes, and compares; free axes at two sizes."""
    for key in shapes:
        if key not in axes:
            raise UnknownName("input", key, axes)
    sized = {key: _axes(key, shape, shapes.get(key)) for key, (_, shape) in axes.items()}
    types = {key: dtype for key, (dtype, _) in axes.items()}
    if words := [key for key, dtype in types.items() if dtype == "string"]:
        raise UsageError(
            f"the input `{words[0]}` of `{source}` holds strings, which tf2onnx cannot split or look up",
            hint="export the model behind its text layers, with numbers for inputs",
        )
    proto, outputs = _converted(call, sized, types, source)
    graphs.rename(proto, list(axes), outputs)
    graphs.name_axes(proto, sized)
    model = graphs.write(proto, out, name, "tensorflow")
    for size in _SIZES if model.signature.free else _SIZES[:1]:
        feeds = {key: _sample(sized[key], types[key], size) for key in axes}
        agree(model, feeds, _answer(call, feeds, outputs, source), "TensorFlow")
    return model


def _axes(name: str, shape: Sequence[int | None], wanted: Sequence[Dim] | None) -> tuple[Dim, ...]:
    own: tuple[Dim, ...] = tuple(
        size if size is not None else "batch" if axis == 0 else f"{name}_{axis}" for axis, size in enumerate(shape)
    )
    if wanted is None:
        return own
    if len(wanted) != len(own) or any(isinstance(o, int) and w != o for o, w in zip(own, wanted, strict=True)):
        text, have = "x".join(map(str, wanted)), "x".join(map(str, own))
        raise UsageError(f"the shape {text} does not fit the input `{name}`", hint=f"its shape is {have}")
    return tuple(wanted)


def _converted(
    call: Call, sized: Mapping[str, Sequence[Dim]], types: Mapping[str, str], source: str
) -> tuple[Any, list[str]]:
    import tensorflow as tf
    import tf2onnx

    held = _held_apart(call)
    specs = [
        tf.TensorSpec([None if isinstance(size, str) else size for size in sized[key]], types[key], name=f"input_{i}")
        for i, key in enumerate(sized)
    ] + [tf.TensorSpec(weight.shape, weight.dtype, name=name) for name, weight in held.items()]

    def outputs(*tensors: Any) -> list[Any]:
        feeds, weights = dict(zip(sized, tensors, strict=False)), tensors[len(sized) :]
        answer = call.stateless(weights, **feeds) if isinstance(call, _Keras) and weights else call(**feeds)
        return list(_flat(answer).values())

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = list(_flat(call(**{k: tf.zeros([_SIZES[0] if isinstance(s, str) else s for s in sized[k]], types[k])
                                       for k in sized})))  # fmt: skip
            function = tf.function(outputs, input_signature=specs)
            _check_size(function.get_concrete_function(*specs), source)
            proto, _ = tf2onnx.convert.from_function(function, input_signature=specs, opset=OPSET)
    except ModelError:
        raise
    except Exception as error:  # tf2onnx raises ValueErrors and whatever tracing raises
        text = str(error)
        if "not supported" in text or "Custom" in text:
            raise UnsupportedOperator(
                f"tf2onnx has no ONNX for an operation of `{source}`: {first_line(error)}",
                hint="replace the layer by one of ordinary operations",
            ) from error
        raise ModelError(
            f"`{source}` cannot be written as ONNX by tf2onnx: {first_line(error)}",
            hint="try `python -m tf2onnx.convert` on its own for the whole message",
        ) from error
    _bind(proto, held)
    return proto, names


def _held_apart(call: Call) -> dict[str, Any]:
    """Weights of a model that is too large for one message, by names for them; none where it is not, or none can be.

    tf2onnx holds many copies of what it converts: it is given a function of the weights, and they join later.
    """
    if not isinstance(call, _Keras) or sum(_bytes(w.shape, w.dtype) for w in call.weights) <= graphs.LARGEST:
        return {}
    return {f"weight_{i}": weight for i, weight in enumerate(call.weights)}


def _bind(proto: Any, weights: Mapping[str, Any]) -> None:
    """Makes initializers of those inputs that are weights."""
    import numpy as np
    from onnx import numpy_helper

    for value in list(proto.graph.input):
        weight = weights.get(value.name.partition(":")[0])
        if weight is not None:
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(weight), value.name))
            proto.graph.input.remove(value)


def _check_size(function: Any, source: str) -> None:
    """Refuses what a function holds in itself beyond the size of one message, as the functions of a SavedModel do.

    Raises:
        ModelError: before anything is converted.
    """
    import tensorflow as tf

    size = 0
    for tensor in function.captured_inputs:
        if tensor.dtype != tf.resource:
            size += _bytes(tensor.shape, tensor.dtype)
        elif tensor._handle_data is not None:
            size += sum(_bytes(tf.TensorShape(one.shape), one.dtype) for one in tensor._handle_data.shape_and_type)
    if size > graphs.LARGEST:
        raise ModelError(
            f"`{source}` has {size / 2**30:.1f} GiB of weights, and tf2onnx writes at most 2 GiB of a SavedModel",
            hint="give the Keras model that it was made from: a `.keras` file, or `file.py:factory`",
        )


def _bytes(shape: Any, dtype: Any) -> int:
    import tensorflow as tf

    if tf.TensorShape(shape).rank is None:
        return 0
    return math.prod(int(size or 1) for size in shape) * int(tf.as_dtype(dtype).size)


def _flat(answer: Any) -> dict[str, Any]:
    """The outputs by name: a dict's keys, `output`, or `output_0` and so on."""
    if isinstance(answer, Mapping):
        return {str(key): answer[key] for key in answer}
    parts = list(answer) if isinstance(answer, (list, tuple)) else [answer]
    return {"output": parts[0]} if len(parts) == 1 else {f"output_{i}": part for i, part in enumerate(parts)}


def _sample(shape: Sequence[Dim], dtype: str, free: int) -> np.ndarray:
    import numpy as np

    rng = np.random.default_rng(free)
    sizes = [free if isinstance(size, str) else size for size in shape]
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.standard_normal(sizes).astype(kind)
    return rng.integers(0, 2, sizes).astype(kind)  # two ids are in every vocabulary


def _answer(call: Call, feeds: Mapping[str, np.ndarray], outputs: list[str], source: str) -> list[np.ndarray]:
    import numpy as np
    import tensorflow as tf

    try:
        found = _flat(call(**{key: tf.constant(value) for key, value in feeds.items()}))
    except Exception as error:
        raise UsageError(
            f"`{source}` raised {type(error).__name__} on made-up inputs: {first_line(error)}",
            hint="fix its sizes with `--shapes`",
        ) from error
    return [np.asarray(found[name]) for name in outputs]


tensorflow = TensorFlow()
