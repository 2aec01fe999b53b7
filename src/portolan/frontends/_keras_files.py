"""Loading SavedModel folders and `.keras` files, after a look at what loading them would do."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from portolan.errors import ModelError, UsageError
from portolan.frontends._verify import first_line

#: Operations that reach outside the graph. Restoring and saving variables are every SavedModel's own; they run on its
#: own folder, and only the first when it is loaded.
_OUTSIDE = ("ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc", "DebugIdentity",
            "DebugIdentityV2", "DebugIdentityV3", "WriteSummary", "CreateSummaryFileWriter", "TextLineReader",
            "TextLineReaderV2", "WholeFileReader", "WholeFileReaderV2", "FixedLengthRecordReader", "TFRecordReader",
            "RemoteCall")  # fmt: skip
_OWN_CODE = "build the model in code of your own: `file.py:factory`"


#: Per input, its type and its sizes, None where one is free.
Axes = dict[str, tuple[str, Sequence[int | None]]]


def saved_model(folder: Path, wanted: str) -> tuple[Callable[..., Any], Axes, Any]:
    """A SavedModel's signature as a function of named tensors, its inputs' types and sizes, and what keeps it alive.

    Raises:
        ModelError: it cannot be read, reaches outside its graph, or has no signature.
    """
    _check_graph(folder)
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(folder))
        signatures = dict(loaded.signatures)
    except Exception as error:  # whatever a damaged folder makes of the loader
        raise ModelError(
            f"`{folder}` cannot be loaded by TensorFlow: {first_line(error)}",
            hint="write it again with `tf.saved_model.save` or `model.export(folder)`",
        ) from error
    if not signatures:
        raise ModelError(
            f"`{folder}` has no signature, so nobody knows what it takes",
            hint="save it with one: `tf.saved_model.save(module, folder, signatures=module.call)`",
        )
    chosen = wanted if wanted in signatures else sorted(signatures)[0]
    function = signatures[chosen]
    specs = function.structured_input_signature[1]
    axes: Axes = {name: (spec.dtype.name, tuple(spec.shape)) for name, spec in sorted(specs.items())}
    return lambda **tensors: function(**tensors), axes, loaded


def _check_graph(folder: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / "saved_model.pb"
    proto = saved_model_pb2.SavedModel()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError, whose module has no types
        raise ModelError(
            f"`{path}` is not a SavedModel, or is truncated", hint="write it again with `tf.saved_model.save`"
        ) from error
    if not proto.meta_graphs:
        raise ModelError(f"`{path}` holds no graph", hint="write it again with `tf.saved_model.save`")
    for graph in proto.meta_graphs:
        nodes = [*graph.graph_def.node, *(n for f in graph.graph_def.library.function for n in f.node_def)]
        reaching = sorted({node.op for node in nodes} & set(_OUTSIDE))
        if reaching:
            raise ModelError(
                f"`{folder}` is refused, since its graph reaches outside itself: `{reaching[0]}`",
                hint="export the model without that operation",
            )


def keras(path: Path) -> Any:
    """A Keras model from a `.keras` file.

    Raises:
        UsageError: there is no such file.
        ModelError: it cannot be read, or needs code that is not Keras's own.
    """
    if not path.is_file():
        raise UsageError(f"there is no file `{path}`", hint="give a file that `model.save('model.keras')` wrote")
    for key, name in _named(_configuration(path)):
        if name == "Lambda" or (key == "module" and name.partition(".")[0] != "keras"):
            raise ModelError(
                f"`{path}` is refused, since loading it would run code that is not Keras's: `{name}`", hint=_OWN_CODE
            )
    import keras as library

    try:
        return library.saving.load_model(str(path), compile=False, safe_mode=True)
    except Exception as error:  # each layer's own errors
        raise ModelError(
            f"`{path}` cannot be loaded by Keras: {first_line(error)}", hint="write it again with `model.save`"
        ) from error


def _configuration(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, RecursionError) as error:
        raise ModelError(
            f"`{path}` is not a `.keras` file, or is damaged: {first_line(error)}",
            hint="write it again with `model.save`",
        ) from error


def _named(config: Any) -> Iterator[tuple[str, str]]:
    """Every module and class that a configuration names, at any depth."""
    waiting = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            yield from ((key, str(part[key])) for key in ("module", "class_name") if isinstance(part.get(key), str))
            waiting += list(part.values())
        elif isinstance(part, list):
            waiting += part
