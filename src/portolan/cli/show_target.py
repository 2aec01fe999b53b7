"""What `target` says to people, made from its JSON object alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portolan.cli.console import Answer
from portolan.cli.table import columns, plain, quantity

Json = Mapping[str, Any]
#: Packages that `show` lists; `--json` has all.
_SHOWN = ("onnxruntime", "onnxruntime-web", "python3.13-minimal", "numpy", "onnx", "qemu-user", "node", "chromium")


def targets(data: Json, *, dry_run: bool = False) -> Answer:
    """The answer of `target`, whatever was asked."""
    found = data["targets"]
    if data["action"] == "list":
        return _list(found)
    made = found[0]
    if data["action"] == "remove":
        verb = "would remove" if dry_run else "removed"
        tail = "; nothing was removed" if dry_run else ""
        return Answer((), f"{verb} the target `{made['name']}`, {quantity(made['size'], 'B')}{tail}")
    if dry_run and data["action"] == "add":
        lines = plain([f"  {item}" for item in made["fetches"]] or ["  nothing to fetch"])
        return Answer(lines, f"would make the target `{made['name']}` in `{made['folder']}`; nothing was written")
    rows = _facts(made)
    if data["action"] == "show" and "outdated" in made:
        rows.append(["outdated", ", ".join(made["outdated"])])
        return Answer(plain(columns(rows)), f"`{made['name']}` is of an older Portolan", next=[made["fix"]])
    if data["action"] == "show":
        return Answer(plain(columns(rows)), f"`{made['name']}` is whole")
    verdict = f"added the target `{made['name']}`: it answers a small model rightly"
    return Answer(plain(columns(rows)), verdict, next=[f"portolan doctor {made['name']}"])


def _list(found: list[Json]) -> Answer:
    if not found:
        return Answer((), "no target was added", next=["portolan target add haswell --emulate haswell"])
    rows = [["target", "kind", "", "size"]]
    for item in found:
        if "reason" in item:
            rows.append([item["name"], "broken", f"{item['reason']}: {item['fix']}", "-"])
        else:
            older = f", outdated: {item['fix']}" if "outdated" in item else ""
            about = f"{item['target']['display']}{older}"
            rows.append([item["name"], item["emulate"], about, quantity(item["size"], "B")])
    one = len(found) == 1
    return Answer(plain(columns(rows)), f"{len(found)} target{'' if one else 's'} added")


def _facts(made: Json) -> list[list[str]]:
    target = made["target"]
    packages = [f"{name} {made['packages'][name]}" for name in _SHOWN if name in made["packages"]]
    return [
        ["target", f"{made['name']}: {target['display']}"],
        ["", f"{target['kind']}, {target['arch']}, fingerprint {target['fingerprint']}"],
        ["holds", ", ".join(packages)],
        ["folder", f"{made['folder']}, {quantity(made['size'], 'B')}"],
        ["reached by", " ".join(target["reach"])],
    ]
