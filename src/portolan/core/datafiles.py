"""Where a user's arrays come from: a `.npz`, a folder of arrays, or a function. Never from a pickle."""

from __future__ import annotations

import difflib
import itertools
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.core import userfile
from portolan.core.signature import Signature
from portolan.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

#: A generator that never ends is read this far.
_MOST_SAMPLES = 50_000
#: How a `.npy` file begins.
_MAGIC = b"\x93NUMPY"
_FORMS = "give a `.npz`, a folder of `.npz` or `.npy` files, or `file.py:function`"


def arrays(source: str | Path, signature: Signature) -> dict[str, np.ndarray]:
    """The arrays that `source` holds, by name.

    Raises:
        UsageError: nothing there, another kind of file, a damaged one, or pickled objects.
    """
    if userfile.is_reference(source):
        return _from_function(source, signature)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        here = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, here, n=1, cutoff=0.6)
        raise UsageError(
            f"there is no data at `{path}`", hint=f"did you mean `{path.parent / near[0]}`?" if near else _FORMS
        )
    if path.suffix != ".npz":
        hint = f"put it into a folder, named after its input, and give the folder; or {_FORMS}"
        raise UsageError(f"`{path}` is not a `.npz` file", hint=hint if path.suffix == ".npy" else _FORMS)
    return _npz(path)


def _npz(path: Path) -> dict[str, np.ndarray]:
    import numpy as np

    if not zipfile.is_zipfile(path):
        raise UsageError(f"`{path}` is not a `.npz` file, or is damaged", hint="write it with `numpy.savez`")
    key = ""
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {}
            for key in archive.files:
                found[key] = archive[key]
                if not isinstance(found[key], np.ndarray):  # a member that is no array comes out as bytes
                    raise ValueError("not an array")
            return found
    except Exception as error:
        raise _unreadable(path, key, error) from error


def _npy(path: Path) -> np.ndarray:
    import numpy as np

    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:  # NumPy would take it for a pickle
                raise ValueError("it does not begin as one")
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError("not an array")
    except Exception as error:
        raise _unreadable(path, path.stem, error) from error
    return found


def _unreadable(path: Path, key: str, error: Exception) -> UsageError:
    """Why NumPy could not read an array: it answers with a dozen kinds of exception, MemoryError for a false size."""
    if "allow_pickle" in str(error):
        return UsageError(
            f"`{key}` in `{path}` holds Python objects, which would have to be unpickled",
            hint="save plain arrays: one type, one shape (`numpy.stack`), no dtype=object",
            where=str(path),
        )
    return UsageError(
        f"the array `{key}` in `{path}` cannot be read: {str(error).splitlines()[0] if str(error) else 'too large'}",
        hint="the file is damaged: write it again with `numpy.savez` or `numpy.save`",
        where=str(path),
    )


def _from_folder(folder: Path) -> dict[str, np.ndarray]:
    archives, singles = sorted(folder.glob("*.npz")), sorted(folder.glob("*.npy"))
    if archives and singles:
        raise UsageError(f"`{folder}` holds both `.npz` and `.npy` files", hint="keep one kind")
    if not archives and not singles:
        raise UsageError(f"`{folder}` holds no `.npz` or `.npy` files", hint=_FORMS)
    if singles:
        return {path.stem: _npy(path) for path in singles}
    return _joined([(path, _npz(path)) for path in archives])


def _joined(parts: list[tuple[Path, dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    import numpy as np

    first, names = parts[0][0], set(parts[0][1])
    for path, part in parts:
        if set(part) != names:
            differing = ", ".join(f"`{name}`" for name in sorted(set(part) ^ names))
            raise UsageError(
                f"`{path.name}` and `{first.name}` do not hold the same arrays: {differing}",
                hint="every file of the folder holds all inputs, and `labels` or not",
                where=str(path.parent),
            )
    joined = {}
    for name, model in parts[0][1].items():
        for path, part in parts:
            if part[name].dtype != model.dtype or part[name].shape[1:] != model.shape[1:] or not part[name].ndim:
                raise UsageError(
                    f"`{name}` in `{path.name}` is {part[name].dtype} {part[name].shape}, "
                    f"in `{first.name}` {model.dtype} {model.shape}",
                    hint="only the first axis, the samples, may differ between the files of a folder",
                    where=str(path.parent),
                )
        joined[name] = np.concatenate([part[name] for _, part in parts])
    return joined


def _from_function(source: str | Path, signature: Signature) -> dict[str, np.ndarray]:
    import numpy as np

    function = userfile.function(source)
    rows: dict[str, list[np.ndarray]] = {spec.name: [] for spec in signature.inputs}
    labels: list[np.ndarray] = []
    count = 0
    with userfile.importing_from(userfile.split(source)[0].resolve().parent), userfile.blamed_on(source):
        yielded = function()
        if not isinstance(yielded, Iterable):
            raise UsageError(f"`{source}` gives {type(yielded).__name__}", hint="yield (inputs, label) pairs")
        for item in itertools.islice(yielded, _MOST_SAMPLES):
            inputs, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
            size = _add(rows, _named(inputs, signature, source), signature)
            if label is not None:
                array = np.asarray(label)
                labels.append(array if size is not None and array.shape[:1] == (size,) else array[np.newaxis])
            count += 1
            if labels and len(labels) != count:
                raise UsageError(f"`{source}` yields a label with some samples only", hint="label all or none")
    if not count:
        raise UsageError(f"`{source}` yields no samples", hint="yield (inputs, label) pairs")
    found = {name: _stacked(name, parts, source) for name, parts in rows.items()}
    return {**found, "labels": _stacked("labels", labels, source)} if labels else found


def _stacked(name: str, parts: list[np.ndarray], source: str | Path) -> np.ndarray:
    import numpy as np

    shapes = sorted({part.shape[1:] for part in parts})
    if len(shapes) > 1 or any(part.dtype.kind == "O" for part in parts):
        raise UsageError(
            f"the samples of `{name}` from `{source}` do not stack: shapes {', '.join(map(str, shapes[:3]))}",
            hint="pad or cut every sample to one shape, and yield plain numbers",
        )
    return np.concatenate(parts)


def _named(inputs: Any, signature: Signature, source: str | Path) -> dict[str, Any]:
    names = [spec.name for spec in signature.inputs]
    if isinstance(inputs, Mapping):
        if set(inputs) != set(names):
            wrong = ", ".join(f"`{n}`" for n in sorted(set(map(str, inputs)) ^ set(names)))
            listed = ", ".join(f"`{n}`" for n in names)
            raise UsageError(f"a sample of `{source}` has other inputs than the model: {wrong}", hint=f"yield {listed}")
        return dict(inputs)
    values = inputs if isinstance(inputs, (tuple, list)) and len(names) > 1 else (inputs,)
    if len(values) != len(names):
        listed = ", ".join(f"`{n}`" for n in names)
        raise UsageError(
            f"a sample of `{source}` has {len(values)} inputs, the model has {len(names)}", hint=f"yield {listed}"
        )
    return dict(zip(names, values, strict=True))


def _add(rows: dict[str, list[np.ndarray]], given: Mapping[str, Any], signature: Signature) -> int | None:
    """Appends one yielded item: one sample, or if it has the model's own rank a batch, whose size is returned."""
    import numpy as np

    size = None
    for spec in signature.inputs:
        array = np.asarray(given[spec.name])
        if array.dtype.kind in "fiu" and not hasattr(given[spec.name], "dtype"):
            array = array.astype(spec.dtype)  # plain Python numbers have no type of their own
        batched = signature.batch is not None and array.ndim == len(spec.shape)
        rows[spec.name].append(array if batched else array[np.newaxis])
        size = len(array) if batched else None
    return size
