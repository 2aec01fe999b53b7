"""The answer of `portolan env`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portolan.cli.console import Answer, Line
from portolan.cli.table import columns, plain, quantity

Json = Mapping[str, Any]
_DONE = {"add": "ready", "repair": "repaired", "remove": "removed"}


def environments(data: Json, *, dry_run: bool = False, verbose: bool = False) -> Answer:
    """Which environments there are, or what was done to them; with `verbose`, every package and its licence."""
    rows, action = data["environments"], data["action"]
    lines = plain(columns([["environment", "state", "version", "size", ""], *(_row(r) for r in rows)]))
    if verbose or dry_run or action in ("add", "repair"):
        for row in rows:
            lines += [Line(""), Line(row["about"])]
            packages = [["", p["name"], p["version"], p["licence"]] for p in row["packages"]]
            lines += plain(columns(packages))
    names = ", ".join(row["name"] for row in rows)
    if action == "list":
        ready = [row for row in rows if row["state"] == "ready"]
        fixes = [row["fix"] for row in rows if row["fix"]]
        size = sum(row["size"] or 0 for row in ready)
        verdict = f"{len(ready)} of {len(rows)} environments in `{data['root']}`, {quantity(size, 'B')}"
        return Answer(lines, verdict, next=fixes[:1] or ["portolan doctor"])
    if dry_run:
        return Answer(lines, f"would {action} {names} in `{data['root']}`; nothing was written")
    return Answer(lines, f"{names}: {_DONE[action]}", next=["portolan doctor"])


def _row(row: Json) -> list[str]:
    size = "-" if row["size"] is None else quantity(row["size"], "B")
    why = f"{row['reason']}: {row['fix']}" if row["reason"] else row["fix"] or ""
    return [row["name"], row["state"], row["version"] or "-", size, why]
