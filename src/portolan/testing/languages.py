"""LanguageContract: what every language that kernels are printed in must do, as a class of tests to subclass.

    class TestMine(LanguageContract):
        language = mine

prints every kernel of the kit, runs it in a process of its own on sizes around the edges of tiles, and compares it with
the oracle. The language has to be installed under its entry point: the process finds it there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from portolan.core.interpreters import python_for
from portolan.errors import PortolanError, UnsupportedOperator, UsageError
from portolan.kernels.elsewhere import here
from portolan.kernels.language import Here, Language, language
from portolan.kernels.lower.nest import groups
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.verify import AGENT, TOLERANCE, Judge, odd_cases
from portolan.testing.backend import python
from portolan.testing.kit import kernels
from portolan.worker.session import Worker

#: What importing a language must not import.
HEAVY = ("onnxruntime", "openvino", "torch", "pyopencl", "triton", "jax")
_SIZE = 40
_PROBE = """
import importlib, json, sys
module, attribute, heavy = json.loads(sys.argv[1])
found = getattr(importlib.import_module(module), attribute)
print(json.dumps([[name for name in heavy if name in sys.modules], found.name, found.about, found.suffix]))
"""


class LanguageContract:
    """Subclass it in a file that pytest collects and set `language`.

    Attributes:
        language: the object under test, as its module or entry point names it.
        refused: kernels of the kit that the language has no words for; it has to say so.
        layouts: how many of the layouts that it offers for a kernel are tried.
        cases: sizes that each is tried on.
    """

    language: ClassVar[Language]
    refused: ClassVar[frozenset[str]] = frozenset()
    layouts: ClassVar[int] = 2
    cases: ClassVar[int] = 4

    @pytest.fixture(scope="class")
    @classmethod
    def there(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
        """What can be done with the language here; a cache folder of its own."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PORTOLAN_CACHE", str(tmp_path_factory.mktemp("cache")))
            yield here(cls.language.name)

    @pytest.fixture(scope="class")
    @classmethod
    def worker(cls, there: Here) -> Iterator[Worker]:
        """The process in which kernels run."""
        if there.level not in ("check", "time"):
            pytest.skip(f"{cls.language.name} does not run here: {there.reason}")
        with Worker(module=AGENT, python=python_for(cls.language.name)) as worker:
            yield worker

    def test_it_is_found_by_its_name(self) -> None:
        """Through its entry point, or in Portolan itself."""
        assert language(self.language.name) is self.language
        assert self.language.about
        assert self.language.suffix.startswith(".")

    def test_importing_loads_nothing_heavy(self) -> None:
        """Names are listed by `--help` and in errors."""
        module = type(self.language).__module__
        found = [name for name, value in vars(sys.modules[module]).items() if value is self.language]
        assert found, f"the module {module} does not define the language as an object of its own"
        heavy, *told = json.loads(python(_PROBE, [module, found[0], HEAVY]))
        assert heavy == []
        assert told == [self.language.name, self.language.about, self.language.suffix]

    def test_what_is_missing_is_said(self, there: Here) -> None:
        """Whoever cannot run it is told why."""
        assert there.level in ("print", "compile", "check", "time")
        assert there.version or there.level == "print"
        assert there.level == "time" or there.reason

    @pytest.mark.parametrize("name", kernels())
    def test_a_kernel_is_printed_or_refused(self, name: str) -> None:
        """The same text each time, for every layout; or a reason."""
        program = kernels()[name].program
        for layout in layouts(self.language, name, self.layouts):
            if name in self.refused:
                with pytest.raises(UnsupportedOperator) as caught:
                    self.language.source(program, layout)
                assert caught.value.hint
                continue
            text = self.language.source(program, layout)
            assert text == self.language.source(program, layout)
            for step in (s for nest in self.language.plan(program, layout).nests for s in nest):
                assert step.entry in text

    @pytest.mark.parametrize("name", kernels())
    def test_a_kernel_agrees_with_the_oracle(
        self, name: str, worker: Worker, there: Here, record_property: Any
    ) -> None:
        """On sizes around the edges of tiles, and random ones."""
        if name in self.refused:
            pytest.skip(f"{self.language.name} has no words for it")
        program = kernels()[name].program
        worst = 0.0
        for number, layout in enumerate(layouts(self.language, name, self.layouts)):
            cases = odd_cases(program, layout[0], np.random.default_rng(number), self.cases)
            judge = Judge(program, cases, worker, self.language.name)
            path = self.language.build(program, layout, there.version)
            worst = max(worst, judge.error(f"{name}-{number}", path))
        record_property("worst_error", worst)
        assert worst <= max(TOLERANCE[o.dtype] for o in program.outputs)

    def test_special_numbers(self, worker: Worker, there: Here) -> None:
        """Infinities are no large numbers, `max` leaves NaN out, and a row of nothing is -inf."""
        program = kernels()["tropical"].program
        layout = layouts(self.language, "tropical", 1)[0]
        a = np.array([[-np.inf, -np.inf], [1, np.nan], [np.nan, np.nan], [np.inf, 0]], np.float32)
        b = np.zeros((2, 3), np.float32)
        worker.ask(
            "load",
            timeout=120,
            name="special",
            language=self.language.name,
            path=str(self.language.build(program, layout, there.version)),
            kernel="tropical",
            symbols=list(program.symbols),
        )
        reply = worker.ask(
            "run",
            timeout=120,
            name="special",
            tensors={"a0": a, "a1": b},
            sizes={"i": 4, "k": 2, "j": 3},
            results=[[[4, 3], "float32"]],
        )
        assert reply.tensors["r0"][:, 0].tolist() == [-np.inf, 1, -np.inf, np.inf]

    def test_more_than_32_bits_can_count_is_refused(self) -> None:
        """Before anything is started."""
        plan = self.language.plan(kernels()["matmul"].program, layouts(self.language, "matmul", 1)[0])
        with pytest.raises(UsageError, match="32 bits"):
            plan.starts({"i": 2**20, "k": 4, "j": 2**20})

    def test_a_damaged_program_is_an_error_of_its_own(self, worker: Worker, there: Here, tmp_path: Path) -> None:
        """Never a crash of the process, nor an exception of the driver's."""
        program, layout = kernels()["matmul"].program, layouts(self.language, "matmul", 1)[0]
        made = self.language.build(program, layout, there.version)
        path = tmp_path / f"damaged{made.suffix}"
        path.write_bytes(b"this is no program\n")
        path.with_suffix(".json").write_bytes(made.with_suffix(".json").read_bytes())
        case = odd_cases(program, layout[0], np.random.default_rng(0), 1)
        with pytest.raises(PortolanError):
            Judge(program, case, worker, self.language.name).error("damaged", path)


def layouts(found: Language, name: str, most: int) -> list[list[Schedule]]:
    """Layouts that a language offers for a kernel, each a schedule for every group of results."""
    program = kernels()[name].program
    options = [found.schedules(program, g, dict.fromkeys(program.symbols, _SIZE)) for g in groups(program)]
    count: int = min(most, max(map(len, options)))
    return [[o[min(n, len(o) - 1)] for o in options] for n in range(count)]


__all__: Sequence[str] = ("LanguageContract", "layouts")
