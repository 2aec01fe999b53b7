"""The printed C under the address sanitizer: no read or write outside of an array, at sizes around every edge."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from portolan.kernels.candidates import candidates
from portolan.kernels.compiler import find
from portolan.kernels.lower.nest import groups
from portolan.kernels.tune import source
from portolan.targets.local import local
from support import operators

pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.skipif(not any(map(shutil.which, ("gcc", "clang", "cc"))), reason="needs a C compiler"),
]
#: Those for every day: places out of arrays, rankings, masks on both sides of a row, tables of places.
DAILY = ("gathered", "knn", "window_attention", "deformable")
SANITIZED = """
import sys
import numpy as np
from support import operators
from portolan.kernels.library import Library
from portolan.kernels.arrays import Results
from portolan.kernels.verify import odd_cases
name, path, more = sys.argv[1:]
kernel = operators.EVERY[name]
library = Library(path, kernel.name, kernel.program.symbols)
schedule = kernel.schedules({s: 8 if s in "vp" else 40 for s in kernel.program.symbols})[0]
for case in odd_cases(kernel.program, schedule, np.random.default_rng(5), number=10):
    # Each array ends where its memory does, so that one read too many is seen.
    arrays = [np.frombuffer(bytearray(a.tobytes()), a.dtype).reshape(a.shape) for a in case.arrays]
    sizes = {symbol: size + int(more) for symbol, size in case.sizes.items()}
    library([*arrays, *Results.of(kernel.program, case.sizes).made()], sizes)
"""


def sanitized(name: str, more: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a kernel at odd sizes, each said to be larger by `more` than it is."""
    compiler = find()
    asked = [compiler.argv[0], "-print-file-name=libasan.so"]
    runtime = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(runtime).is_file():
        pytest.skip("needs the address sanitizer of gcc")
    program = operators.EVERY[name].program
    sizes = {s: 8 if s in "vp" else 40 for s in program.symbols}  # so few levels and points that a table is small
    best = [candidates(program, g, local.detect(), sizes)[0] for g in groups(program)]
    path = compiler.build(source(program, best), ("-fsanitize=address", "-g", "-O1"))
    env = {**os.environ, "LD_PRELOAD": runtime, "PYTHONMALLOC": "malloc", "ASAN_OPTIONS": "detect_leaks=0"}
    env["PYTHONPATH"] = os.pathsep.join([*sys.path, str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", SANITIZED, name, str(path), str(more)]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in DAILY else pytest.mark.slow) for n in operators.EVERY]
)
def test_no_read_or_write_outside(name: str) -> None:
    ran = sanitized(name)
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_one_element_too_many_is_seen() -> None:
    ran = sanitized("matmul", 1)
    assert ran.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in ran.stderr
