"""BackendContract: what every backend must do, as a class of tests that a plug-in subclasses.

    class TestMine(BackendContract):
        backend = mine

runs small ONNX models, made here, through the backend and compares it with ONNX's reference evaluator. A backend that
does not start from ONNX overrides `cases`, `unsupported` and `corrupt`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from portolan.core.backend import Backend, Executable
from portolan.core.files import sha256
from portolan.core.target import Target
from portolan.errors import ModelError, PortolanError, UnknownName, UnsupportedOperator
from portolan.testing.models import Case, cases, corrupt, this_machine, unsupported

HEAVY = ("numpy", "onnx", "onnxruntime", "openvino", "torch", "scipy")

_PROBE = """
import importlib, json, sys
from portolan.core.target import Target
module, attribute, target, heavy = json.loads(sys.argv[1])
backend = getattr(importlib.import_module(module), attribute)
imported = [name for name in heavy if name in sys.modules]
support = backend.probe(Target.from_json(target))
probed = [name for name in (backend.module, *heavy) if name in sys.modules]
print(json.dumps([imported, probed, support.ready, support.version, support.reason, support.fix]))
"""
_RELOAD = """
import importlib, json, sys
from pathlib import Path
import numpy as np
module, attribute, folders, options = json.loads(sys.argv[1])
backend = getattr(importlib.import_module(module), attribute)
for folder in map(Path, folders):
    executable = backend.load(folder / "saved", **backend.schema.check(options))
    outputs = executable.run(dict(np.load(folder / "inputs.npz")))
    executable.close()
    np.savez(folder / "outputs.npz", **outputs)
"""


class Built:
    """The cases of one test class, each compiled once with the default options."""

    def __init__(self, contract: BackendContract, folder: Path) -> None:
        self.folder = folder
        self.target = contract.target()
        (folder / "models").mkdir()
        every = contract.cases(folder / "models")
        self.refused = [case for case in every if case.name in contract.refused]
        self.cases = [case for case in every if case.name not in contract.refused]
        self.before = hashes(folder / "models")
        self.backend, self.options = contract.backend, contract.checked()
        self._executables: dict[str, Executable] = {}

    def __iter__(self) -> Iterator[tuple[Case, Executable]]:
        for case in self.cases:
            if case.name not in self._executables:
                self._executables[case.name] = self.backend.compile(case.model, self.target, **self.options)
            yield case, self._executables[case.name]

    def close(self) -> None:
        """Closes what was compiled."""
        for executable in self._executables.values():
            executable.close()


class BackendContract:
    """Subclass it in a file that pytest collects and set `backend`.

    Attributes:
        backend: the object under test, as its module or entry point names it.
        tolerance: largest error of exact options, as a share of an output's standard deviation.
        loose: the same for options that are not exact.
        refused: names of cases that the backend refuses, such as those with free sizes; they are not compiled.
        options: those that the tests run with where they are not the defaults, such as another device.
    """

    backend: ClassVar[Backend]
    tolerance: ClassVar[float] = 1e-4
    loose: ClassVar[float] = 0.1
    refused: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[Mapping[str, Any]] = {}

    def checked(self) -> dict[str, Any]:
        """Every option with its value."""
        return self.backend.schema.check(self.options)

    def cases(self, folder: Path) -> list[Case]:
        """Models, their inputs and the right outputs; files go into `folder`."""
        return cases(folder)

    def target(self) -> Target:
        """Where the backend runs: this machine, unless it is for others."""
        return this_machine()

    def unsupported(self, folder: Path) -> Any:
        """A model with an operator that nobody has."""
        return unsupported(folder)

    def corrupt(self, folder: Path) -> Any:
        """A model whose file is cut short."""
        return corrupt(folder)

    @pytest.fixture(scope="class")
    @classmethod
    def built(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
        """Every case, compiled."""
        built = Built(cls(), tmp_path_factory.mktemp("contract"))
        yield built
        built.close()

    def _place(self) -> tuple[str, str]:
        module = type(self.backend).__module__
        found = [name for name, value in vars(sys.modules[module]).items() if value is self.backend]
        assert found, f"the module {module} does not define the backend as an object of its own"
        return module, found[0]

    def test_importing_and_probing_load_nothing_heavy(self) -> None:
        """Names, options and readiness are asked by `--help` and `doctor`, which must answer at once."""
        question = [*self._place(), self.target().to_json(), HEAVY]
        imported, probed, ready, version, reason, fix = json.loads(python(_PROBE, question))
        assert imported == []
        assert probed == []
        assert ready, reason
        assert version
        assert reason is None
        assert fix is None

    def test_versions_name_what_decides_the_results(self) -> None:
        """They are part of every cache key."""
        assert self.backend.distributions
        assert self.backend.versions().keys() == set(self.backend.distributions)
        assert self.backend.fix

    def test_options_are_documented_and_have_values(self) -> None:
        """The signature is the schema: each keyword has a default that it accepts, a help line and values to try."""
        target = self.target()
        for name, parameter in self.backend.schema.parameters.items():
            assert parameter.knob.help, f"`{name}` has no help"
            assert parameter.check(parameter.default, self.backend.name) == parameter.default
            values = parameter.values(target)
            assert values, f"`{name}` has no value on this machine"
            assert values[0] == parameter.default, f"the default of `{name}` is not tried first"

    def test_an_unknown_option_is_refused(self) -> None:
        """A mistyped option is an error, not a default."""
        with pytest.raises(UnknownName):
            self.backend.schema.check({"no_such_option": 1})

    def test_outputs_are_right(self, built: Built) -> None:
        """Compile and run give what the model means, under the signature's names, with its types."""
        for case, executable in built:
            case.check(executable.run(case.inputs), self.tolerance)

    def test_any_array_of_the_right_type_and_shape_will_do(self, built: Built) -> None:
        """Arrays arrive in any memory order, and in buffers that may not be written."""
        for case, executable in built:
            inputs = {name: np.asfortranarray(value) for name, value in reversed(case.inputs.items())}
            for value in inputs.values():
                value.flags.writeable = False
            case.check(executable.run(inputs), self.tolerance)

    def test_sizes_that_are_free_may_change(self, built: Built) -> None:
        """A free dimension takes another size without compiling again."""
        for case, executable in built:
            if case.other is not None:
                case.other.check(executable.run(case.other.inputs), self.tolerance)
                case.check(executable.run(case.inputs), self.tolerance)

    def test_the_same_inputs_give_the_same_bytes(self, built: Built) -> None:
        """Running is deterministic on one machine."""
        for case, executable in built:
            first, second = executable.run(case.inputs), executable.run(case.inputs)
            assert {k: v.tobytes() for k, v in first.items()} == {k: v.tobytes() for k, v in second.items()}, case.name

    def test_outputs_belong_to_the_caller(self, built: Built) -> None:
        """The next call does not overwrite them, and writing on them changes neither inputs nor later results."""
        for case, executable in built:
            before = {name: value.copy() for name, value in case.inputs.items()}
            kept = executable.run(case.inputs)
            copies = {name: value.copy() for name, value in kept.items()}
            executable.run({name: np.ones_like(value) for name, value in case.inputs.items()})
            for name, value in kept.items():
                np.testing.assert_array_equal(value, copies[name], err_msg=case.name)
                value[...] = 99
            for name, value in case.inputs.items():
                np.testing.assert_array_equal(value, before[name], err_msg=case.name)
            case.check(executable.run(case.inputs), self.tolerance)

    def test_two_threads_get_their_own_answers(self, built: Built) -> None:
        """`caller()` gives each thread a function that may run at the same time as another's."""
        for case, executable in built:
            variants = [case.inputs, {name: value[::-1].copy() for name, value in case.inputs.items()}]
            expected = [executable.run(inputs) for inputs in variants]
            wrong: list[str] = []
            threads = [
                threading.Thread(target=_repeat, args=(executable, inputs, right, wrong))
                for inputs, right in zip(variants, expected, strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert wrong == [], case.name

    def test_saved_is_loaded_by_another_process(self, built: Built) -> None:
        """What `save` wrote is all that `load` needs: it is moved first."""
        folders = []
        for case, executable in built:
            written, folder = built.folder / f"written-{case.name}", built.folder / case.name
            written.mkdir()
            folder.mkdir()
            executable.save(written)
            written.rename(folder / "saved")
            np.savez(folder / "inputs.npz", **case.inputs)  # type: ignore[arg-type]
            folders.append(str(folder))
        python(_RELOAD, [*self._place(), folders, dict(self.options)])
        for case in built.cases:
            with np.load(built.folder / case.name / "outputs.npz") as outputs:
                case.check(dict(outputs), self.tolerance)

    def test_every_option_of_the_search_works(self, built: Built) -> None:
        """Each combination compiles on this machine, and exact ones are exact."""
        case = built.cases[0]
        first, *others = self.backend.space(built.target, self.options)
        assert first == built.options
        for options in others:
            executable = self.backend.compile(case.model, built.target, **options)
            case.check(executable.run(case.inputs), self.tolerance if self.backend.exact(options) else self.loose)
            executable.close()

    def test_facts_state_device_and_precision(self, built: Built) -> None:
        """Numbers without the arithmetic they were measured in are worth nothing."""
        for _, executable in built:
            facts = executable.facts()
            assert facts["device"] == built.options.get("device", facts["device"])
            assert facts["device"]
            assert facts["precision"]
            assert json.loads(json.dumps(facts)) == facts

    def test_a_missing_operator_is_named(self, tmp_path: Path) -> None:
        """In backticks, with another backend to try."""
        model = self.unsupported(tmp_path)
        with pytest.raises(UnsupportedOperator, match=r"no operator `.*Mystery`") as caught:
            self.backend.compile(model, self.target(), **self.checked())
        assert "--backend" in (caught.value.hint or "")

    def test_a_corrupt_file_is_a_model_error(self, tmp_path: Path) -> None:
        """Never a runtime's own exception."""
        model = self.corrupt(tmp_path)
        with pytest.raises(ModelError) as caught:
            self.backend.compile(model, self.target(), **self.checked())
        assert not isinstance(caught.value, UnsupportedOperator)
        assert caught.value.hint

    def test_a_folder_without_a_saved_model_is_a_model_error(self, tmp_path: Path) -> None:
        """A bundle may be damaged."""
        with pytest.raises(ModelError):
            self.backend.load(tmp_path, **self.checked())

    def test_features_of_passes_are_refused_unless_exploited(self, built: Built) -> None:
        """A recipe that gains nothing is refused before any time is spent on it."""
        from dataclasses import replace

        model = built.cases[0].model
        assert self.backend.refuse(model, built.target) is None
        refusal = self.backend.refuse(replace(model, features=("int1:nobody",)), built.target)
        assert refusal is not None
        assert "int1:nobody" in refusal

    def test_what_it_cannot_run_is_refused_in_words(self, built: Built) -> None:
        """Before any time is spent, and nothing else is refused."""
        assert sorted(case.name for case in built.refused) == sorted(self.refused)
        for case in built.refused:
            assert f"`{self.backend.name}`" in (self.backend.refuse(case.model, built.target) or ""), case.name
        for case in built.cases:
            assert self.backend.refuse(case.model, built.target) is None, case.name

    def test_the_models_files_are_untouched(self, built: Built) -> None:
        """Nothing is rewritten, and nothing is left beside them."""
        for case, executable in built:
            executable.run(case.inputs)
        assert hashes(built.folder / "models") == built.before

    def test_closing_twice_is_harmless(self, built: Built) -> None:
        """A worker closes on every way out."""
        case = built.cases[0]
        for _, executable in built:
            written = built.folder / "closing"
            written.mkdir()
            executable.save(written)
            break
        again = self.backend.load(written, **built.options)
        case.check(again.run(case.inputs), self.tolerance)
        again.close()
        again.close()


def _repeat(executable: Executable, inputs: Any, right: Any, wrong: list[str]) -> None:
    try:
        call = executable.caller()
        for _ in range(30):
            for name, value in call(inputs).items():
                if not np.allclose(value, right[name], rtol=1e-4, atol=1e-5):
                    wrong.append(f"`{name}` is another thread's")
    except Exception as error:  # a thread's exception would be lost
        wrong.append(repr(error))


def hashes(folder: Path) -> dict[str, str]:
    """The content hash of every file below `folder`, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def python(code: str, question: Any) -> str:
    """The last line that a new interpreter prints on running `code` with `question` as JSON in its first argument.

    Raises:
        PortolanError: it failed; the message is the end of what it printed.
    """
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(question)], capture_output=True, text=True, check=False, timeout=240
    )
    if done.returncode:
        raise PortolanError(f"a new process ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout.strip().rpartition("\n")[2]
