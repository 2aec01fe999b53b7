"""Every language that kernels are printed in, held to the contract. What does not run here is printed all the same."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from portolan.kernels.elsewhere import here
from portolan.kernels.language import Here
from portolan.kernels.languages.cuda import cuda
from portolan.kernels.languages.opencl import opencl
from portolan.kernels.languages.triton import triton
from portolan.kernels.languages.wgsl import wgsl
from portolan.kernels.verify import AGENT, Judge, odd_cases
from portolan.testing import LanguageContract
from portolan.testing.kit import kernels
from portolan.testing.languages import layouts
from portolan.worker.session import Worker

CUDA = Path(__file__).parents[1] / "support" / "cuda"


class TestOpenCL(LanguageContract):
    language = opencl


class TestCUDA(LanguageContract):
    language = cuda


@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("g++")), reason="needs gcc and g++")
class TestCUDAWithoutAGPU(LanguageContract):
    """The code and the calls of the driver, with a compiler and a driver that make threads of loops."""

    language = cuda
    layouts = 1
    cases = 3
    # The class above prints the same.
    test_a_kernel_is_printed_or_refused = None

    @pytest.fixture(scope="class")
    @classmethod
    def there(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
        folder = tmp_path_factory.mktemp("driver")
        driver, compiler = folder / "libcuda.so", folder / "nvcc"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", driver, CUDA / "driver.c", "-ldl"], check=True)
        compiler.write_text(f'#!/bin/sh\nexec {sys.executable} {CUDA / "nvcc.py"} "$@"\n')
        compiler.chmod(0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PORTOLAN_CACHE", str(folder / "cache"))
            patch.setenv("PORTOLAN_NVCC", str(compiler))
            patch.setenv("PORTOLAN_LIBCUDA", str(driver))
            found = here("cuda")
            assert (found.level, found.version) == ("time", "nvcc 0.0, no GPU, driver 13.0")
            yield found


@pytest.mark.browser
class TestWGSL(LanguageContract):
    language = wgsl

    def test_the_browser_ends_with_its_process(self, there: Here, tmp_path: Path) -> None:
        program, layout = kernels()["tropical"].program, layouts(wgsl, "tropical", 1)[0]
        if there.level != "check":
            pytest.skip(str(there.reason))
        with Worker(module=AGENT, env={"TMPDIR": str(tmp_path)}) as worker:
            cases = odd_cases(program, layout[0], np.random.default_rng(0), 1)
            Judge(program, cases, worker, "wgsl").error("one", wgsl.build(program, layout, there.version))
            assert browsers(tmp_path)
        deadline = time.monotonic() + 20
        while browsers(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert browsers(tmp_path) == []


def browsers(folder: Path) -> list[str]:
    """Processes whose profile is below `folder`."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"--user-data-dir={folder}".encode() in place.read_bytes():
                found.append(place.parent.name)
    return found


class TestTriton(LanguageContract):
    language = triton
    layouts = 1
    cases = 3
