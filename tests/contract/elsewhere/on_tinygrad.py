"""tinygrad keeps the contract; run in its own environment by test_environment_backends.py."""

from __future__ import annotations

from portolan.backends.tinygrad import tinygrad
from portolan.testing.backend import BackendContract


class TestTinygrad(BackendContract):
    backend = tinygrad
    refused = ("free-batch",)
