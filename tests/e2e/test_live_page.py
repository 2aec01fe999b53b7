"""The page at `/` in a real browser: it shows what goes on, stays off the network, and lets no model's name run."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from support.serving import Server, identity, pack, serving

pytestmark = pytest.mark.browser
BODY = json.dumps({"inputs": [{"name": "x", "shape": [3, 16], "datatype": "FP32", "data": [0.5] * 48}]}).encode()
NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    return pack(identity(folder / "same.onnx"), folder / "same.portolan")


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must log nothing of its own and ask nobody but its server."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    made = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    made.on("console", lambda message: said.append(message.text))
    made.on("pageerror", lambda error: said.append(str(error)))
    made.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    made.on("request", lambda request: asked.append(request.url))
    yield made
    context.close()
    hosts = {url.split("/")[2] for url in asked if not url.startswith(("data:", "about:"))}
    assert len(hosts) == 1
    # Chromium itself says these two: a token was asked for, and the server has stopped.
    assert [text for text in said if "401" not in text and "ERR_CONNECTION_REFUSED" not in text] == []


class Load:
    """Somebody who asks all the time."""

    def __init__(self, server: Server) -> None:
        self._server, self._ended = server, threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        while not self._ended.is_set():
            with urllib.request.urlopen(f"{self._server.url}/v2/models/same/infer", BODY, timeout=30) as answer:
                answer.read()
            time.sleep(0.005)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)


def fact(page: Page, name: str) -> str:
    return page.locator(f"dl div:has(dt:text-is('{name}')) dd").inner_text()


def test_it_shows_rates_latency_batches_and_replicas_as_they_change(page: Page, bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, "--replicas", "1..2") as server:
        page.goto(server.url)
        expect(page.locator("#state")).to_have_text("live")
        expect(page.locator("h2")).to_have_text("same")
        with Load(server):
            expect(page.locator("rect").first).to_be_attached(timeout=20_000)
            expect(page.locator("path.c").first).to_have_attribute("d", re.compile("L"), timeout=20_000)
            assert float(fact(page, "answered / s").replace(",", "")) > 1
            assert fact(page, "p99").endswith("ms") or fact(page, "p99").endswith("µs")
            assert fact(page, "rows per batch").startswith("3")
            assert fact(page, "replicas").startswith("1")
            assert fact(page, "allowed") == "1 to 2"
            assert page.locator("figure").count() == 4
            page.screenshot(path=str(tmp_path / "live.png"), full_page=True)
        server.stop()
        expect(page.locator("#state")).to_contain_text("no answer", timeout=20_000)


def test_a_token_is_asked_for_and_a_wrong_one_is_said(page: Page, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("first-token-0123456789\n")
    with serving(bundle, "--token-file", tmp_path / "tokens") as server:
        page.goto(server.url)
        box = page.get_by_label("Token")
        expect(box).to_be_visible()
        box.fill("guessed-token-0123456789")
        box.press("Enter")
        expect(page.locator("#state")).to_have_text("the token is wrong")
        box.fill("first-token-0123456789")
        box.press("Enter")
        expect(page.locator("#state")).to_have_text("live")
        expect(box).to_be_hidden()
        expect(page.locator("h2")).to_have_text("same")


def test_a_model_that_rests_is_named_and_names_stay_text(page: Page, bundle: Path) -> None:
    with serving(bundle) as server:

        def nasty(route: Any) -> None:
            data = route.fetch().json()
            data["models"][0] |= {"name": NASTY, "version": NASTY, "platform": NASTY, "state": NASTY}
            data["resting"] = [{"name": NASTY, "state": "UNAVAILABLE", "reason": "unloaded"}]
            route.fulfill(json=data)

        page.route("**/live.json", nasty)
        page.goto(server.url)
        expect(page.locator("h2")).to_have_text(NASTY)
        expect(page.locator("#resting")).to_have_text(f"{NASTY}: unloaded")
        assert page.locator("img").count() == 0


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(page: Page, bundle: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    with serving(bundle) as server:
        page.goto(server.url)
        expect(page.locator("h2")).to_have_text("same")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
