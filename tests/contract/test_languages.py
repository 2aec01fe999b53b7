"""Every language that kernels are printed in, held to the contract. What does not run here is printed all the same."""

from __future__ import annotations

import pytest

from portolan.kernels.languages.cuda import cuda
from portolan.kernels.languages.opencl import opencl
from portolan.kernels.languages.triton import triton
from portolan.kernels.languages.wgsl import wgsl
from portolan.testing import LanguageContract


class TestOpenCL(LanguageContract):
    language = opencl


class TestCUDA(LanguageContract):
    language = cuda


@pytest.mark.browser
class TestWGSL(LanguageContract):
    language = wgsl


class TestTriton(LanguageContract):
    language = triton
    layouts = 1
    cases = 3
