"""Tables along a reduction's own indices: which are joined, and what is read or asked of each element."""

# ruff: noqa: F821, F722, UP037

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import pytest

from portolan.kernels import kernel
from portolan.kernels.candidates import candidates
from portolan.kernels.compiler import find
from portolan.kernels.lower.nest import groups
from portolan.kernels.tune import source
from portolan.kernels.verify import AGENT, TOLERANCE, Case, Judge, random_arrays
from portolan.targets.local import local
from portolan.worker.session import Worker

pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.skipif(not any(map(shutil.which, ("gcc", "clang", "cc"))), reason="needs a C compiler"),
]


@kernel
def causal(x: "s c", at: "q p : i32", w: "q p") -> "q c":
    return sum(w[q, p] * x[at[q, p] + p, c] for p in P if p <= q if at[q, p] != 3)


@kernel
def crossed(x: "s c", at: "q p v : i32", w: "q v p", bias: "v") -> "q c":
    return sum((v + bias[v]) * w[q, v, p] * x[at[q, p, v] * 2 - v, c] for v in V for p in P)


@kernel
def twice_read(x: "s c", at: "q v p : i32", w: "v p") -> "q c":
    return sum(w[v, p] * at[q, 0, 0] * x[at[q, v, p], c] for v in V for p in P)


@kernel
def in_front(x: "s c", at: "q v p : i32", step: "v : i32") -> "q c":
    return sum(x[at[q, v, p] + d * step[v], c] * (d + 1) for d in range(2) for v in V for p in P)


@kernel
def counted(x: "s c", at: "q 6 5 : i32") -> "q c":
    return max(x[at[q, k, n] + 1, c] - x[at[q, k, n], c] for k in range(6) for n in range(5) if k + n != 4)


@kernel
def narrow(x: "s c : f16", at: "q p : i8", w: "q p : bf16") -> ("q c", "q c : i32"):
    return (
        sum(w[q, p] * x[at[q, p] + 1, c] for p in P),
        argmax(w[q, p] + x[at[q, p] * 2, c] for p in P),
    )


KERNELS = {k.name: k for k in (causal, crossed, twice_read, in_front, counted, narrow)}
#: Sizes of `v`, `p` and `q`: fewer elements than fill a vector, whole vectors, and some more.
SIZES = ((1, 1, 4), (3, 5, 9), (4, 4, 4), (2, 16, 5), (5, 13, 4), (7, 9, 3), (40, 40, 6))


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(module=AGENT) as found:
        yield found


@pytest.mark.parametrize("name", KERNELS)
def test_indices_joined_in_odd_ways(name: str, worker: Worker) -> None:
    program = KERNELS[name].program
    usual = {s: 8 if s in "vp" else 40 for s in program.symbols}
    (group,) = groups(program)
    tabled = next(s for s in candidates(program, group, local.detect(), usual) if s.table == "inner")
    rng = np.random.default_rng(2)
    sizes = [usual | {n: size for n, size in zip("vpq", some, strict=True) if n in usual} for some in SIZES]
    cases = [Case(s, random_arrays(program, s, rng)) for s in sizes]
    path = find().build(source(program, [tabled]))
    assert Judge(program, cases, worker).error(name, path) <= TOLERANCE["f32"]
