"""TVM keeps the contract; run in its own environment by test_environment_backends.py."""

from __future__ import annotations

from portolan.backends.tvm import tvm
from portolan.testing.backend import BackendContract


class TestTvm(BackendContract):
    backend = tvm
