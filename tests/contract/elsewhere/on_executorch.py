"""ExecuTorch keeps the contract; run in its own environment by test_environment_backends.py."""

from __future__ import annotations

from portolan.backends.executorch import executorch
from portolan.testing.backend import BackendContract


class TestExecuTorch(BackendContract):
    backend = executorch
    refused = ("free-batch",)
