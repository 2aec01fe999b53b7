"""The process in which compiled kernels run before they are trusted: whatever they do costs one trial.

probe {language} -> Here                        what can be done with a language here
compile {language, places}                      machine code, by a language that makes it in this process
load  {name, language, path, kernel, symbols}   a program under a name
run   {name, sizes, results}, tensors           one call; the results' bytes
hold  {sizes, results}, tensors                 arguments to time with
block {name, seconds, threads} -> {ms: [...]}   times calls on the arguments held
model {name, path, libraries}                   a model in ONNX Runtime under a name
answer {name, dtypes}, tensors                  one run of it; the results
contest {names, dtypes, seconds, rounds}, tensors -> {ms: {name: [...]}}   times models side by side
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from portolan.core.native import Sharing
from portolan.errors import WorkerError
from portolan.kernels.embed.session import Session, answered, contest
from portolan.kernels.language import Loaded, language, load
from portolan.kernels.library import Library
from portolan.kernels.sharing import sharing
from portolan.worker.agent import serve
from portolan.worker.frames import Frame

Array = np.ndarray[Any, Any]
Answer = tuple[dict[str, Any], Mapping[str, Array]]
_MOST_CALLS = 100_000
_GUARD = 64


def main(argv: Sequence[str]) -> None:
    """Serves until the controller closes stdin."""
    serve(argv, Trials)


@dataclass(frozen=True)
class _Held:
    arrays: list[Array]
    sizes: dict[str, int]


class Trials:
    """Libraries by name, and the arguments that are held to time them with."""

    def __init__(self) -> None:
        self._libraries: dict[str, Loaded] = {}
        self._held: _Held | None = None
        self._pools: dict[int, Sharing] = {}
        self._models: dict[str, Session] = {}

    def answer(self, request: Frame) -> Answer:
        """Does what `request` asks for."""
        fields = dict(request.fields)
        match fields["op"]:
            case "load":
                self._libraries[fields["name"]] = _loaded(fields)
                return {}, {}
            case "probe":
                return language(fields["language"]).probe().to_json(), {}
            case "compile":
                places = {key: Path(place) for key, place in fields["places"].items()}
                language(fields["language"]).machine_code(**places)
                return {}, {}
            case "run":
                return self._run(fields, request.tensors)
            case "hold":
                self._held = _Held([*_given(request.tensors), *map(_result, fields["results"])], fields["sizes"])
                return {}, {}
            case "block":
                return {"ms": self._block(fields["name"], fields["seconds"], fields["threads"])}, {}
            case "model":
                libraries = [Path(p) for p in fields["libraries"]]
                self._models[fields["name"]] = Session(Path(fields["path"]), libraries, fields.get("threads", 1))
                return {}, {}
            case "answer":
                results = answered(self._models, fields, request.tensors)
                return {}, {f"r{n}": np.asarray(r) for n, r in enumerate(results)}
            case "contest":
                return {"ms": contest(self._models, fields, request.tensors)}, {}
            case other:
                raise WorkerError(f"unknown operation `{other}`")

    def _run(self, fields: Mapping[str, Any], tensors: Mapping[str, Array]) -> Answer:
        guarded = [_guarded(spec) for spec in fields["results"]]
        results = [inner for _, inner in guarded]
        self._libraries[fields["name"]]([*_given(tensors), *results], fields["sizes"])
        for whole, _ in guarded:
            if (whole[:_GUARD] != 0xA5).any() or (whole[-_GUARD:] != 0xA5).any():
                raise WorkerError("it wrote outside of its result")
        return {}, {f"r{n}": np.asarray(r) for n, r in enumerate(results)}

    def _block(self, name: str, seconds: float, count: int) -> list[float]:
        held, library = self._held, self._libraries[name]
        if held is None:
            raise WorkerError("no arguments are held")
        if count not in self._pools:
            self._pools[count] = sharing(count)
        call = library.held(held.arrays, held.sizes, self._pools[count])
        end = time.perf_counter() + seconds
        readings: list[float] = []
        while not readings or (time.perf_counter() < end and len(readings) < _MOST_CALLS):
            begun = time.perf_counter()
            call()
            readings.append((time.perf_counter() - begun) * 1000)
        return readings


def _loaded(fields: Mapping[str, Any]) -> Loaded:
    path = Path(fields["path"])
    if fields["language"] == "c":
        return Library(path, fields["kernel"], fields["symbols"])
    return load(fields["language"], path)


def _given(tensors: Mapping[str, Array]) -> list[Array]:
    return [tensors[f"a{n}"] for n in range(len(tensors))]


def _result(spec: Sequence[Any]) -> Array:
    shape, dtype = spec
    return np.zeros(shape, dtype)


def _guarded(spec: Sequence[Any]) -> tuple[Array, Array]:
    """A result with known bytes on both sides, all of it set to them."""
    shape, dtype = spec
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    whole = np.full(size + 2 * _GUARD, 0xA5, np.uint8)
    return whole, whole[_GUARD : _GUARD + size].view(dtype).reshape(shape)
