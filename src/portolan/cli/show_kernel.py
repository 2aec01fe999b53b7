"""The answer of `portolan kernel`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from portolan.cli.console import Answer
from portolan.cli.table import columns, number, plain

Json = Mapping[str, Any]


def kernels(data: Json, file: str, *, dry_run: bool = False) -> Answer:
    """What was built, a line for each kernel and shape class."""
    rows = data["kernels"]
    again = f"portolan kernel {shlex.quote(file)}"
    if dry_run:
        table = [["kernel", "sizes", "tile"], *([r["name"], _sizes(r), _tile(r)] for r in rows)]
        verdict = f"would tune {_count(rows)}; nothing was written"
        return Answer(plain([*columns(table), "", *_languages(data)]), verdict, next=[again], notes=_missing(data))
    if any("latency" not in row for row in rows):
        return _crossed(rows, data.get("language"))
    heads = ["kernel", "sizes", "time", "GFLOP/s", "GB/s", "error", "tile"]
    table = [heads, *(_row(r) for r in rows)]
    failed = sum(r["trials"]["failed"] for r in rows)
    notes = (
        [f"{failed} of {sum(r['trials']['tried'] for r in rows)} schedules failed and were left out"] if failed else []
    )
    seconds = sum(r["seconds_tuning"] for r in rows)
    how = "tuned before" if all(r["cached"] for r in rows) else f"tuned in {seconds:.1f} s"
    show = f"{again} --emit c"
    verdict = f"{_count(rows)} checked against the oracle and {how}"
    return Answer(plain(columns(table, right=frozenset({3, 4}))), verdict, next=[show], notes=notes)


def functions(data: Json, *, dry_run: bool = False) -> Answer:
    """Kernels that were written as ONNX functions."""
    rows = data["kernels"]
    table = [["kernel", "operators", "error", "file"]]
    table += [[r["name"], str(r["operators"]), f"{r['max_abs_error']:.1e}", r["onnx"] or "-"] for r in rows]
    how = "nothing was written" if dry_run else "any ONNX runtime runs these files"
    return Answer(
        plain(columns(table, right=frozenset({1}))),
        f"{_count(rows)} checked against the oracle as ONNX functions; {how}",
    )


def embedded(data: Json, file: str) -> Answer:
    """A model with kernels and without, on each runtime."""
    table = [["runtime", "without", "with the kernels", "as fast", "verdict", "error"]]
    for row in data["backends"]:
        ratio = row["ratio"]
        # The race says time over time; people read how many times as fast.
        shown = f"{1 / ratio['ratio']:.3g}x ({1 / ratio['hi']:.3g} to {1 / ratio['lo']:.3g})"
        times = [number(row[key], n=True) for key in ("before", "after")]
        table.append([row["name"], *times, shown, ratio["verdict"], f"{row['max_error']:.1e}"])
    notes = [
        f"kernel `{r['name']}`: {r['nodes']} node{'s' * (r['nodes'] != 1)}, {_sizes(r)}, error {r['max_abs_error']:.1e}"
        for r in data["kernels"]
    ]
    best = [r["name"] for r in data["backends"] if r["ratio"]["verdict"] == "faster"]
    faster = f"faster in {', '.join(best)}" if best else "no runtime is faster with them"
    bundle = data["bundle"]
    again = f"portolan kernel {shlex.quote(file)} --for {shlex.quote(data['model'])} -o model.portolan"
    following = [f"portolan serve {shlex.quote(bundle['bundle'])} --native"] if bundle else [again]
    where = f"; `{bundle['bundle']}` carries them" if bundle else ""
    return Answer(plain(columns(table)), f"{_count(data['kernels'])} verified: {faster}{where}", following, notes)


_LEVELS = {
    "print": "is printed only",
    "compile": "is compiled, not run",
    "check": "is checked, not timed",
    "time": "runs here",
}


def _languages(data: Json) -> list[str]:
    """Of each language, what can be done with it here."""
    return columns([[row["name"], _LEVELS[row["level"]], row["version"]] for row in data["languages"]])


def _missing(data: Json) -> list[str]:
    """Why there is not more, and what adds it."""
    rows = [row for row in data["languages"] if row["reason"]]
    return ["; ".join(filter(None, (f"{row['name']}: {row['reason']}", row["fix"]))) for row in rows]


def _crossed(rows: list[Json], language: Json | None) -> Answer:
    """Kernels for what is not here, or is only imitated."""
    errors = ["not tried" if r["max_abs_error"] is None else f"{r['max_abs_error']:.1e}" for r in rows]
    table = [["kernel", "for", "error", "file"]]
    table += [[r["name"], r["target"], e, r["artefact"]] for r, e in zip(rows, errors, strict=True)]
    tried = all(r["max_abs_error"] is not None for r in rows)
    where = f"under {language['version']}" if language else "where they run"
    how = f"checked against the oracle {where}" if tried else "compiled only: nothing here runs them"
    notes = [str(language["reason"])] if language and language["reason"] else []
    return Answer(plain(columns(table)), f"{_count(rows)} {how}", notes=notes)


def _row(row: Json) -> list[str]:
    error = f"{row['max_abs_error']:.1e}"
    rates = [f"{row[key]:.3g}" for key in ("gflops", "gbytes_per_s")]
    return [row["name"], _sizes(row), number(row["latency"], n=True), *rates, error, _tile(row)]


def _sizes(row: Json) -> str:
    return " ".join(f"{name}={size}" for name, size in row["sizes"].items())


def _tile(row: Json) -> str:
    parts = []
    for schedule in row["schedule"]:
        rows = f"{schedule['tile_rows']} {schedule['rows']} x " if schedule["rows"] else ""
        vector = schedule["vector"] or "none"
        parts.append(f"{rows}{schedule['tile_vectors'] * schedule['lanes']} {vector}")
    return ", ".join(parts)


def _count(rows: list[Json]) -> str:
    names = {row["name"] for row in rows}
    return f"{len(names)} kernel{'s' * (len(names) != 1)}"
