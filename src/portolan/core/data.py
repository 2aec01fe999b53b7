"""Data: samples to calibrate with and, never the same ones, to evaluate on.

Arrays are named as the model's inputs; their first axis holds the samples. Nothing is unpickled.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from portolan.core import datafiles
from portolan.core.signature import Dim, Signature, TensorSpec
from portolan.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

#: Inferences to time with, and the bytes of them beyond which there are fewer.
TIMED, _TIMED_BYTES = 16, 2**25
#: One in this many distinct samples is for calibration, and never more than so many.
_SHARE, _MOST_CALIBRATION = 4, 512


@dataclass(frozen=True, eq=False)
class Data:
    """Samples for a model.

    Attributes:
        inputs: an array per model input, first axis the samples.
        labels: what the answers should be, first axis the samples; None where nobody knows.
        sha256: hash of all of it.
        synthetic: made up from the signature; quality on it is agreement, never accuracy.
        notes: what a user should know about it, such as NaN in an input.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray | None
    sha256: str
    synthetic: bool = False
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """The number of samples."""
        return next((len(array) for array in self.inputs.values()), 0)

    @functools.cached_property
    def _digests(self) -> list[bytes]:
        """Of each sample, the hash of its bytes in all inputs by sorted name. Labels do not count."""
        names = sorted(self.inputs)
        found = []
        for row in range(self.rows):
            digest = hashlib.sha256()
            for name in names:
                digest.update(_bytes(self.inputs[name][row]))
            found.append(digest.digest())
        return found

    def split(self) -> tuple[list[int], list[int]]:
        """The rows for calibration (about a quarter, at most 512) and those for evaluation.

        A sample's own content decides its side: equal samples are always together, and neither order nor what else
        is in the data moves one, except where a side would be empty or calibration has enough.
        """
        groups: dict[bytes, list[int]] = {}
        for row, digest in enumerate(self._digests):
            groups.setdefault(digest, []).append(row)
        ordered = sorted(groups)
        wanted = [d for d in ordered if d[-1] % _SHARE == 0] or ordered[:1]
        chosen: list[bytes] = []
        count = 0
        for digest in wanted if len(ordered) > 1 else []:  # one distinct sample is for evaluation
            if len(chosen) < len(ordered) - 1 and count + len(groups[digest]) <= _MOST_CALIBRATION:
                chosen.append(digest)
                count += len(groups[digest])
        calibration = sorted(row for digest in chosen for row in groups[digest])
        taken = set(calibration)
        return calibration, [row for row in range(self.rows) if row not in taken]


def _bytes(value: np.ndarray) -> bytes:
    import numpy as np

    array = np.asarray(value)
    return "\0".join(map(str, array.ravel())).encode() if array.dtype.kind in "OU" else array.tobytes()


def _hash(inputs: Mapping[str, np.ndarray], labels: np.ndarray | None) -> str:
    import numpy as np

    digest = hashlib.sha256()
    for name, array in [*sorted(inputs.items()), *([] if labels is None else [("labels", labels)])]:
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def load_data(source: str | Path, signature: Signature) -> Data:
    """Reads the user's data and checks it against the model.

    Args:
        source: a `.npz` file, a folder of `.npz` or `.npy` files, or `file.py:function` yielding (inputs, label).
        signature: the model's.

    Raises:
        UsageError: nothing there, not such a file, pickled objects, or names, types, shapes or counts that do not fit.
    """
    arrays = datafiles.arrays(source, signature)
    labels = None if "labels" in {spec.name for spec in signature.inputs} else arrays.pop("labels", None)
    _check_names(arrays, signature, str(source))
    inputs = {spec.name: arrays[spec.name] for spec in signature.inputs}
    _check_counts(inputs, labels, str(source))
    for spec in signature.inputs:
        _check_array(inputs[spec.name], spec, signature.batch, str(source))
    _check_free(inputs, signature, str(source))
    return Data(inputs, labels, _hash(inputs, labels), notes=tuple(_nan_notes(inputs)))


def _check_names(arrays: Mapping[str, np.ndarray], signature: Signature, where: str) -> None:
    expected = [spec.name for spec in signature.inputs]
    missing = [f"`{name}`" for name in expected if name not in arrays]
    extra = [f"`{name}`" for name in arrays if name not in expected]
    if missing or extra:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(extra)}"] * bool(extra)
        listed = ", ".join(f"`{name}`" for name in expected)
        raise UsageError(
            f"the data {' and '.join(parts)}",
            hint=f"name the arrays as the model's inputs, {listed}, and the answers `labels`",
            where=where,
        )


def _check_counts(inputs: Mapping[str, np.ndarray], labels: np.ndarray | None, where: str) -> None:
    everything = dict(inputs) if labels is None else {**inputs, "labels": labels}
    for name, array in everything.items():
        if array.ndim == 0:
            raise UsageError(
                f"`{name}` is a single value, expected one per sample",
                hint="the first axis of each array holds the samples",
                where=where,
            )
    counts = {name: len(array) for name, array in everything.items()}
    if min(counts.values()) == 0:
        empty = next(name for name, count in counts.items() if count == 0)
        raise UsageError(
            f"`{empty}` holds no samples", hint="give at least one sample, better a few hundred", where=where
        )
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"`{name}` {count:,}" for name, count in counts.items())
        raise UsageError(
            f"the arrays hold different numbers of samples: {listed}",
            hint="the first axis of each array holds the samples, in the same order",
            where=where,
        )


def _per_sample(array: np.ndarray, spec: TensorSpec) -> bool:
    """Whether one sample is a whole input (the array has one axis more), not one row of a batch."""
    return array.ndim == len(spec.shape) + 1


def _check_array(array: np.ndarray, spec: TensorSpec, batch: int | str | None, where: str) -> None:
    kind = "string" if array.dtype.kind in "US" else str(array.dtype)
    if kind != spec.dtype:
        fix = f".astype('{spec.dtype}')" if spec.dtype != "string" else ".astype(str)"
        raise UsageError(
            f"input `{spec.name}` has type {kind}, expected {spec.dtype}",
            hint=f"convert it: `{spec.name}{fix}`",
            where=where,
        )
    got, want = array.shape[1:], spec.shape if _per_sample(array, spec) else spec.shape[1:]
    fits = len(got) == len(want) and (batch is not None or _per_sample(array, spec))
    if not fits or any(isinstance(w, int) and g != w for g, w in zip(got, want, strict=True)):
        expected = spec.shape[1:] if batch is not None else spec.shape
        raise UsageError(
            f"input `{spec.name}` has shape {_by(array.shape)}, expected {_by(('samples', *expected))}",
            hint="the first axis of each array holds the samples",
            where=where,
        )


def _by(shape: Sequence[Dim]) -> str:
    return "x".join(map(str, shape))


def _check_free(inputs: Mapping[str, np.ndarray], signature: Signature, where: str) -> None:
    """One name, one size: a free dimension shared by several inputs has the same size in each."""
    seen: dict[str, tuple[int, str]] = {}
    for spec in signature.inputs:
        array = inputs[spec.name]
        dims = spec.shape if _per_sample(array, spec) else spec.shape[1:]
        for dim, size in zip(dims, array.shape[1:], strict=True):
            if isinstance(dim, str) and seen.setdefault(dim, (size, spec.name))[0] != size:
                first, other = seen[dim]
                raise UsageError(
                    f"the dimension `{dim}` is {first} in `{other}` and {size} in `{spec.name}`",
                    hint=f"pad or cut the arrays to one size of `{dim}`",
                    where=where,
                )


def _nan_notes(inputs: Mapping[str, np.ndarray]) -> Iterator[str]:
    import numpy as np

    for name, array in inputs.items():
        if array.dtype.kind == "f":
            bad = int((~np.isfinite(array)).reshape(len(array), -1).any(axis=1).sum())
            if bad:
                yield f"input `{name}` holds NaN or infinity in {bad:,} of {len(array):,} samples"


def generate(signature: Signature, n: int, seed: int, shapes: Mapping[str, Sequence[Dim]] | None = None) -> Data:
    """Makes samples up from the signature: normal floats, small ids, masks of ones.

    Args:
        signature: the model's.
        n: how many samples.
        seed: the same seed gives the same data.
        shapes: sizes for free dimensions behind the batch axis, by input, as in `--shapes`.

    Raises:
        UsageError: a free dimension without a size, a shape that does not fit, or an input of strings.
    """
    import numpy as np

    from portolan.core import graph

    known = graph.sizes(signature, shapes or {})
    rng = np.random.default_rng(seed)
    batch = signature.batch
    inputs = {}
    for spec in signature.inputs:
        dims = spec.shape[1:] if batch is not None else spec.shape
        sizes = [known.get(dim, 0) if isinstance(dim, str) else dim for dim in dims]
        if 0 in sizes:
            free = dims[sizes.index(0)]
            example = _by([1 if i == 0 else 128 if isinstance(d, str) else d for i, d in enumerate(spec.shape)])
            raise UsageError(
                f"the dimension `{free}` of input `{spec.name}` has no size, so no data can be made up",
                hint=f"give `--shapes {spec.name}:{example}`, or real data with `--data`",
            )
        inputs[spec.name] = _made_up(spec, (n, *sizes), rng)
    return Data(inputs, None, _hash(inputs, None), synthetic=True)


def _made_up(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    import numpy as np

    if spec.dtype == "string":
        raise UsageError(
            f"input `{spec.name}` holds strings, which cannot be made up", hint="give real ones with `--data`"
        )
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError:
        raise UsageError(
            f"input `{spec.name}` has type {spec.dtype}, which NumPy lacks", hint="export the model with float inputs"
        ) from None
    name = spec.name.lower()
    if "mask" in name:
        return np.ones(shape, dtype)
    if dtype.kind in "fc":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if "type" in name or "segment" in name:  # token_type_ids: one sentence
        return np.zeros(shape, dtype)
    if "position" in name and len(shape) > 1:
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
    if dtype.itemsize == 1:  # images and quantized values use the whole range
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    return rng.integers(0, 100, shape, dtype)  # ids that any vocabulary has


def sample(data: Data, row: int, signature: Signature) -> dict[str, np.ndarray]:
    """One inference's inputs, beginning at sample `row`: a batch of one, or of the model's static size (wrapping)."""
    batch = signature.batch
    count = batch if isinstance(batch, int) else 1
    return _take(data, [(row + i) % data.rows for i in range(count)], signature)


def timed(data: Data, rows: Sequence[int], signature: Signature) -> list[dict[str, np.ndarray]]:
    """The inputs of the inferences to time with, in turn: what a model takes may depend on what it gets.

    Args:
        data: the samples.
        rows: which may be used, the first ones first.
        signature: the model's.
    """
    found: list[dict[str, np.ndarray]] = []
    size = 0
    for row in rows[:TIMED]:
        found.append(sample(data, row, signature))
        size += sum(array.nbytes for array in found[-1].values())
        if size > _TIMED_BYTES:
            break
    return found


def feeds(
    data: Data, rows: Sequence[int], signature: Signature, batch: int = 1
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """The inputs of the inferences that cover `rows` in order, each with how many of its samples count.

    Args:
        data: the samples.
        rows: which of them.
        signature: the model's. Its batch axis decides: free, `batch` samples at a time; static, that many at a time,
            the last batch filled up with the last row again; none, one at a time.
        batch: samples per inference where the model leaves it free.
    """
    axis = signature.batch
    whole = any(_per_sample(data.inputs[spec.name], spec) for spec in signature.inputs)
    size = 1 if whole or axis is None else axis if isinstance(axis, int) else max(1, batch)
    for start in range(0, len(rows), size):
        part = list(rows[start : start + size])
        filled = part + [part[-1]] * (size - len(part)) if isinstance(axis, int) else part
        yield _take(data, filled, signature), len(part)


def _take(data: Data, rows: Sequence[int], signature: Signature) -> dict[str, np.ndarray]:
    import numpy as np

    found = {}
    for spec in signature.inputs:
        array = data.inputs[spec.name]
        part = np.array(array[rows[0]] if _per_sample(array, spec) else array[list(rows)], order="C")
        # Runtimes take strings as Python objects.
        found[spec.name] = part.astype(object) if spec.dtype == "string" else part
    return found


def save_npz(data: Data, path: Path) -> Path:
    """Writes the data as a `.npz` that `load_data` reads, for workers; whole or not at all."""
    import numpy as np

    arrays = dict(data.inputs) if data.labels is None else {**data.inputs, "labels": data.labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path
