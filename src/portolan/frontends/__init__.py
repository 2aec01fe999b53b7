"""Front ends, one file each: they turn what a framework saves into a Model."""

from __future__ import annotations

import difflib
from pathlib import Path

from portolan.core.frontend import FrontEnd, Shapes
from portolan.core.model import Model
from portolan.core.registry import FRONTENDS
from portolan.errors import ModelError, UsageError
from portolan.frontends import _needs

_PICKLED = (
    "a {suffix} file is a pickle, and loading it would run code: save the model with "
    "`torch.export.save(torch.export.export(model, inputs), 'model.pt2')`, or give `file.py:factory`"
)
_PICKLED_ESTIMATOR = (
    "a pickle runs code when it is loaded: save a scikit-learn model with `skops.io.dump(model, 'model.skops')`, "
    "or load it in code of your own: `file.py:factory`"
)
#: What to do with files that people have and Portolan does not read.
_ADVICE = {
    ".pt": _PICKLED.format(suffix="`.pt`"),
    ".pth": _PICKLED.format(suffix="`.pth`"),
    ".ckpt": _PICKLED.format(suffix="`.ckpt`"),
    ".bin": "give the torch module that belongs to these weights: `file.py:factory`",
    ".safetensors": "weights alone are no model: give the folder that has their `config.json`, or `file.py:factory`",
    ".pkl": _PICKLED_ESTIMATOR,
    ".pickle": _PICKLED_ESTIMATOR,
    ".joblib": _PICKLED_ESTIMATOR,
    ".tflite": "convert it: `python -m tf2onnx.convert --tflite model.tflite --output model.onnx`",
    ".pb": "convert it: `python -m tf2onnx.convert --graphdef model.pb --output model.onnx`",
    ".h5": "load it in Keras and save it in its present format: `model.save('model.keras')`",
    ".hdf5": "load it in Keras and save it in its present format: `model.save('model.keras')`",
    ".ort": "give the `.onnx` file that it was made from",
    ".engine": "an engine is tied to one GPU: give the `.onnx` file that it was made from",
    ".xml": "give the `.onnx` file that it was converted from: OpenVINO's own format is read by OpenVINO alone",
    ".py": "name the function that makes the model: `{source}:factory`",
}


def load(source: object, *, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
    """Makes a Model of whatever `source` is.

    Args:
        source: a file or folder of a kind that a front end knows, `file.py:factory`, `demo:NAME`, or an object.
        out: a folder for derived files. A plain `.onnx` file is read in place.
        shapes: a shape per input; a name in place of a size leaves that axis free.
        name: what to call the model.

    Raises:
        UsageError: no such source, or shapes that do not fit.
        ModelError: the source cannot be read, or is of no kind that is read here.
        VerificationFailed: an exported graph does not compute what its source does.
    """
    return find(source).load(source, Path(out), shapes, name)


def find(source: object) -> FrontEnd:
    """The front end that reads `source`.

    Raises:
        UsageError: no such source.
        ModelError: it is of no kind that is read here.
    """
    tried: list[FrontEnd] = []
    for known in FRONTENDS.names():
        front_end: FrontEnd = FRONTENDS.get(known)
        if front_end.accepts(source):
            return front_end
        tried.append(front_end)
    raise _refused(source, tried)


def interpreter(source: object) -> list[str] | None:
    """The argv of the interpreter in which `source` is to be read; None for this one.

    Raises:
        UsageError: no such source, or PORTOLAN_PYTHON_<NAME> is no command line.
        ModelError: it is of no kind that is read here.
    """
    front_end = find(source)
    return _needs.interpreter(front_end.home(source)) if front_end.distributions else None


def _refused(source: object, tried: list[FrontEnd]) -> ModelError | UsageError:
    forms = ", ".join(front_end.forms for front_end in tried)
    if not isinstance(source, (str, Path)):
        return UsageError(f"a `{type(source).__name__}` is not a model", hint=f"give one of: {forms}")
    path = Path(source)
    advice = _ADVICE.get(path.suffix.lower())
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.suffix in (".onnx", ".pt2"))
        advice = f"give the file in it: `{inside[0]}`" if inside else None
        return ModelError(f"`{source}` is a folder, not a model", hint=advice or f"give one of: {forms}")
    if advice is not None:
        return ModelError(f"`{source}` cannot be read directly", hint=advice.replace("{source}", str(source)))
    if path.is_file():
        return ModelError(f"`{source}` is of no kind that is read here", hint=f"give one of: {forms}")
    folder = path.parent
    here = [p.name for p in folder.iterdir() if p.suffix in (".onnx", ".pt2")] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, here, n=1, cutoff=0.5)
    hint = f"did you mean `{folder / near[0]}`?" if near else f"give one of: {forms}"
    return UsageError(f"there is no model `{source}`", hint=hint)
