"""The contract suites, subclassed: the same rules as for the built-in backends, passes and front ends."""

from __future__ import annotations

from pathlib import Path

from portolan_halve import halve
from portolan_lean import lean
from portolan_linear import linear

from portolan.testing.backend import BackendContract
from portolan.testing.frontend import FrontendContract
from portolan.testing.passes import PassContract


class TestLean(BackendContract):
    """Outputs, threads, saving and loading, errors, options."""

    backend = lean


class TestHalve(PassContract):
    """Valid and repeatable files, an untouched input, an honest account of itself."""

    pass_ = halve
    options = ({}, {"least": 1024})


class TestLinear(FrontendContract):
    """What its sources look like, good and damaged."""

    front_end = linear

    def source(self, folder: Path) -> Path:
        """A model of three inputs and two outputs."""
        path = folder / "small.linear.json"
        path.write_text('{"weights": [[1, 2, 3], [4, 5, 6]], "bias": [0.5, -0.5]}')
        return path

    def damaged(self, folder: Path) -> Path:
        """One output short of a bias."""
        path = folder / "bad.linear.json"
        path.write_text('{"weights": [[1, 2, 3], [4, 5, 6]], "bias": [0.5]}')
        return path
