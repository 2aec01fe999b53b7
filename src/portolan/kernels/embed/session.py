"""Models in ONNX Runtime, in the process of the kernels' agent: with a kernel's library, or on the function's body."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from portolan.core.silence import runtime

Array = np.ndarray[Any, Any]
_BF16 = 16


class Session:
    """One model, run on arrays as kernels hold them: bf16 as its bits.

    Args:
        path: the model.
        libraries: of custom operators; without one, functions run on their bodies.
    """

    def __init__(self, path: Path, libraries: Sequence[Path] = (), threads: int = 1) -> None:
        self._ort = runtime("onnxruntime")
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        for library in libraries:
            options.register_custom_ops_library(str(library))
        self._session = self._ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, arrays: Sequence[Array], dtypes: Sequence[str]) -> list[Array]:
        """The results; `dtypes` are the kernel's names of the arguments' types."""
        return [self._array(v) for v in self.ready(arrays, dtypes)()]

    def ready(self, arrays: Sequence[Array], dtypes: Sequence[str]) -> Callable[[], Any]:
        """A run on these arguments, which are converted once."""
        names = [i.name for i in self._session.get_inputs()]
        given = {n: self._value(a, t) for n, a, t in zip(names, arrays, dtypes, strict=True)}
        return lambda: self._session.run_with_ort_values(None, given)

    def _value(self, array: Array, dtype: str) -> Any:
        make: Any = self._ort.OrtValue
        if dtype == "bf16":
            return make.ortvalue_from_numpy_with_onnx_type(array, _BF16)
        return make.ortvalue_from_numpy(np.asarray(array))

    def _array(self, value: Any) -> Array:
        if value.element_type() != _BF16:
            return np.asarray(value.numpy())
        shape = value.shape()
        held = (ctypes.c_uint16 * int(np.prod(shape))).from_address(value.data_ptr())
        return np.ctypeslib.as_array(held).reshape(shape).copy()


def answered(sessions: Mapping[str, Session], fields: Mapping[str, Any], tensors: Mapping[str, Array]) -> list[Array]:
    """What one of the loaded models answers."""
    return sessions[fields["name"]]([tensors[f"a{n}"] for n in range(len(tensors))], fields["dtypes"])


def contest(
    sessions: Mapping[str, Session], fields: Mapping[str, Any], tensors: Mapping[str, Array]
) -> dict[str, list[float]]:
    """Milliseconds of a run of each of several models on the same arguments: the median of each round's block."""
    arrays = [tensors[f"a{n}"] for n in range(len(tensors))]
    calls = {name: sessions[name].ready(arrays, fields["dtypes"]) for name in fields["names"]}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(fields["rounds"]):
        for name, call in calls.items():
            readings: list[float] = []
            call()
            end = time.perf_counter() + fields["seconds"]
            while not readings or time.perf_counter() < end:
                begun = time.perf_counter()
                call()
                readings.append((time.perf_counter() - begun) * 1000)
            found[name].append(float(np.median(readings)))
    return found
