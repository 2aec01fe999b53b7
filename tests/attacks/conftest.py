from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.bundles import install_tiny, make_bundle, use_site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good bundle, to be broken."""
    return make_bundle(tmp_path)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Installed packages that bring the backends `tiny` and `absent`."""
    place = install_tiny(tmp_path / "site")
    use_site(monkeypatch, place)
    return place
