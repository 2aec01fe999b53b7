"""IREE keeps the contract; run in its own environment by test_environment_backends.py."""

from __future__ import annotations

from portolan.backends.iree import iree
from portolan.testing.backend import BackendContract


class TestIree(BackendContract):
    backend = iree
