"""LiteRT keeps the contract; run in its own environment by test_environment_backends.py."""

from __future__ import annotations

from portolan.backends.litert import litert
from portolan.testing.backend import BackendContract


class TestLiteRt(BackendContract):
    backend = litert
    refused = ("free-batch",)
