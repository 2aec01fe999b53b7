"""ONNX's own backend tests ("node tests") through a backend, each compiled and run in a worker process.

A case ends in one of three ways: `pass`; `fail`, a wrong answer, a crash or no answer; `unsupported`, a refusal with a
reason. `python tools/conformance.py` runs them all; what it found is in the package (`portolan.core.conformance`) and
in `tests/conformance`, where a case that passed and no longer does fails a test.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from portolan import frontends
from portolan.core import ragged, registry
from portolan.core.silence import runtime
from portolan.core.target import Target
from portolan.errors import PortolanError, WorkerError
from portolan.targets.local import local
from portolan.worker.environments import python_for
from portolan.worker.session import Worker

if TYPE_CHECKING:
    import onnx

Status = Literal["pass", "fail", "unsupported"]
#: Beside the defaults: one thread, since the cases are tiny, and for torch no C++ compiler, which takes seconds each.
OPTIONS: Mapping[str, Mapping[str, Any]] = {"torch": {"compiler": "eager"}}
#: Seconds for one answer.
_PATIENCE = 60.0
#: A worker is replaced after so many cases: runtimes keep what they compiled.
_SERVES = 150


@dataclass(frozen=True)
class Case:
    """One of ONNX's node tests.

    Attributes:
        name: ONNX's.
        model: the graph.
        inputs: in the graph's order.
        outputs: the right ones, likewise.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """

    name: str
    model: onnx.ModelProto
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    rtol: float
    atol: float

    @property
    def operators(self) -> list[str]:
        """What it tests: its operator, or those that an expanded function is made of."""
        return sorted({node.op_type for node in self.model.graph.node} - {"Constant"})

    def check(self, outputs: Sequence[Any]) -> None:
        """Compares as ONNX does.

        Raises:
            AssertionError: they differ.
        """
        from onnx.backend.test.runner import Runner

        assert len(outputs) == len(self.outputs), f"{len(outputs)} outputs instead of {len(self.outputs)}"
        for mine, right in zip(outputs, self.outputs, strict=True):
            if isinstance(right, list) and isinstance(mine, list):
                assert len(mine) == len(right), f"{len(mine)} elements instead of {len(right)}"
        Runner.assert_similar_outputs(self.outputs, outputs, self.rtol, self.atol)


@dataclass(frozen=True)
class Outcome:
    """How a case ended, and why it did not pass."""

    status: Status
    reason: str = ""


def cases() -> list[Case]:
    """ONNX's node tests, sorted by name; making them takes ten seconds."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.random.seed(0)
        found = collect_testcases(None)
    made = [Case(c.name, c.model, c.data_sets[0][0], c.data_sets[0][1], c.rtol, c.atol) for c in found]
    return sorted(made, key=lambda case: case.name)


def by_onnx_runtime(case: Case) -> Outcome:
    """What ONNX Runtime makes of a case by itself, without Portolan between."""
    ort = runtime("onnxruntime")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 4
    try:
        session = ort.InferenceSession(case.model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        feeds = {value.name: array for value, array in zip(session.get_inputs(), case.inputs, strict=False)}
        case.check(session.run(None, feeds))
    except AssertionError as error:
        return Outcome("fail", _line(error))
    except Exception as error:  # whatever the runtime throws
        return Outcome("unsupported", _line(error))
    return Outcome("pass")


class Conformance:
    """Runs cases through one backend. A context manager: leaving it ends the worker.

    Args:
        backend: its name.
    """

    def __init__(self, backend: str) -> None:
        chosen = registry.backend(backend)
        self._backend = backend
        known = chosen.schema.parameters
        self.options = {"threads": 1} if "threads" in known else {}
        self.options |= {name: value for name, value in OPTIONS.get(backend, {}).items() if name in known}
        self._checked = chosen.schema.check(self.options)
        self._target: Target = local.detect()
        self._worker: Worker | None = None
        self._served = 0

    def __enter__(self) -> Conformance:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, case: Case) -> Outcome:
        """Compiles and runs one case, in a worker that may die of it."""
        if self._served >= _SERVES:
            self._end()
        self._served += 1
        with tempfile.TemporaryDirectory() as folder, _caught() as found:
            outputs = self._outputs(case, Path(folder))
            case.check([_read(value.name, outputs) for value in case.model.graph.output])
        if isinstance(found.error, WorkerError):
            self._end()
            if not _refused(found.error):
                return Outcome("fail", _line(found.error))
        if isinstance(found.error, AssertionError):
            return Outcome("fail", _line(found.error))
        return Outcome("pass") if found.error is None else Outcome("unsupported", _line(found.error))

    def _outputs(self, case: Case, folder: Path) -> Mapping[str, np.ndarray]:
        path = folder / "model.onnx"
        path.write_bytes(case.model.SerializeToString())
        model = frontends.load(path, out=folder, name=case.name)
        types = {spec.name: spec.dtype for spec in model.signature.inputs}
        given = zip((value.name for value in case.model.graph.input), case.inputs, strict=False)
        feeds = {key: array for name, value in given for key, array in _fed(name, value, types).items()}
        if self._worker is None:
            self._worker = Worker(python=python_for(self._backend))
        (folder / "out").mkdir()
        self._worker.ask(
            "compile", timeout=_PATIENCE, backend=self._backend, model=model.to_json(),
            target=self._target.to_json(), options=self._checked, out=str(folder / "out"),
        )  # fmt: skip
        return self._worker.ask("run", timeout=_PATIENCE, tensors=feeds).tensors

    def _end(self) -> None:
        self._served = 0
        if self._worker is not None:
            self._worker.close()
        self._worker = None


def through(
    backend: str, chosen: Sequence[Case], told: Callable[[str, Outcome], None] | None = None
) -> dict[str, Outcome]:
    """Runs cases through a backend.

    Args:
        backend: its name.
        chosen: the cases.
        told: called with each one's name and outcome.
    """
    found = {}
    with Conformance(backend) as conformance:
        for case in chosen:
            found[case.name] = conformance.run(case)
            if told is not None:
                told(case.name, found[case.name])
    return found


@dataclass
class _Caught:
    error: BaseException | None = None


@contextlib.contextmanager
def _caught() -> Iterator[_Caught]:
    found = _Caught()
    try:
        yield found
    except (PortolanError, AssertionError) as error:
        found.error = error


def _refused(error: WorkerError) -> bool:
    """Whether a worker's error is a refusal: of an element type that does not cross to it."""
    return "cannot be sent to a worker" in error.message


def _fed(name: str, value: Any, types: Mapping[str, str]) -> dict[str, np.ndarray]:
    """What an input of a case is to the model: a sequence is two arrays there, an optional what it holds."""
    if isinstance(value, list):
        values, shapes = f"{name}.values", f"{name}.shapes"
        return dict(zip((values, shapes), ragged.pack(value, types[values]), strict=True))
    if value is None:
        raise WorkerError("an optional that holds nothing cannot be sent to a worker")
    return {name if name in types else f"{name}.value": np.asarray(value)}


def _read(name: str, outputs: Mapping[str, np.ndarray]) -> Any:
    """An output of a case, of what the model answered."""
    if f"{name}.values" in outputs:
        return ragged.unpack(outputs[f"{name}.values"], outputs[f"{name}.shapes"])
    return outputs[name] if name in outputs else outputs[f"{name}.value"]


def _line(error: BaseException) -> str:
    """The first lines of a message, without places that differ from run to run."""
    text = error.message if isinstance(error, PortolanError) else str(error)
    text = re.sub(r"`?/\S*/model\.onnx`?", "the model", " ".join(text.split()))
    text = re.sub(r"(?<![\w.])/(?:[^\s/:'\"`]+/)+", "", text)  # folders: a runtime may name its own sources, or ours
    return text[:200] or type(error).__name__
