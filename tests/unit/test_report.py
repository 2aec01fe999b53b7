from __future__ import annotations

import copy
import hashlib
import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from portolan.errors import UsageError
from portolan.reports import render, words, write
from portolan.reports.html import source_hash
from portolan.reports.page import asset
from portolan.reports.reading import read
from portolan.reports.sections import columns, trials

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def study() -> dict[str, Any]:
    return json.loads((GOLDEN / "study.json").read_text())


@pytest.fixture
def unmet() -> dict[str, Any]:
    return json.loads((GOLDEN / "study_unmet.json").read_text())


class Page(HTMLParser):
    """The elements of a page, its visible text, and the text of each script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[tuple[str, dict[str, str | None], str]] = []
        self.text = ""
        self._inside: tuple[str, dict[str, str | None]] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = (tag, dict(attrs)) if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.inline.append((*self._inside, data))
        else:
            self.text += data

    def data(self) -> dict[str, Any]:
        return json.loads(next(text for _, attrs, text in self.inline if attrs.get("id") == "portolan-data"))


def headline(study: dict[str, Any]) -> str:
    return words.verdict(read(study)).headline


BEST = "`simplify + quantize(bits=8, scheme=static, per_channel=true)` on `openvino` (threads=2)"


class TestVerdict:
    def test_met(self, study: dict[str, Any]) -> None:
        want = f"Goals met: {BEST} is 2.82x (2.76 to 2.87) faster and 3.94x smaller than the baseline."
        assert headline(study) == want

    def test_a_race_counts_in_either_direction_and_by_id(self, study: dict[str, Any]) -> None:
        study["ratios"] = [
            {"a": "0", "b": "10", "metric": "latency_p50", "ratio": 2.0, "lo": 1.9, "hi": 2.1, "verdict": "slower"}
        ]
        assert "is 2.0x (1.9 to 2.1) faster and" in headline(study)

    def test_without_a_race_the_ratio_is_an_estimate(self, study: dict[str, Any]) -> None:
        study["ratios"] = []
        assert "is ~2.82x faster and 3.94x smaller" in headline(study)

    def test_slower_is_said(self, study: dict[str, Any]) -> None:
        study["ratios"] = [
            {"a": "best", "b": "baseline", "metric": "latency_p50", "ratio": 1.25, "lo": 1.2, "hi": 1.3, "verdict": "x"}
        ]
        assert "is 1.25x (1.20 to 1.30) slower and 3.94x smaller" in headline(study)

    def test_no_significant_difference_is_a_result(self, study: dict[str, Any]) -> None:
        study["ratios"] = [
            {
                "a": "best",
                "b": "baseline",
                "metric": "latency_p50",
                "ratio": 0.99,
                "lo": 0.97,
                "hi": 1.01,
                "verdict": "no significant difference",
            }
        ]
        said = headline(study)
        assert said.startswith(f"Goals met: {BEST}, 3.94x smaller than the baseline, with no significant difference")
        assert "faster" not in said

    def test_the_baseline_itself(self, study: dict[str, Any]) -> None:
        study |= {"best": study["baseline"], "goals": ["min latency_p50"]}
        want = (
            "Goals met by the baseline, the untouched model on `onnxruntime`: no other trial that meets them is better."
        )
        assert headline(study) == want

    def test_a_noisy_run_claims_no_speed(self, study: dict[str, Any]) -> None:
        study["noise"] = {"aa_ratio": 1.06, "lo": 1.02, "hi": 1.1, "ok": False}
        assert headline(study) == f"Goals met: {BEST} is 3.94x smaller than the baseline."
        page = Page(render([study]))
        assert "faster" not in page.text
        assert "too noisy to claim" in page.text
        assert "The run was noisy, so no speed is claimed." in page.text

    def test_what_the_budget_left_out_is_named_by_reason(self, study: dict[str, Any]) -> None:
        late, cut = "the budget was over before its turn", "the budget was over while it was being built"
        study["untried"] = [
            {"recipe": {"backend": "tvm"}, "reason": late},
            {"recipe": {"backend": "torch", "passes": [{"name": "simplify"}]}, "reason": cut},
            {"recipe": {"backend": "<b>iree"}, "label": {"passes": "-", "backend": "<b>iree"}, "reason": late},
        ]
        more = "A larger `--budget` has time for more."
        assert words.verdict(read(study)).notes[-2:] == (
            f"Not tried, {late}: the untouched model on `tvm`, the untouched model on `<b>iree`. {more}",
            f"Not tried, {cut}: `simplify` on `torch`. {more}",
        )
        page = render([study])
        assert "&lt;b&gt;iree" in page
        assert "<b>iree" not in page

    def test_unmet_names_the_closest(self, unmet: dict[str, Any]) -> None:
        want = (
            "Goals not met. Closest: `simplify` on `openvino` (precision=bf16): "
            "too slow, too large, agreement not shown, energy not measured."
        )
        assert headline(unmet) == want

    def test_a_single_miss_is_said_with_its_number(self, unmet: dict[str, Any]) -> None:
        unmet["goals"] = ["size <= 80MiB", "min latency_p50"]
        assert headline(unmet).endswith("too large (size 86.5 MiB, limit `size <= 80MiB`).")

    def test_nothing_valid(self, unmet: dict[str, Any]) -> None:
        unmet |= {"closest": None, "trials": unmet["trials"][-2:]}
        assert headline(unmet) == "No valid result: none of 3 trials could be measured."
        assert "no trial was valid" in render([unmet])

    def test_a_study_that_claims_more_than_its_numbers(self, study: dict[str, Any]) -> None:
        study["goals"] = ["latency_p95 < 1ms"]
        said = words.verdict(read(study))
        assert said.state == "missed"
        assert said.headline.startswith("Goals not met.")
        assert "its own numbers do not show it" in said.notes[0]


class TestGoals:
    def judged(self, study: dict[str, Any]) -> dict[str, words.Judgement]:
        reading = read(study)
        assert reading.shown is not None
        return {j.text: j for j in words.judge(reading, reading.shown)}

    def test_each_state(self, unmet: dict[str, Any]) -> None:
        judged = self.judged(unmet)
        assert {text: (j.state, j.why) for text, j in judged.items()} == {
            "latency_p95 < 2.5ms": ("missed", "1.8% beyond the limit"),
            "cosine >= 0.99": ("met", "the value is inside the limit"),
            "size <= 80MiB": ("missed", "8.1% beyond the limit"),
            "agreement >= 99%": ("not shown", "the interval, 98.7 to 99.5%, reaches past the limit"),
            "energy < 1J": ("not measured", "a metric that was not measured never meets a limit"),
            "min latency_p50": ("ranked", "objectives rank only trials that meet every limit"),
        }

    def test_met_with_an_interval(self, study: dict[str, Any]) -> None:
        judged = self.judged(study)["latency_p95 < 8ms"]
        assert judged.value == "6.89 ms ±0.07 (n=520)"
        assert judged.why == "the whole interval, 6.82 to 6.96 ms, is inside the limit"

    def test_far_misses_and_points(self, study: dict[str, Any]) -> None:
        study["goals"] = ["latency_p95 < 1ms", "accuracy_drop <= -1%", "min size"]
        judged = self.judged(study)
        assert judged["latency_p95 < 1ms"].why == "far beyond the limit: 6.89 ms ±0.07"
        assert judged["accuracy_drop <= -1%"].why == "1.3 points beyond the limit"

    def test_an_objective_that_another_trial_wins(self, study: dict[str, Any]) -> None:
        study["goals"] = ["min memory"]
        assert self.judged(study)["min memory"].why == "trial 11 reaches 176 MiB; see the front"

    def test_not_a_number_is_a_miss(self, study: dict[str, Any]) -> None:
        study["best"]["metrics"]["latency_p95"] = {"value": None, "unit": "ms", "kind": "measured"}
        judged = self.judged(study)["latency_p95 < 8ms"]
        assert (judged.state, judged.value) == ("missed", "not a number")


class TestWords:
    def test_estimates_and_predictions_are_marked(self, study: dict[str, Any]) -> None:
        page = Page(render([study]))
        shown = {t["id"]: t for t in page.data()["views"][0]["trials"]}
        assert shown[10]["metrics"]["energy"]["text"] == "~0.14 J ±0.02"
        assert shown[16]["metrics"]["latency_p50"]["text"].startswith("≈")
        assert "~2.75x less" in page.text

    def test_without_labels_nothing_is_called_accuracy(self, unmet: dict[str, Any]) -> None:
        unmet["closest"]["metrics"]["accuracy"] = {"value": 0.9, "unit": "share", "kind": "measured"}
        page = Page(render([unmet]))
        views = json.dumps(page.data()["views"])
        assert "accuracy" not in page.text.lower()
        assert "accuracy" not in views.lower()
        assert "Quality is agreement with the original model on 1,000 samples. No labels were given" in page.text

    def test_synthetic_data_is_said(self, unmet: dict[str, Any], study: dict[str, Any]) -> None:
        assert "The inputs are synthetic" in Page(render([unmet])).text
        assert "synthetic" not in Page(render([study])).text

    def test_a_cosine_is_not_rounded_to_perfect(self, unmet: dict[str, Any]) -> None:
        assert read(unmet).shown.metrics["cosine"].short == "0.9996"

    def test_noise_in_words(self, study: dict[str, Any]) -> None:
        noise = read(study).noise
        assert noise is not None
        want = (
            "Two identical arms differed by +0.3% (interval −0.8% to +1.5%): ok. "
            "Differences inside that interval are called no significant difference."
        )
        assert words.noise_sentence(noise) == want

    def test_an_unknown_noise_floor_is_said(self, study: dict[str, Any]) -> None:
        del study["noise"]
        assert "so the noise floor of this machine is not known" in Page(render([study])).text

    def test_quality_changes_in_points(self, study: dict[str, Any]) -> None:
        text = Page(render([study])).text
        assert "−1.60 points" in text
        assert "no significant difference" in text


class TestPage:
    def test_reads_without_scripts(self, study: dict[str, Any]) -> None:
        page = Page(render([study]))
        rows = [attrs for tag, attrs in page.tags if tag == "tr" and "data-trial" in attrs]
        assert [row["data-trial"] for row in rows][:2] == ["10", "4"]
        assert len(rows) == len(study["trials"])
        for text in ("Goals met:", "Refused, and why", "sparsity:2:4 is exploited by no backend", "signal SIGSEGV"):
            assert text in page.text

    def test_sections_in_order(self, study: dict[str, Any]) -> None:
        found = re.findall("<h3>(.*?)</h3>", render([study]))
        assert found == [
            "Goals",
            "Before and after",
            "Trials",
            "Refused, and why",
            "Failed, and why",
            "Noise and environment",
            "Raw data",
        ]

    def test_nothing_comes_from_outside(self, study: dict[str, Any]) -> None:
        page = Page(render([study]))
        for tag, attrs in page.tags:
            assert tag not in ("iframe", "object", "embed", "base", "form", "img")
            assert not [a for a in attrs if a.startswith("on") or a in ("style", "src", "srcset", "action")], (
                tag,
                attrs,
            )
            assert (attrs.get("href") or "#").startswith(("#", "data:,"))

    def test_the_policy_allows_these_scripts_and_styles_only(self, study: dict[str, Any]) -> None:
        page = Page(render([study]))
        policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
        assert policy is not None
        rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
        assert rules["default-src"] == rules["connect-src"] == ["'none'"]
        assert "unsafe" not in policy
        code = [(tag, text) for tag, attrs, text in page.inline if attrs.get("type") != "application/json"]
        assert [source_hash(text) for tag, text in code if tag == "script"] == rules["script-src"]
        assert [source_hash(text) for tag, text in code if tag == "style"] == rules["style-src"]

    def test_the_data_is_the_study(self, study: dict[str, Any]) -> None:
        assert Page(render([study])).data()["studies"] == [study]

    def test_refusals_are_counted(self, study: dict[str, Any]) -> None:
        text = render([study])
        assert '<span class="count">3</span> sparsity:2:4 is exploited by no backend on this target' in text

    def test_what_is_stored_and_what_it_becomes(self, study: dict[str, Any]) -> None:
        """Both sizes stand in the table where weights are stored packed, and only there."""
        for trial in (*study["trials"], study["baseline"], study["best"]):
            if size := trial["metrics"].get("size"):
                trial["metrics"]["resident"] = dict(size)
        assert "resident" not in columns(read(study))
        packed = study["best"]
        packed["metrics"]["resident"]["value"] = 40 * 2**20
        found = read(study)
        assert columns(found)[columns(found).index("size") + 1] == "resident"
        row = re.search(rf'<tr[^>]*data-trial="{packed["id"]}".*?</tr>', trials(found), re.S)
        assert row is not None
        assert "40.0 MiB" in row.group()

    def test_nothing_refused(self, study: dict[str, Any]) -> None:
        study["trials"] = [t for t in study["trials"] if t["status"] == "ok"]
        assert "Nothing was refused." in render([study])

    def test_several_studies(self, study: dict[str, Any], unmet: dict[str, Any]) -> None:
        page = Page(render([study, unmet]))
        assert "2 studies: 1 met the goals, 1 did not" in page.text
        assert [a["href"] for tag, a in page.tags if tag == "a"] == ["#study-1", "#study-2"]
        assert {"study-1", "study-2"} <= {a.get("id") for _, a in page.tags}

    def test_recipes_are_toml_and_can_be_read_back(self, study: dict[str, Any]) -> None:
        trial = next(t for t in Page(render([study])).data()["views"][0]["trials"] if t["id"] == 10)
        recipe = tomllib.loads(trial["toml"])
        assert recipe["passes"] == study["best"]["recipe"]["passes"]
        assert recipe["options"] == {"threads": 2}

    def test_a_recipe_that_toml_cannot_hold(self, study: dict[str, Any]) -> None:
        study["best"]["recipe"]["options"] = {"sizes": [1, None]}
        trial = next(t for t in Page(render([study])).data()["views"][0]["trials"] if t["id"] == 10)
        assert json.loads(trial["toml"])["options"] == {"sizes": [1, None]}

    def test_a_bare_study(self) -> None:
        trial = {"id": 0, "recipe": {"backend": "fake"}, "status": "ok"}
        bare = {"goals": [], "met": True, "baseline": trial, "best": trial, "closest": None, "trials": [trial]}
        text = Page(render([bare])).text
        assert "Goals met by the baseline" in text
        assert "No goals are recorded." in text

    def test_numbers_that_are_not_finite(self, study: dict[str, Any]) -> None:
        study["best"]["metrics"]["max_rel_error"] = {"value": float("nan"), "unit": "", "kind": "measured"}
        page = Page(render([study]))
        trial = next(t for t in page.data()["views"][0]["trials"] if t["id"] == 10)
        assert trial["metrics"]["max_rel_error"]["value"] is None
        assert "not a number" in page.text

    def test_the_size_stays_small(self, study: dict[str, Any]) -> None:
        assert len(render([study]).encode()) < 2**20


def test_the_vendored_library_is_the_recorded_one() -> None:
    recorded = tomllib.loads(asset("VERSIONS.toml"))["d3"]
    assert hashlib.sha256(asset(recorded["file"]).encode()).hexdigest() == recorded["sha256"]
    assert f"v{recorded['version']} " in asset(recorded["file"])[:60]
    assert "Permission to use, copy, modify" in render([json.loads((GOLDEN / "study.json").read_text())])


class TestWrite:
    def test_writes_and_returns_the_path(self, study: dict[str, Any], tmp_path: Path) -> None:
        path = write([study], tmp_path / "out" / "report.html")
        assert path.read_text(encoding="utf-8") == render([study])
        assert [p.name for p in path.parent.iterdir()] == ["report.html"]

    def test_overwrites_only_with_force(self, study: dict[str, Any], tmp_path: Path) -> None:
        path = tmp_path / "report.html"
        path.write_text("mine")
        with pytest.raises(UsageError) as caught:
            write([study], path)
        assert caught.value.message == f"`{path}` exists"
        assert caught.value.hint == "add `--force` to overwrite it, or name another file with `-o`"
        assert path.read_text() == "mine"
        assert write([study], str(path), force=True) == path
        assert path.read_text().startswith("<!doctype html>")

    def test_a_folder(self, study: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="is a folder"):
            write([study], tmp_path, force=True)

    def test_a_place_that_cannot_be_written(self, study: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="cannot be written"):
            write([study], tmp_path / "file" / "report.html")

    def test_a_failure_leaves_nothing_behind(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError):
            write([{"goals": []}], tmp_path / "report.html")
        assert list(tmp_path.iterdir()) == []


def _edit(study: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    edited = copy.deepcopy(study)
    *parents, last = path.split(".")
    inner: Any = edited
    for key in parents:
        inner = inner[int(key) if key.isdigit() else key]
    inner[last] = value
    return edited


@pytest.mark.parametrize(
    ("path", "value", "message", "where"),
    [
        ("trials", None, "this is not a study: it has no list of `trials`", "$[0]"),
        ("goals", "min size", "`goals` of the study has the wrong type", "$[0].goals"),
        ("goals", [3], "a goal of the study is not text", "$[0].goals[0]"),
        ("trials.1.id", None, "a trial of the study has no `id`", "$[0].trials[1]"),
        ("untried", {}, "`untried` of the study has the wrong type", "$[0].untried"),
        ("untried", [{"recipe": {}}], "a recipe that was not tried has no `reason`", "$[0].untried[0]"),
        ("untried", [{"recipe": {"pass": []}, "reason": ""}], "a recipe has no key `pass`", "$[0].untried[0].recipe"),
        ("trials.1.status", "odd", "a trial's `status` is none of ok, failed, refused", "$[0].trials[1].status"),
        ("trials.1.recipe", {"pass": []}, "a recipe has no key `pass`", "$[0].trials[1].recipe"),
        ("trials.1.metrics.size", 3, "a metric of the study cannot be read", "$[0].trials[1].metrics.size"),
        ("trials.1.metrics.size.kind", "felt", "a metric of the study cannot be read", "$[0].trials[1].metrics.size"),
        ("samples.10", 3, "samples are a list of numbers per start", "$[0].samples.10"),
        ("noise", None, None, None),
    ],
)
def test_what_is_not_a_study(study: dict[str, Any], path: str, value: Any, message: str, where: str) -> None:
    edited = _edit(study, path, value)
    if message is None:
        assert render([edited])
        return
    with pytest.raises(UsageError) as caught:
        render([edited])
    assert (caught.value.message, caught.value.where) == (message, where)
    assert caught.value.hint


def test_no_study_at_all() -> None:
    with pytest.raises(UsageError) as caught:
        render([])
    assert caught.value.hint == "run `portolan optimize` first"


class TestServing:
    @pytest.fixture
    def served(self) -> dict[str, Any]:
        return json.loads((GOLDEN / "study_served.json").read_text())

    def test_it_says_how_the_best_result_was_served(self, served: dict[str, Any]) -> None:
        text = Page(render([served])).text
        assert "The shown result was served with batch 8, 1 to 2 replicas, deadline 50 ms." in text
        assert "latency counts from when its call was due" in text

    def test_the_profile_is_drawn_and_written(self, served: dict[str, Any]) -> None:
        html = render([served])
        assert html.count('<rect class="after" x="0" y="2"') == 4
        assert "12.0 ms" in Page(html).text
        assert 'width="120.0"' in html

    def test_predictions_stand_beside_what_was_measured_with_their_mark(self, served: dict[str, Any]) -> None:
        html = render([served])
        assert "<td>≈27.0 ms</td><td>32 ms ±4</td>" in html
        assert "≈200 1/s" in html

    def test_every_run_is_listed_with_loadgens_verdict(self, served: dict[str, Any]) -> None:
        html = render([served])
        assert "<td>valid</td>" in html
        assert "<td>no answer</td><td>Early stopping satisfied: NO</td>" in html
        assert "late by up to 0.400 ms (p99)" in html

    def test_a_goal_under_load_is_judged_and_titled(self, served: dict[str, Any]) -> None:
        text = Page(render([served])).text
        assert "latency p99 at 200 qps" in text
        assert "latency_p99 < 50ms at 200 qps" in text

    def test_a_study_without_serving_has_no_such_part(self, study: dict[str, Any]) -> None:
        assert "<h3>Serving</h3>" not in render([study])
        assert "<h3>Serving</h3>" not in render([study | {"serving": None}])

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("profiles",), {}), (("profiles", 0), 3), (("profiles", 0, "profile", "batches"), {"x": {}}),
            (("profiles", 0, "profile", "batches"), {"1": 3}), (("choices",), "x"), (("choices", 0), None),
            (("choices", 0, "predicted"), []), (("runs", 0), []), (("runs", 0, "calls"), "many"),
            (("runs", 0, "why"), 3), (("runs", 0, "quantiles"), []),
            (("choices", 0, "recipe"), {"serving": {"max_batch": 0}}),
        ],
    )  # fmt: skip
    def test_what_does_not_fit_is_refused_with_its_place(
        self, served: dict[str, Any], path: tuple[Any, ...], value: Any
    ) -> None:
        place = served["serving"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(UsageError) as caught:
            render([served])
        assert "serving" in str(caught.value.where)

    @pytest.mark.parametrize(("key", "value"), [("rate", None), ("late", "x"), ("asked", []), ("scenario", 3)])
    def test_a_number_that_is_none_is_shown_as_such(self, served: dict[str, Any], key: str, value: Any) -> None:
        served["serving"]["runs"][0][key] = value
        assert "<h3>Serving</h3>" in render([served])
