from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.studies import Lab


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """An empty place to make studies in."""
    found = Lab(tmp_path)
    for name, value in found.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("portolan.measure.lock.lock_path", lambda folder=None: tmp_path / "lock")
    monkeypatch.chdir(tmp_path)
    return found
