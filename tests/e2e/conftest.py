from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from portolan.core import chromium
from support.studies import Lab

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
_FLAGS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """An empty place to make studies in."""
    found = Lab(tmp_path)
    for name, value in found.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("portolan.measure.lock.lock_path", lambda folder=None: tmp_path / "lock")
    monkeypatch.chdir(tmp_path)
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the module's own, which its tests share: compiling and tuning kernels takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("PORTOLAN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium for pages of ours."""
    from playwright.sync_api import sync_playwright

    found = chromium.found()
    if found is None:
        pytest.fail(
            f"the browser tests need one of {', '.join(chromium.NAMES)}: `apt-get install chromium`, "
            "or leave them out with `-m 'not browser'`",
            pytrace=False,
        )
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=_FLAGS)
        yield running
        running.close()
