"""Environments that somebody has made for the tests: they are heavy, so the tests make none."""

from __future__ import annotations

import os

import pytest

from portolan.core import environments

VARIABLE = "PORTOLAN_TEST_ENVS"


def made_environment(name: str, patch: pytest.MonkeyPatch) -> environments.Found:
    """The environment of a backend below PORTOLAN_TEST_ENVS, which Portolan then uses; skips the test without it."""
    patch.setenv(environments.VARIABLE, os.environ.get(VARIABLE, "/nowhere"))
    found = environments.find(name)
    assert found is not None, f"no requirements file for {name}"
    if found.state != "ready":
        pytest.skip(f"{found.reason or 'not made'}: `{found.fix}`, and name its folder in {VARIABLE}")
    return found
