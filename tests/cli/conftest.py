"""The command line against a scripted `portolan.api`: nothing is loaded, measured or written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

import scripted

import portolan


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> scripted.Api:
    fake = scripted.Api("portolan.api")
    monkeypatch.setitem(sys.modules, "portolan.api", fake)
    monkeypatch.setattr(portolan, "api", fake, raising=False)
    return fake


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed backends and passes, so that plug-ins of this machine change no expected text."""
    known = {"backends": ["onnxruntime", "openvino", "reference", "torch"], "passes": ["quantize", "simplify"]}
    known["platforms"] = ["docker", "kserve", "ray-serve", "triton"]
    monkeypatch.setattr("portolan.cli.options.known", known.__getitem__)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, an empty home, and no settings of the person who runs the tests."""
    import os

    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    for name in [n for n in os.environ if n.startswith(("PORTOLAN_", "_PORTOLAN", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    return work
