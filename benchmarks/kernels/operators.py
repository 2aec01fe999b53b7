"""The kernels of the benchmark: those of the kit that a language is tested with."""

from __future__ import annotations

from portolan.testing.kit import kernels

globals().update(kernels())
