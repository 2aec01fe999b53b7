"""The page: one HTML file with its styles, scripts and data inside, which a policy keeps off the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from portolan.reports import sections, serving, words
from portolan.reports.html import embed, esc, rich, source_hash, table, tag
from portolan.reports.reading import Reading
from portolan.reports.views import view

_ROSE = (
    '<svg class="rose" viewBox="-10 -10 20 20" width="20" height="20" aria-hidden="true">'
    '<circle r="9" fill="none"/><path d="M0-9 2-2 9 0 2 2 0 9-2 2-9 0-2-2Z"/></svg>'
)


def asset(name: str) -> str:
    """A file of the package's `assets` folder."""
    return (resources.files("portolan.reports") / "assets" / name).read_text(encoding="utf-8")


def page(readings: Sequence[Reading], studies: Sequence[Mapping[str, Any]]) -> str:
    """The whole file.

    Args:
        readings: the studies, read.
        studies: the same studies as given, for the raw data.
    """
    style = asset("report.css")
    charts = f"/*\nd3: https://d3js.org\n{asset('d3.LICENSE')}*/\n{asset('d3.min.js')}"
    scripts = [charts, *map(asset, ("chart.js", "scatter.js", "report.js"))]
    name = readings[0].name if len(readings) == 1 else f"{len(readings)} studies"
    data = embed({"studies": list(studies), "views": [view(reading) for reading in readings]})
    body = [
        _masthead(name),
        _summary(readings) if len(readings) > 1 else "",
        tag("main", "".join(_study(i, reading) for i, reading in enumerate(readings, 1))),
        _footer(),
        f'<script type="application/json" id="portolan-data">{data}</script>',
        *(f"<script>{script}</script>" for script in scripts),
    ]
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, scripts)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="referrer" content="no-referrer">',
        '<link rel="icon" href="data:,">',
        f"<title>{esc(name)} · Portolan</title>",
        f"<style>{style}</style>",
    ]
    return f'<!doctype html>\n<html lang="en">\n<head>\n{_lines(head)}</head>\n<body>\n{_lines(body)}</body>\n</html>\n'


def _lines(parts: Sequence[str]) -> str:
    return "".join(f"{part}\n" for part in parts if part)


def _policy(style: str, scripts: Sequence[str]) -> str:
    hashes = " ".join(map(source_hash, scripts))
    return (
        f"default-src 'none'; script-src {hashes}; style-src {source_hash(style)}; img-src data:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def _masthead(name: str) -> str:
    brand = tag("span", f"{_ROSE} Portolan", class_="brand")
    return tag("div", f"{brand}<h1>{esc(name)}</h1>", class_="masthead")


def _summary(readings: Sequence[Reading]) -> str:
    """The studies side by side, each linked to its part of the page."""
    met = sum(reading.met for reading in readings)
    rows = [
        [
            tag("a", esc(reading.name), href=f"#study-{i}"),
            esc(reading.target.get("display") or reading.target.get("id") or ""),
            "goals met" if reading.met else "goals not met" if reading.shown else "no valid result",
            rich(reading.shown.title) if reading.shown else "",
            *_gains(reading),
        ]
        for i, reading in enumerate(readings, 1)
    ]
    head = ["Study", "Target", "Verdict", "Best or closest", "Latency", "Size"]
    title = f"<h2>{len(readings)} studies: {met} met the goals, {len(readings) - met} did not</h2>"
    return tag("nav", title + table(head, rows, class_="studies"), class_="summary", aria_label="Studies")


def _gains(reading: Reading) -> list[str]:
    return [esc(change.text) for change in (words.speed(reading), words.moved(reading, "size"))]


def _study(number: int, reading: Reading) -> str:
    parts = [
        sections.verdict(reading),
        _part("Goals", sections.goals(reading)),
        _part("Before and after", sections.comparison(reading)),
        "" if reading.serving is None else _part("Serving", serving.section(reading.serving, reading)),
        _part("Trials", _explorer(reading), "explorer"),
        _part("Refused, and why", sections.reasons(reading, "refused")),
        _part("Failed, and why", sections.reasons(reading, "failed")),
        _part("Noise and environment", sections.environment(reading)),
        _part("Raw data", _raw(reading), "raw"),
    ]
    return tag("article", "".join(parts), class_="study", id=f"study-{number}", aria_label=reading.name)


def _part(title: str, inner: str, kind: str | None = None) -> str:
    return tag("section", f"<h3>{title}</h3>{inner}", class_=kind)


def _explorer(reading: Reading) -> str:
    """Room for the chart and the details, which need the script, and the table, which does not."""
    wide = '<div class="chart" data-part="chart"></div><aside class="details" data-part="details"></aside>'
    return f'<div class="board">{wide}<div class="list" data-part="list">{sections.trials(reading)}</div></div>'


def _raw(reading: Reading) -> str:
    command = f"<p>This repeats the study:</p><pre>{esc(reading.command)}</pre>" if reading.command else ""
    without = "Without scripts, the data is in this file's source, in the element <code>portolan-data</code>."
    return f'{command}<div data-part="raw"></div><p class="without">{without}</p>'


def _footer() -> str:
    return tag(
        "footer",
        "Numbers without a mark are measured; <b>~</b> is estimated, <b>≈</b> is predicted. "
        "± is half of the 95% interval; a lopsided one is written with both ends. "
        "n is the number of readings. A limit is met only if the whole interval meets it.",
    )
