"""Which kernels groups of threads make together, and that none of the group ends before the others."""

from __future__ import annotations

import pytest

from portolan.errors import UnsupportedOperator
from portolan.kernels.ir import Barrier, statements
from portolan.kernels.language import ONE, language
from portolan.kernels.lower.nest import groups, lower
from portolan.kernels.lower.shared import THREADS, contraction
from portolan.kernels.printers.c import CPrinter
from portolan.kernels.printers.text import text
from portolan.testing.kit import kernels

TOGETHER = ["batched", "brain", "half", "integers", "matmul", "product", "transposed", "tropical"]
SIZES = {"i": 64, "k": 7, "j": 64}


def test_contractions_are_found_and_nothing_else() -> None:
    found = [name for name, k in kernels().items() if any(contraction(g) for g in groups(k.program))]
    assert sorted(found) == TOGETHER


@pytest.mark.parametrize(("size", "sides"), [(64, [8, 4, 2]), (63, [4, 2]), (16, [2]), (15, [])])
def test_a_tile_is_no_larger_than_the_sizes(size: int, sides: list[int]) -> None:
    program = kernels()["matmul"].program
    offered = language("opencl").schedules(program, groups(program)[0], {"i": size, "k": 3, "j": size})
    assert [s.shared for s in offered if s.shared] == sides
    assert ONE in offered


def test_the_loops_of_a_group() -> None:
    program = kernels()["matmul"].program
    schedule = language("cuda").schedules(program, groups(program)[0], SIZES)[0]
    loops = lower(program, [schedule])
    first, last = loops.nests[0].variants
    assert (first.together, last.together) == (THREADS, 0)
    assert sum(isinstance(s, Barrier) for s in statements(first.body)) == 2
    assert last.when is None
    assert "wait for the group" in text(loops)
    code = language("cuda").source(program, [schedule])
    together, alone = code.split("portolan_matmul_0_0")[1].split("portolan_matmul_0_1")
    assert "__syncthreads();" in together
    assert "return;" not in together
    assert "if (task >= tasks) { return; }" in alone


def test_what_a_language_has_no_words_for_is_refused() -> None:
    program = kernels()["matmul"].program
    loops = lower(program, [language("cuda").schedules(program, groups(program)[0], SIZES)[0]])
    with pytest.raises(UnsupportedOperator, match="C has no words for `"):
        CPrinter().source(loops)
