"""The report in a real browser: that it works, stays off the network, and lets no name of a study run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from portolan.reports import write

pytestmark = pytest.mark.browser
GOLDEN = Path(__file__).parents[1] / "golden"
Open = Callable[..., Page]


def load(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text())


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens a report, and afterwards holds that nothing was logged, nothing failed and nothing was fetched."""
    said: list[str] = []
    fetched: list[str] = []
    contexts = []

    def go(*studies: dict[str, Any], **options: Any) -> Page:
        path = write(studies, tmp_path / f"report-{len(contexts)}.html")
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: fetched.append(request.url))
        fetched.append(f"expected {path.as_uri()}")
        page.goto(path.as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    expected = [url.removeprefix("expected ") for url in fetched if url.startswith("expected ")]
    others = [url for url in fetched if not url.startswith(("expected ", "blob:", "data:"))]
    assert others == expected, "the report fetched something"
    assert said == []


def visible(page: Page) -> list[int]:
    return [
        int(v) for v in page.eval_on_selector_all(".trials tbody tr:not([hidden])", "r => r.map(x => x.dataset.trial)")
    ]


def point(page: Page, trial: int) -> Locator:
    return page.locator(f'.point[data-trial="{trial}"]')


def row(page: Page, trial: int) -> Locator:
    return page.locator(f'.trials tr[data-trial="{trial}"]')


SELECTED = re.compile(r"\bselected\b")


def test_the_chart_shows_every_measured_trial(opened: Open) -> None:
    study = load("study.json")
    page = opened(study)
    ok = [t for t in study["trials"] if t["status"] == "ok"]
    expect(page.locator(".point")).to_have_count(len(ok))
    assert (page.locator("path.front").get_attribute("d") or "").count("L") >= 2
    assert page.locator(".limits line").count() == 2
    width = point(page, 7).locator(".error").first.evaluate("e => e.x2.baseVal.value - e.x1.baseVal.value")
    assert width > 2, "the interval of trial 7 is drawn"
    assert point(page, 10).get_attribute("class") == "point series s1 met best selected"


def test_axes_and_logarithms_can_be_chosen(opened: Open) -> None:
    page = opened(load("study.json"))
    assert page.locator("[data-log=x]").is_checked(), "912 ms beside 6 ms asks for a logarithm"
    assert page.locator("[data-log=y]").is_disabled(), "a drop of zero has no logarithm"
    page.select_option("[data-axis=y]", "size")
    assert page.locator(".stage .title").nth(1).text_content() == "size, MiB (lower is better)"
    before = point(page, 0).locator(".dot").get_attribute("transform")
    page.locator("[data-log=y]").check()
    assert point(page, 0).locator(".dot").get_attribute("transform") != before


def test_a_row_and_its_point_are_one_selection(opened: Open) -> None:
    page = opened(load("study.json"))
    expect(row(page, 10)).to_have_class(SELECTED)
    row(page, 4).click()
    expect(point(page, 4)).to_have_class(SELECTED)
    expect(point(page, 10)).not_to_have_class(SELECTED)
    expect(page.locator(".details h4")).to_have_text("Trial 4")
    point(page, 7).locator(".target").click()
    expect(row(page, 7)).to_have_class(SELECTED)
    expect(row(page, 7)).to_be_in_viewport()
    expect(row(page, 4)).not_to_have_class(SELECTED)
    expect(page.locator(".details h4")).to_have_text("Trial 7")


def test_hover_tells_the_recipe_and_its_numbers(opened: Open) -> None:
    page = opened(load("study.json"))
    point(page, 7).locator(".target").hover()
    tip = page.locator(".tip")
    expect(tip).to_contain_text("quantize(bits=8, scheme=dynamic)")
    expect(tip).to_contain_text("21.4 ms ±0.6")
    page.mouse.move(5, 5)
    expect(tip).to_be_hidden()


def test_columns_sort_both_ways_by_keyboard(opened: Open) -> None:
    page = opened(load("study.json"))
    button = page.get_by_role("button", name="size", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    head = page.locator(".trials th", has=button)
    assert head.get_attribute("aria-sort") == "ascending"
    sizes = page.eval_on_selector_all(
        ".trials tbody tr", "(rows, i) => rows.map(r => r.cells[i].dataset.v).filter(v => v !== undefined).map(Number)",
        head.evaluate("h => h.cellIndex"),
    )  # fmt: skip
    assert len(sizes) == 17
    assert sizes == sorted(sizes)
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert visible(page)[0] == 5
    assert visible(page)[-1] > 15, "what has no size stays last"


def test_filters_narrow_rows_and_dim_points(opened: Open) -> None:
    page = opened(load("study.json"))
    page.select_option("[data-filter=backend]", "torch")
    page.select_option("[data-filter=status]", "ok")
    assert visible(page) == [6, 5]
    expect(point(page, 0)).to_have_class(re.compile("dim"))
    expect(page.locator("output.count")).to_have_text("2 of 29 trials")
    page.select_option("[data-filter=backend]", "")
    page.select_option("[data-filter=status]", "")
    page.locator("[data-filter=text]").fill("SIGSEGV")
    assert visible(page) == [18, 19]
    page.locator("[data-filter=text]").fill("")
    page.select_option("[data-filter=status]", "met")
    assert visible(page) == [10, 4]


def test_a_box_filters_and_zooms(opened: Open) -> None:
    page = opened(load("study.json"))
    page.locator(".stage").scroll_into_view_if_needed()
    far = point(page, 15).locator(".target").bounding_box()
    assert far is not None
    x, y = far["x"] + far["width"] / 2, far["y"] + far["height"] / 2
    page.mouse.move(x - 25, y - 25)
    page.mouse.down()
    page.mouse.move(x + 20, y + 20, steps=4)
    page.mouse.up()
    assert visible(page) == [15]
    page.get_by_role("button", name="zoom in").click()
    expect(page.locator(".point")).to_have_count(1)
    page.get_by_role("button", name="clear box").click()
    expect(page.locator(".point")).to_have_count(16)
    assert len(visible(page)) == 29


def test_arrow_keys_step_through_the_points(opened: Open) -> None:
    page = opened(load("study.json"))
    page.locator(".stage").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".details h4")).not_to_have_text("Trial 10")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".details h4")).to_have_text("Trial 10")


def test_details_repeat_copy_and_strips(opened: Open) -> None:
    page = opened(load("study.json"), permissions=["clipboard-read", "clipboard-write"])
    details = page.locator(".details")
    expect(details).to_contain_text("6.45 to 6.55 ms")
    expect(details).to_contain_text("race: seconds 18, starts 5, blocks 4")
    assert details.locator(".strips .median").count() == 5
    assert details.locator(".strips .reading").count() == 140
    details.locator(".copy").first.click()
    expect(details.locator(".copy").first).to_have_text("copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "portolan bench resnet50.onnx --recipe study-resnet50/recipes/10.toml --data val/ --seed 0"


def test_the_raw_data_downloads_whole(opened: Open) -> None:
    study = load("study.json")
    page = opened(study)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download the study").click()
    assert waiting.value.suggested_filename == "resnet50-fixture-.json"
    assert json.loads(Path(waiting.value.path()).read_text()) == study
    page.locator(".raw summary").click()
    assert json.loads(page.locator(".json").text_content() or "") == study


def test_the_unmet_study(opened: Open) -> None:
    page = opened(load("study_unmet.json"))
    expect(page.locator(".headline")).to_contain_text("Goals not met. Closest:")
    expect(page.locator(".details h4")).to_have_text("Trial 2")
    expect(point(page, 2)).to_have_class(re.compile("unmet closest"))


def test_studies_side_by_side(opened: Open) -> None:
    page = opened(load("study.json"), load("study_unmet.json"))
    expect(page.locator("#study-1 .headline")).to_be_visible()
    expect(page.locator("#study-2")).to_be_hidden()
    page.get_by_role("link", name="minilm").click()
    expect(page.locator("#study-2 .point")).to_have_count(5)
    expect(page.locator("#study-1")).to_be_hidden()
    page.go_back()
    expect(page.locator("#study-1 .headline")).to_be_visible()


def test_a_study_without_results(opened: Open) -> None:
    study = load("study_unmet.json")
    refused = [t for t in study["trials"] if t["status"] != "ok"]
    page = opened(study | {"baseline": None, "closest": None, "trials": refused})
    expect(page.locator(".headline")).to_contain_text("No valid result")
    assert visible(page) == [5, 6]


NAMES = [
    "</script><script>window.owned=1</script>",
    '<img src="http://example.invalid/x" onerror="window.owned=1">',
    "<svg onload=window.owned=1>",
]


@pytest.mark.parametrize("attack", NAMES)
def test_hostile_names_stay_text(opened: Open, attack: str) -> None:
    study = load("study.json")
    best = next(t for t in study["trials"] if t["id"] == 10)
    for trial in (study["best"], best):
        trial |= {"reason": attack, "command": attack, "stages": [attack, {"name": attack, attack: 1}]}
        trial["recipe"]["options"][attack] = attack
        trial["recipe"]["passes"].append({"name": attack})
        trial["metrics"][attack] = {"value": 1.0, "unit": attack, "kind": "measured"}
        trial["metrics"]["__proto__"] = {"value": 2.0, "unit": "", "kind": "measured"}
    study["trials"].append({"id": 99, "recipe": {"backend": attack}, "status": "failed", "reason": attack})
    study |= {"name": attack, "command": attack}
    study["model"]["name"] = study["target"]["display"] = attack
    study["environment"]["versions"][attack] = attack
    page = opened(study)
    point(page, 10).locator(".target").hover()
    row(page, 99).click()
    row(page, 10).click()
    page.select_option("[data-axis=y]", attack)
    page.locator(".raw summary").click()
    for fold in page.locator(".reasons summary").all():
        fold.click()
    assert page.evaluate("window.owned") is None
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 5
    expect(page.locator(".details")).to_contain_text(attack)


def test_dark_and_light(opened: Open) -> None:
    def paper(scheme: str) -> str:
        page = opened(load("study.json"), color_scheme=scheme)
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    assert paper("light") == "rgb(253, 252, 249)"
    assert paper("dark") == "rgb(18, 22, 27)"


@pytest.mark.parametrize("width", [320, 400, 768, 1280, 1920])
def test_no_width_overflows(opened: Open, width: int) -> None:
    study = load("study.json")
    study["name"] = "a_name_without_any_space_" * 12
    study["best"]["recipe"]["passes"].append({"name": "another_name_without_any_space_" * 8})
    page = opened(study, viewport={"width": width, "height": 800})
    expect(page.locator(".point")).to_have_count(16)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_scripts_the_words_and_tables_are_there(opened: Open) -> None:
    page = opened(load("study.json"), java_script_enabled=False)
    expect(page.locator(".headline")).to_contain_text("Goals met")
    expect(page.locator(".trials tbody tr")).to_have_count(29)
    expect(page.get_by_text("Without scripts, the data is in this file's source")).to_be_visible()


def test_print_shows_the_whole_table(opened: Open) -> None:
    page = opened(load("study.json"))
    page.emulate_media(media="print")
    expect(page.locator(".list .controls")).to_be_hidden()
    assert page.locator(".list .scroll").evaluate("e => e.scrollHeight <= e.clientHeight + 1")
    expect(page.get_by_role("button", name="size", exact=True)).to_be_visible()
