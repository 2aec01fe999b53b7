"""PassContract: what every pass must do, as a class of tests that a plug-in subclasses.

    class TestMine(PassContract):
        pass_ = mine

applies the pass, with each entry of `options`, to small ONNX models made here, and looks at the files that come out.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from portolan.core.data import generate
from portolan.core.files import sha256
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context, Pass
from portolan.core.silence import runtime
from portolan.core.target import Target
from portolan.errors import UnknownName, UsageError
from portolan.testing.models import Case, cases, this_machine

HEAVY = ("numpy", "onnx", "onnxruntime", "onnxslim", "openvino", "torch", "scipy")
SAMPLES = 16

_AGAIN = """
import importlib, json, sys
module, attribute, jobs, target, heavy = json.loads(sys.argv[1])
pass_ = getattr(importlib.import_module(module), attribute)
imported = [name for name in heavy if name in sys.modules]
from pathlib import Path
import numpy as np
from portolan.core.model import Model
from portolan.core.passes import Context
from portolan.core.target import Target
for model, options, data, out, original in jobs:
    Path(out).mkdir()
    teacher = None if original is None else Model.from_json(original)
    context = Context(Path(out), Target.from_json(target), dict(np.load(data)), original=teacher)
    pass_(Model.from_json(model), context, **options)
print(json.dumps(imported))
"""


@dataclass(frozen=True)
class Applied:
    """One application: what went in, the files beside it before, and what came out."""

    case: Case
    options: Mapping[str, Any]
    context: Context
    before: dict[str, str]
    result: Model

    def __str__(self) -> str:
        return f"{self.case.name} {dict(self.options)}"


def int8_dynamic(operators: Mapping[str, int], kinds: Mapping[str, int]) -> bool:
    """Activations are quantized as they come and multiplied with stored 8-bit weights."""
    products = {"MatMulInteger", "com.microsoft.DynamicQuantizeMatMul", "com.microsoft.MatMulIntegerToFloat"}
    return bool(products & operators.keys()) and kinds.get("int8", 0) > 0


def int8_static(operators: Mapping[str, int], kinds: Mapping[str, int]) -> bool:
    """Activations pass QuantizeLinear and DequantizeLinear, and weights are stored in 8 bits."""
    return {"QuantizeLinear", "DequantizeLinear"} <= operators.keys() and kinds.get("int8", 0) > 0


def stored_in(bits: int) -> Any:
    """Weights lie in the file in so many bits: as ONNX's own type, or several to a byte (tables).

    In place of 2 bits some products have 4, see `Layer.bits`.
    """

    def found(operators: Mapping[str, int], kinds: Mapping[str, int]) -> bool:
        del operators
        whole = any(kinds.get(f"{sign}int{b}", 0) for sign in ("", "u") for b in {bits, max(bits, 4)})
        return whole or (kinds.get("uint8", 0) > 0 and kinds.get("float16", 0) > 0)

    return found


def floats(kind: str) -> Any:
    """Weights lie in the file in a short float type."""
    return lambda operators, kinds: kinds.get(kind, 0) > 0 and "Cast" in operators


class PassContract:
    """Subclass it in a file that pytest collects and set `pass_`.

    Attributes:
        pass_: the object under test, as its module or entry point names it.
        options: the options to apply it with.
        evidence: for each feature that the pass produces, how the operators' counts and the numbers of initializers
            by element type show it.
        tolerance: the largest error of a pass that calls itself exact, as a share of an output's standard deviation.
        loose: the same for one that does not.
    """

    pass_: ClassVar[Pass]
    options: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    evidence: ClassVar[Mapping[str, Any]] = {
        "int8:dynamic": int8_dynamic,
        "int8:static": int8_static,
        **{f"weights:int{bits}": stored_in(bits) for bits in (8, 4, 2)},
        "float16": floats("float16"),
        "bfloat16": floats("bfloat16"),
    }
    tolerance: ClassVar[float] = 1e-5
    loose: ClassVar[float] = 0.3

    def cases(self, folder: Path) -> list[Case]:
        """Models, inputs and right outputs; files go into `folder`. Those that the pass refuses are not applied."""
        return cases(folder)

    def original(self, case: Case, folder: Path) -> Model:
        """What a pass that trains learns from; a file that is made for it goes into `folder`."""
        del folder
        return case.model

    def samples(self, case: Case) -> Mapping[str, np.ndarray]:
        """Calibration and training data; by default made up from the signature."""
        return generate(case.model.signature, SAMPLES, 0, _shapes(case)).inputs

    def unsuited(self, folder: Path) -> list[tuple[Model, Mapping[str, Any]]]:
        """Models, with options, that the pass cannot help and must refuse."""
        del folder
        return []

    @pytest.fixture(scope="class")
    @classmethod
    def applied(cls, tmp_path_factory: pytest.TempPathFactory) -> list[Applied]:
        """Every case that the pass does not refuse, with every entry of `options`."""
        contract, folder, target = cls(), tmp_path_factory.mktemp("contract"), this_machine()
        found: list[Applied] = []
        for case in contract.cases(folder / "models"):
            model = load_model(case.model.path, name=case.model.name)
            case = dataclasses.replace(case, model=model)
            for options in cls.options:
                if cls.pass_.refuse(model, options, target) is not None:
                    continue
                out = folder / f"{case.name}-{len(found)}"
                out.mkdir()
                samples = contract.samples(case)
                trains = cls.pass_.needs(cls.pass_.schema.check(options)) == "training"
                teacher = contract.original(case, folder / "originals" / out.name) if trains else None
                context = Context(out, target, samples, original=teacher)
                before = hashes(model.path.parent)
                found.append(Applied(case, options, context, before, cls.pass_(model, context, **options)))
        assert {str(dict(a.options)) for a in found} == {str(dict(o)) for o in cls.options}, (
            "some options never applied"
        )
        return found

    def test_the_input_stays_as_it_was(self, applied: list[Applied]) -> None:
        """A Model is immutable: its files keep their bytes, and nothing is left beside them."""
        for one in applied:
            assert hashes(one.case.model.path.parent) == one.before, str(one)
            assert load_model(one.case.model.path).sha256 == one.case.model.sha256, str(one)

    def test_the_result_is_valid(self, applied: list[Applied]) -> None:
        """ONNX's checker accepts it, types and shapes included."""
        import onnx

        for one in applied:
            onnx.checker.check_model(str(one.result.path), full_check=True)

    def test_the_result_runs_and_repeats_itself(self, applied: list[Applied]) -> None:
        """ONNX Runtime loads it, and two runs give equal bytes, near the right ones."""
        for one in applied:
            first, second = (run(one.result, one.case.inputs) for _ in range(2))
            assert {k: v.tobytes() for k, v in first.items()} == {k: v.tobytes() for k, v in second.items()}, str(one)
            if self.pass_.lossy(one.options):
                close(first, one.case.expected, self.loose, str(one))
            else:
                one.case.check(first, self.tolerance)

    def test_free_sizes_stay_free(self, applied: list[Applied]) -> None:
        """Inputs of another size still run."""
        for one in applied:
            if one.case.other is not None:
                outputs = run(one.result, one.case.other.inputs)
                tolerance = self.loose if self.pass_.lossy(one.options) else self.tolerance
                close(outputs, one.case.other.expected, tolerance, str(one))

    def test_the_signature_stays(self, applied: list[Applied]) -> None:
        """Names, their order, element types and shapes are the original's, and so is the model's name."""
        for one in applied:
            assert one.result.signature == one.case.model.signature, str(one)
            assert one.result.name == one.case.model.name, str(one)

    def test_the_claimed_features_are_in_the_file(self, applied: list[Applied]) -> None:
        """What the pass says it produces is what the graph holds, and the model carries it for backends to read."""
        for one in applied:
            claimed = self.pass_.produces(self.pass_.schema.check(one.options))
            assert one.result.features == (*one.case.model.features, *claimed), str(one)
            assert one.result.program is None, "the exported program is no longer the same function"
            operators, kinds = contents(one.result.path)
            for feature in claimed:
                assert self.evidence[feature](operators, kinds), f"{one}: no {feature} in {operators}, {kinds}"

    def test_the_folder_holds_the_model_and_nothing_else(self, applied: list[Applied]) -> None:
        """So the bytes on disk are the size of the model; what the model says of itself is what the file says."""
        import onnx

        for one in applied:
            proto = onnx.load(one.result.path, load_external_data=False)
            external = {e.value for t in proto.graph.initializer for e in t.external_data if e.key == "location"}
            files = {str(p.relative_to(one.context.folder)) for p in one.context.folder.rglob("*") if p.is_file()}
            assert files == {one.result.path.name, *external}, str(one)
            again = load_model(one.result.path, name=one.result.name, format=one.result.format)
            assert dataclasses.replace(again, features=one.result.features) == one.result, str(one)

    def test_equal_input_gives_equal_bytes(self, applied: list[Applied], tmp_path: Path) -> None:
        """In another process with another hash seed: results are cached by content."""
        jobs = []
        for i, one in enumerate(applied):
            samples: dict[str, Any] = dict(one.context.calibration or {})
            np.savez(tmp_path / f"{i}.npz", **samples)
            paths = str(tmp_path / f"{i}.npz"), str(tmp_path / str(i))
            teacher = one.context.original
            jobs.append([one.case.model.to_json(), one.options, *paths, None if teacher is None else teacher.to_json()])
        again(self.pass_, jobs)
        for i, one in enumerate(applied):
            assert hashes(tmp_path / str(i)) == hashes(one.context.folder), str(one)

    def test_importing_loads_nothing_heavy(self) -> None:
        """Names and options are asked by `--help`, which must answer at once."""
        assert again(self.pass_, []) == []

    def test_options_have_values(self) -> None:
        """The signature is the schema: every keyword has a default that it accepts, and values to try."""
        target = this_machine()
        for name, parameter in self.pass_.schema.parameters.items():
            assert parameter.check(parameter.default, self.pass_.name) == parameter.default
            assert parameter.knob.help, f"`{name}` has no help"
            values = parameter.values(target)
            assert values, f"`{name}` has nothing to try"
            assert values[0] == parameter.default, f"the default of `{name}` is not tried first"
        with pytest.raises(UnknownName):
            self.pass_.schema.check({"no_such_option": 1})

    def test_what_it_says_of_itself(self) -> None:
        """Its name, one line about it, and the packages whose versions decide the result."""
        assert self.pass_.name.isidentifier()
        assert self.pass_.about.endswith(".")
        assert self.pass_.distributions
        for options in self.options:
            assert self.pass_.needs(options) in ("nothing", "calibration", "training")
            assert isinstance(self.pass_.lossy(options), bool)

    def test_it_refuses_without_reading(self, tmp_path: Path) -> None:
        """A model that it cannot help is refused with a reason, from what the Model says; applied, it is an error."""
        target = this_machine()
        for i, (model, options) in enumerate(self.unsuited(tmp_path)):
            nowhere = dataclasses.replace(model, path=Path("no such file"))
            reason = self.pass_.refuse(nowhere, options, target)
            assert reason, f"{model} is not refused"
            before = hashes(model.path.parent)
            folder = tmp_path / "out" / str(i)
            folder.mkdir(parents=True)
            with pytest.raises(UsageError, match=re.escape(reason)):
                self.pass_(model, Context(folder, target, None), **options)
            assert list(folder.iterdir()) == []
            assert hashes(model.path.parent) == before

    def test_data_that_are_needed_are_asked_for(self, applied: list[Applied], tmp_path: Path) -> None:
        """Without the data that it needs, a pass says so."""
        for one in applied:
            needs = self.pass_.needs(self.pass_.schema.check(one.options))
            if needs != "nothing":
                with pytest.raises(UsageError, match=needs):
                    self.pass_(one.case.model, Context(tmp_path, one.context.target, None), **one.options)


def run(model: Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs a model on one thread of ONNX Runtime."""
    ort = runtime("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in model.signature.outputs]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def close(outputs: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray], tolerance: float, name: str) -> None:
    """Checks float outputs against the right ones; whole numbers may be another near choice.

    Raises:
        AssertionError: the root mean square error is above `tolerance` of the right outputs' own.
    """
    for key, value in right.items():
        assert outputs[key].dtype == value.dtype, f"{name}: `{key}`"
        assert outputs[key].shape == value.shape, f"{name}: `{key}`"
        if value.dtype.kind == "f":
            error = np.sqrt(np.mean((outputs[key] - value) ** 2)) / np.sqrt(np.mean(value**2))
            assert error <= tolerance, f"{name}: `{key}` is off by {error:.2g} of its size"


def contents(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """How often each operator and each element type of a constant occurs in an ONNX file."""
    import onnx

    kinds: dict[str, int] = {}
    for tensor in onnx.load(path).graph.initializer:
        kind = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        kinds[kind] = kinds.get(kind, 0) + 1
    return load_model(path).operators, kinds


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by its path there."""
    files: Iterator[Path] = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): sha256(p) for p in files}


def again(pass_: Pass, jobs: list[list[Any]]) -> list[str]:
    """Applies `pass_` in a fresh process; gives what of HEAVY its import alone loaded there."""
    module = pass_.function.__module__
    found = [name for name, value in vars(sys.modules[module]).items() if value is pass_]
    assert found, f"the module {module} does not define the pass as an object of its own"
    target: Target = this_machine()
    question = json.dumps([module, found[0], jobs, target.to_json(), HEAVY])
    done = subprocess.run([sys.executable, "-c", _AGAIN, question], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    imported: list[str] = json.loads(done.stdout)
    return imported


def _shapes(case: Case) -> dict[str, tuple[int | str, ...]]:
    free = case.model.signature.batch
    found = {}
    for spec in case.model.signature.inputs:
        sizes = zip(spec.shape, case.inputs[spec.name].shape, strict=True)
        found[spec.name] = tuple(dim if isinstance(dim, int) or dim == free else size for dim, size in sizes)
    return found
