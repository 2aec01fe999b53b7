"""Kernels of every construct of the language, by name."""

from __future__ import annotations

from portolan.testing.kit import kernels

EVERY = kernels()
globals().update(EVERY)
