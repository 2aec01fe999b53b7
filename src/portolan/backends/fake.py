"""A scripted runtime: the whole optimizer can be tested with it, without hardware and without waiting.

The environment variable PORTOLAN_FAKE names a TOML or JSON file; without it this backend is not ready:

    [variants.default]                    # required: the option `variant` is `default` unless it is set
    latency_ms = 5.0
    [variants.fast]
    latency_ms = 2.0
    row_ms = 0.5                          # for each row of a batch after the first
    jitter = 0.02                         # deviation of the latency's logarithm
    starts = [1.0, 1.3]                   # a factor for each process start in turn: a runtime with two speeds
    error = 0.001                         # noise, as a share of the outputs' deviation: not exact
    [variants.broken]
    behaviour = "segfault"                # or abort exit hang leak print raise wrong nan slow_load fallback
    when = "time"                         # or compile load run; `time` is a call with inputs seen before
    [speed]                               # features of passes that it exploits, with their factor on the latency
    "int8:dynamic" = 0.5

The keys of a variant are those of portolan.backends._script.Variant. Outputs come from the reference evaluator, so
that verifying them is real; latencies are drawn from a generator seeded by variant and start, so that they repeat.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns, sleep
from typing import TYPE_CHECKING, Annotated, Any

from portolan.backends._artefact import Artefact, demand
from portolan.backends._script import VARIABLE, Script, Variant, script
from portolan.backends.reference import Evaluator
from portolan.core.backend import Backend, Executable, Support, Tensors
from portolan.core.model import Model
from portolan.core.schema import Knob
from portolan.core.target import Target
from portolan.errors import NoBackend

if TYPE_CHECKING:
    import numpy as np

_GARBAGE = "\x00{not a frame}\nWARNING: a runtime that prints to stdout\n"
_REMEMBERED = 256
_SPIN_NS = 300_000
_NEVER = threading.Event()


class Play(Executable):
    """One variant, loaded."""

    def __init__(self, artefact: Artefact, variant: Variant, name: str, start: int, factor: float) -> None:
        import numpy as np

        self._evaluator = Evaluator(artefact)
        self._artefact, self._variant = artefact, variant
        self._random = np.random.default_rng([zlib.crc32(name.encode()), start])
        starts = variant.starts or (1.0,)
        self._factor = starts[start % len(starts)] * factor
        self._seen: dict[bytes, dict[str, np.ndarray]] = {}
        self._lock = threading.Lock()
        demand("fake", {"device": "cpu"}, self.facts())

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Answers as the reference does (remembered, so that it takes no time), no sooner than the script says."""
        began = perf_counter_ns()
        key = _digest(inputs)
        known = self._seen.get(key)
        stage = "run" if known is None else "time"
        misbehave(self._variant, stage)
        if known is None:
            known = self._evaluator.run(inputs)
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            self._seen[key] = known
        outputs = {name: self._spoilt(value, stage) for name, value in known.items()}
        with self._lock:
            factor = float(self._random.lognormal(0.0, self._variant.jitter))
        milliseconds = self._variant.latency_ms + self._variant.row_ms * (_rows(inputs) - 1)
        _until(began + int(milliseconds * self._factor * factor * 1e6))
        return outputs

    def _spoilt(self, value: np.ndarray, stage: str) -> np.ndarray:
        acts = self._variant.behaviour if self._variant.when in (stage, "run") else "ok"
        if acts == "wrong":
            return _like(value, 1 - value if value.dtype.kind in "fiu" else value[::-1])
        if value.dtype.kind != "f":
            return value.copy()
        if acts == "nan":
            return _like(value, value * float("nan"))
        return _like(value, value + self._variant.error * _noise(value)) if self._variant.error else value.copy()

    def save(self, folder: Path) -> None:
        """Writes the graph and the scripted number of bytes."""
        self._artefact.save(folder)
        (folder / "padding").write_bytes(bytes(self._variant.size))

    def facts(self) -> dict[str, Any]:
        """As a runtime would answer that did, or did not, do as it was told."""
        device = "elsewhere" if self._variant.behaviour == "fallback" else "cpu"
        return {"device": device, "precision": "f32", "latency_ms": self._variant.latency_ms * self._factor}


def _rows(inputs: Tensors) -> int:
    return max((len(array) for array in inputs.values() if array.ndim), default=1)


def _digest(inputs: Tensors) -> bytes:
    parts = ((name, str(a.dtype), str(a.shape), a.tobytes()) for name, a in sorted(inputs.items()))
    return hashlib.blake2b(repr(tuple(parts)).encode()).digest()


def _like(value: np.ndarray, other: np.ndarray) -> np.ndarray:
    return other.astype(value.dtype, copy=True)


def _noise(value: np.ndarray) -> np.ndarray:
    """Normal noise of the deviation of `value`; the same for the same shape, as a fixed loss of precision is."""
    import numpy as np

    noise: np.ndarray = np.random.default_rng(value.size).standard_normal(value.shape) * value.std()
    return noise


def misbehave(variant: Variant, stage: str) -> None:
    """Does what the script says for `stage`, if anything."""
    if variant.when not in (stage, "run" if stage == "time" else stage):
        return
    if variant.behaviour == "segfault":
        ctypes.string_at(0)
    elif variant.behaviour == "abort":
        os.abort()
    elif variant.behaviour == "exit":
        os._exit(3)
    elif variant.behaviour == "hang":
        _NEVER.wait()
    elif variant.behaviour == "slow_load":
        sleep(variant.seconds)
    elif variant.behaviour == "raise":
        raise RuntimeError("the script says: fail")
    elif variant.behaviour == "print":
        print(_GARBAGE, flush=True)
        os.write(1, _GARBAGE.encode())  # as native code does, past Python's sys.stdout
        sys.stderr.write(_GARBAGE)
    elif variant.behaviour == "leak":
        _leak(variant.limit_mb)


def _leak(limit_mb: int) -> None:
    """Takes memory, page by page so that it is resident, until somebody ends this process."""
    held = []
    for _ in range(limit_mb // 16):
        held.append(bytearray(b"\xff") * (16 << 20))
    raise MemoryError(f"leaked {16 * len(held)} MiB and nobody stopped it")


def _until(deadline_ns: int) -> None:
    """Waits precisely: asleep for most of it, so that callers overlap, then spinning."""
    rest = deadline_ns - perf_counter_ns() - _SPIN_NS
    if rest > 0:
        sleep(rest / 1e9)
    while perf_counter_ns() < deadline_ns:
        pass


def variants(target: Target) -> tuple[str, ...]:
    """The names in the script."""
    del target
    scripted = script()
    return tuple(scripted.variants) if scripted else ()


class Fake(Backend):
    """Does what a script says."""

    name = "fake"
    searched = False
    distributions = ("onnx",)
    module = "onnx"
    fix = f"{VARIABLE}=script.toml portolan ..."

    def probe(self, target: Target) -> Support:
        """Ready when there is a script."""
        support = super().probe(target)
        if support.ready and script() is None:
            return Support(
                False, support.version, f"`{VARIABLE}` names no script (this backend is for tests)", self.fix
            )
        return support

    def refuse(self, model: Model, target: Target) -> str | None:
        """Exploits the features whose speed is in the script."""
        scripted = script()
        known = scripted.speed if scripted else {}
        return super().refuse(replace(model, features=tuple(f for f in model.features if f not in known)), target)

    def exact(self, options: Any) -> bool:
        """Whether the variant adds no noise of its own."""
        return _scripted().variant(options.get("variant", "default")).error == 0

    def compile(
        self,
        model: Model,
        target: Target,
        *,
        variant: Annotated[str, Knob(values=variants, help="Which of the script's variants to play.")] = "default",
    ) -> Play:
        """Plays `variant` as the first start."""
        del target
        scripted = _scripted()
        chosen = scripted.variant(variant)
        misbehave(chosen, "compile")
        sleep(0 if chosen.behaviour == "slow_load" else chosen.seconds)
        return _play(scripted, Artefact.of(model), variant, 0)

    def load(self, folder: Path, *, variant: str = "default") -> Play:
        """Plays `variant`; where the script tells starts apart, they are counted in `folder`."""
        scripted = _scripted()
        chosen = scripted.variant(variant)
        misbehave(chosen, "load")
        start = _count(folder) if chosen.starts else 0
        return _play(scripted, Artefact.open(folder), variant, start)


def _scripted() -> Script:
    found = script()
    if found is None:
        raise NoBackend(f"`{VARIABLE}` names no script for the backend `fake`", hint=f"set {VARIABLE} to its path")
    return found


def _play(scripted: Script, artefact: Artefact, name: str, start: int) -> Play:
    factor = 1.0
    for feature in artefact.features:
        factor *= scripted.speed.get(feature, 1.0)
    return Play(artefact, scripted.variant(name), name, start, factor)


def _count(folder: Path) -> int:
    """How often this was called for `folder` before: one byte is appended each time, whole even between processes."""
    try:
        with (folder / "starts").open("ab") as file:
            file.write(b".")
            file.flush()
            return file.tell() - 1
    except OSError:  # a read-only folder: every start is the first
        return 0


fake = Fake()
