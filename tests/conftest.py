"""What every test shares."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# No test is timed: on a busy machine hypothesis would take slowness for a fault.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def no_environments() -> Iterator[None]:
    """Environments that the person who runs the tests has made would bring more backends into every search."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PORTOLAN_ENVS", "/nowhere")
        yield


@pytest.fixture
def tested_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that somebody has made for the tests, in the folder that PORTOLAN_TEST_ENVS names."""
    monkeypatch.setenv("PORTOLAN_ENVS", os.environ.get("PORTOLAN_TEST_ENVS", "/nowhere"))


@pytest.fixture(autouse=True, scope="module")
def no_journals() -> Iterator[None]:
    """A journal that is left open runs a thread through all tests that come after it in the same process."""
    yield
    assert "journal" not in {thread.name for thread in threading.enumerate()}, "a journal was not closed"
