"""The page of who wins where, and what race_runtimes.py prints."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "who-wins-where.md"
#: What the answer is called in a race, where it is more than a backend with options.
ANSWER = "answer"
_PEERS = ("ort-transformers", "olive", "torch eager", "torch.compile")


def host() -> str:
    """The processor as the kernel calls it, and how many cores there are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "processor")
    return f"{platform.machine()}, {name}, {os.cpu_count()} cores"


def slower(row: Mapping[str, Any]) -> list[str]:
    """The backends and peers that are faster than the answer beyond the noise."""
    return [str(ratio["a"]) for ratio in row["ratios"] if ratio["verdict"] == "faster"]


def show(name: str, row: Mapping[str, Any]) -> None:
    """One model, in a few lines."""
    against = {ratio["a"]: ratio for ratio in row["ratios"]}
    for one, latency in sorted(row["times"].items(), key=lambda item: item[1]["value"]):
        ratio = against.get(one)
        word = "the answer" if ratio is None else _against(ratio)
        print(f"{name:12} {one:16} {latency['value']:8.3g} ms  {word}")
    for one, ms in row["beaten"].items():
        print(f"{name:12} {one:16} {ms:8.3g} ms  and not raced")
    for one, why in row["out"].items():
        print(f"{name:12} {one:16} out: {why[:110]}")
    print(f"{name:12} A/A {row['noise']['aa_ratio']}; slower than: {', '.join(slower(row)) or 'none'}", flush=True)


def _against(ratio: Mapping[str, Any]) -> str:
    return f"{ratio['ratio']:.3f} [{ratio['lo']:.3f}, {ratio['hi']:.3f}] {ratio['verdict']}"


def write(rows: Mapping[str, Any], order: Sequence[str]) -> str:
    """Writes the page into the docs; its name."""
    PAGE.write_text(page(rows, order), encoding="utf-8")
    return PAGE.name


def page(rows: Mapping[str, Any], order: Sequence[str]) -> str:
    """The reference page: a table of times, the fastest of each model in bold, and why others are not in it."""
    names = [name for name in order if name in rows]
    first = rows[names[0]]
    seen = sorted({one for row in rows.values() for one in (*row["times"], *row["beaten"])})
    columns = [one for one in seen if one not in (*_PEERS, ANSWER)] + [one for one in _PEERS if one in seen]
    dates = sorted({row["date"] for row in rows.values()})
    budget, seconds = first["budget"]
    others = [f"{n} {' and '.join(rows[n]['budget'])}" for n in names if rows[n]["budget"] != first["budget"]]
    lines = [
        "<!-- Written by benchmarks/race_runtimes.py: run it with --write. -->", "", "# Who wins where", "",
        "For each model, `optimize` searched the backends and the passes that leave answers alone, and one interleaved",
        "race over fresh processes set its answer beside each backend with the untouched model, at its best options of",
        "that search, and beside peers' defaults of the same fidelity. Median milliseconds of one inference, batch 1.",
        "Bold is the fastest; `=` marks what the race could not tell from the answer; in parentheses is what was",
        "measured of one that was not raced: it took more than twice the time of the fastest backend in the search,",
        "or three times before it, or was the slowest where the race had no time for five starts of all. Weights are",
        "random but MiniLM's and the tree's, which is good for speed alone. A race of fewer than five starts claims",
        "nothing: there all others are `=`.", "",
        f"Measured on {' and '.join(dates)}, {first['host']}, a virtual machine, by",
        "`python benchmarks/race_runtimes.py ZOO --prepare` and then, with nothing beside it,",
        f"`python benchmarks/race_runtimes.py ZOO --budget {budget} --race {seconds} --write`. ZOO is made by",
        "`python benchmarks/models.py ZOO`." + (f" Other times: {', '.join(others)}." if others else ""), "",
        "Versions: " + ", ".join(f"{n} {v}" for n, v in sorted(first["versions"].items())) + ".", "",
        f"| model | answer | {' | '.join(columns)} | slower than |", f"|---|---|{'---|' * len(columns)}---|",
        *(_line(name, rows[name], columns) for name in names),
        "", "The peers: `ort-transformers` is the file that ONNX Runtime's own optimizer of transformers writes",
        "(Optimum's `-O2` calls it), `olive` the one of Olive's passes for f32 on CPUs, both on ONNX Runtime's",
        "defaults; `torch eager` and `torch.compile` run the exported program with torch's defaults. The defaults of",
        "ONNX Runtime, OpenVINO and the other backends are among the options that were searched.", "",
        "## What was chosen", "", "| model | passes | backend | options other than its defaults |", "|---|---|---|---|",
        *(f"| {name} | {_recipe(rows[name]['recipe'])} |" for name in names),
        "", "## Not in the race", "", "| model | who | why |", "|---|---|---|",
        *(f"| {name} | {one} | {_cell(why)} |" for name in names for one, why in rows[name]["out"].items()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _recipe(recipe: Mapping[str, Any]) -> str:
    from portolan.core import registry

    passes = " + ".join(f"`{step['name']}`" for step in recipe["passes"]) or "none"
    usual = registry.backend(recipe["backend"]).schema.check({})
    other = {key: value for key, value in recipe["options"].items() if usual.get(key) != value}
    return f"{passes} | `{recipe['backend']}` | {', '.join(f'{key} {value}' for key, value in other.items()) or 'none'}"


def _cell(why: str) -> str:
    return (why.replace("|", "/").splitlines() or [""])[0][:200]


def _line(name: str, row: Mapping[str, Any], columns: Iterable[str]) -> str:
    known = {one: latency["value"] for one, latency in row["times"].items()}
    fastest = min(known, key=lambda one: known[one])
    same = {ratio["a"] for ratio in row["ratios"] if ratio["verdict"] == "no significant difference"}

    def cell(one: str) -> str:
        text = f"{known[one]:.3g}" if one in known else "-"
        text = f"({row['beaten'][one]:.3g})" if one in row["beaten"] else text
        text = f"**{text}**" if one == fastest else text
        return f"{text} =" if one in same else text

    cells = map(cell, (row["chosen"], *columns))
    return f"| {name} | {' | '.join(cells)} | {', '.join(slower(row)) or 'none'} |"
