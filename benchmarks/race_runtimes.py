"""Who runs what fastest: `python benchmarks/race_runtimes.py ZOO [NAME...] [--budget 4min] [--write]`.

ZOO is the folder that `python benchmarks/models.py ZOO` fills; a gradient-boosted tree is made here. For each model,
with whatever backends and environments are there (`portolan doctor`): `optimize` searches them all with exact outputs,
then one interleaved race sets what it chose against every single backend at its best options in that search (its
defaults where the search did not come to it), over fresh processes. The answer must not be slower than any of them
beyond the noise.

Results go to ZOO/runtimes.json model by model: what is there is not raced again (`--again` does), and a search goes on
where it was. `--search` stops before the races, which want a machine that does nothing else. `--write` puts the table
of who wins where into docs/reference/who-wins-where.md. Exits 1 where the answer is slower than a backend.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import portolan
from portolan.errors import PortolanError

MODELS = ("resnet50", "mobilenetv2", "vit", "bert", "gpt2", "minilm", "lstm", "trees")
EXACT = "max_rel_error <= 0.001"
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "who-wins-where.md"
#: Never raced: the oracle and the test double are no runtimes that anybody would choose.
ASIDE = ("reference", "fake")
UNREACHED = "not reached in the budget"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--budget", default="4min", help="of each search and of each race")
    parser.add_argument("--search", action="store_true", help="only search and compile; a later run races")
    parser.add_argument("--again", action="store_true", help="race models that are in runtimes.json too")
    parser.add_argument("--write", action="store_true", help="write the table into the docs")
    given = parser.parse_args()
    if unknown := set(given.names) - set(MODELS):
        parser.error(f"no model named {', '.join(sorted(unknown))}: known are {', '.join(MODELS)}")
    kept = given.zoo / "runtimes.json"
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    for name in given.names or MODELS:
        if name not in rows or given.again:
            begin = time.monotonic()
            found = searched(name, given.zoo, given.budget)
            if not given.search:
                rows[name] = found | raced(found, given.zoo / f"bundles-{name}", given.budget)
                kept.write_text(json.dumps(rows, indent=1))
            print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
        if name in rows:
            show(name, rows[name])
    if given.write:
        PAGE.write_text(page(rows), encoding="utf-8")
        print(f"wrote {PAGE.name}")
    return int(any(slower(row) for row in rows.values()))


def searched(name: str, zoo: Path, budget: str) -> dict[str, Any]:
    """One model: the search over all backends, and a bundle of the best trial of each, the answer's first."""
    folder, kept = zoo / f"bundles-{name}", zoo / f"bundles-{name}" / "found.json"
    source, data = model(name, zoo)
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text())
        return enter_defaults(found, source, data, folder)
    ready = {row["name"]: row["version"] for row in portolan.doctor().backends if row["ready"]}
    backends = {one: version for one, version in ready.items() if one not in ASIDE and not simulated(one)}
    study = zoo / f"study-runtimes-{name}"
    told = portolan.optimize(
        source, goals=["min latency_p50", EXACT], data=data, study=study, budget=budget, backend=list(backends)
    ).to_json()
    answer = told["best"] or told["baseline"]
    best = best_of_each(told["trials"])
    best[answer["recipe"]["backend"]] = answer
    folder.mkdir(exist_ok=True)
    out = out_of_it(told["trials"], backends, best)
    for backend, trial in best.items():
        try:
            portolan.pack(study, trial=trial["id"], out=folder / f"{backend}.portolan", force=True)
        except PortolanError as error:
            out[backend] = error.message
    found = {
        "versions": backends,
        "host": f"{platform.machine()}, {processor()}",
        "chosen": answer["recipe"],
        "recipes": {backend: trial["recipe"] for backend, trial in best.items()},
        "seconds": told["seconds"],
        "out": out,
    }
    return enter_defaults(found, source, data, folder)


def enter_defaults(found: dict[str, Any], source: str, data: str, folder: Path) -> dict[str, Any]:
    """Backends that the search did not come to are raced with their default options; whether they can, shows now."""
    for backend in [name for name, why in found["out"].items() if why == UNREACHED]:
        try:
            portolan.pack(source, backend=backend, data=data, out=folder / f"{backend}.portolan", force=True)
            found["recipes"][backend] = {"passes": [], "backend": backend, "options": {}}
            del found["out"][backend]
        except PortolanError as error:
            found["out"][backend] = error.message
    (folder / "found.json").write_text(json.dumps(found, indent=1))
    return found


def raced(found: Mapping[str, Any], folder: Path, budget: str) -> dict[str, Any]:
    """The race of the bundles, what was chosen as the baseline."""
    chosen = found["chosen"]["backend"]
    others = sorted(path.stem for path in folder.glob("*.portolan") if path.stem != chosen)
    # Native code in a bundle runs for who packed it, which is this script.
    outcome = portolan.bench(*(folder / f"{n}.portolan" for n in (chosen, *others)), budget=budget, native=True)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "budget": budget,
        "arms": outcome.arms,
        "ratios": outcome.ratios,
        "noise": outcome.noise,
    }


def simulated(name: str) -> bool:
    """Whether nothing of a backend can be timed."""
    from portolan.core import registry

    return registry.backend(name).simulated


def model(name: str, zoo: Path) -> tuple[str, str]:
    """What `optimize` reads, and its data: the torch program where there is one, since some backends start from it."""
    if name == "trees":
        return trees(zoo)
    program, graph, data = (zoo / f"{name}.{end}" for end in ("pt2", "onnx", "npz"))
    return str(program if program.is_file() else graph), str(data)


def trees(zoo: Path) -> tuple[str, str]:
    """A gradient-boosted tree of 200 rounds on 30 features, through the front end of scikit-learn."""
    import numpy as np
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    path, data = zoo / "trees.onnx", zoo / "trees.npz"
    if not (path.is_file() and data.is_file()):
        rows = np.random.default_rng(0).standard_normal((4000, 30)).astype(np.float32)
        labels = (rows[:, :6].prod(axis=1) + rows[:, 6] > 0).astype(int)
        fitted = make_pipeline(StandardScaler(), GradientBoostingClassifier(n_estimators=200, random_state=0))
        made = portolan.load(fitted.fit(rows, labels), out=zoo, name="trees")
        np.savez(data, **{made.signature.inputs[0].name: rows[:256]})
    return str(path), str(data)


def best_of_each(trials: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Per backend, the fastest of its trials that keep the outputs."""
    found: dict[str, Mapping[str, Any]] = {}
    for trial in trials:
        latency = trial["metrics"].get("latency_p50")
        if trial["status"] != "ok" or not trial["met"] or latency is None:
            continue
        name = trial["recipe"]["backend"]
        if name not in found or latency["value"] < found[name]["metrics"]["latency_p50"]["value"]:
            found[name] = trial
    return found


def out_of_it(trials: Iterable[Mapping[str, Any]], backends: Iterable[str], best: Mapping[str, Any]) -> dict[str, str]:
    """Per backend without a place in the race, what the search was told of the untouched model on it."""
    reasons: dict[str, str] = {}
    for trial in trials:
        name, recipe = trial["recipe"]["backend"], trial["recipe"]
        plain = not recipe["passes"] and recipe["options"].get("precision", "f32") == "f32"
        if name not in best and plain and trial.get("reason"):
            reasons.setdefault(name, trial["reason"])
    return {name: reasons.get(name, UNREACHED) for name in backends if name not in best}


def processor() -> str:
    """What the kernel calls the processor, and how many cores there are."""
    import os

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "processor")
    return f"{name}, {os.cpu_count()} cores"


def slower(row: Mapping[str, Any]) -> list[str]:
    """The backends that are faster than the answer beyond the noise."""
    return [backend_of(ratio["a"]) for ratio in row["ratios"] if ratio["verdict"] == "faster"]


def backend_of(name: str) -> str:
    """`openvino` of `bundles-vit/openvino.portolan`."""
    return Path(name).stem


def show(name: str, row: Mapping[str, Any]) -> None:
    """One model, in a few lines."""
    for one in row["arms"]:
        latency = one["metrics"].get("latency_p50")
        print(
            f"{name:12} {backend_of(one['name']):14}", f"{latency['value']:8.3g} ms" if latency else one.get("reason")
        )
    for backend, why in row["out"].items():
        print(f"{name:12} {backend:14} out: {why[:100]}")
    print(f"{name:12} slower than: {', '.join(slower(row)) or 'none'}", flush=True)


def page(rows: Mapping[str, Any]) -> str:
    """The reference page: a table of times, the winner of each model in bold, and why others are not in it."""
    first = next(iter(rows.values()))
    backends = sorted({backend_of(a["name"]) for row in rows.values() for a in row["arms"]})
    lines = [
        "<!-- Written by benchmarks/race_runtimes.py: run it with --write. -->", "", "# Who wins where", "",
        f"For each model, `optimize` searched every backend that was there with exact outputs (`{EXACT}`), and one",
        "interleaved race over fresh processes set each backend, at its best options of that search, beside its",
        "choice; a backend that the search did not come to is at its defaults. Median milliseconds of one inference,",
        "batch 1; bold is the fastest; `=` marks what the race could not tell from the choice. Weights are random but",
        "MiniLM's and the tree's, which is good for speed alone.", "",
        f"Measured on {first['date']}, {first['host']}, on a shared host, by",
        f"`python benchmarks/race_runtimes.py ZOO --budget {first['budget']} --write`; ZOO is made by",
        "`python benchmarks/models.py ZOO`.", "",
        "Versions: " + ", ".join(f"{n} {v}" for n, v in sorted(first["versions"].items())) + ".", "",
        f"| model | {' | '.join(backends)} | chosen | slower than |", f"|---|{'---|' * len(backends)}---|---|",
    ]  # fmt: skip
    lines += [_line(name, rows[name], backends) for name in MODELS if name in rows]
    lines += ["", "## Not in the race", "", "| model | backend | why |", "|---|---|---|"]
    for name in MODELS:
        for backend, why in rows[name]["out"].items() if name in rows else ():
            lines.append(f"| {name} | {backend} | {why.replace('|', '/').splitlines()[0][:200]} |")
    return "\n".join(lines) + "\n"


def _line(name: str, row: Mapping[str, Any], backends: Iterable[str]) -> str:
    times = {backend_of(a["name"]): a["metrics"].get("latency_p50") for a in row["arms"]}
    known = {backend: one["value"] for backend, one in times.items() if one}
    fastest = min(known, key=lambda b: known[b]) if known else None
    same = {backend_of(r["a"]) for r in row["ratios"] if r["verdict"] == "no significant difference"}
    chosen = row["chosen"]["backend"]
    cells = []
    for backend in backends:
        text = f"{known[backend]:.3g}" if backend in known else "-"
        text = f"**{text}**" if backend == fastest else text
        cells.append(f"{text} =" if backend in same else text)
    return f"| {name} | {' | '.join(cells)} | {chosen} | {', '.join(slower(row)) or 'none'} |"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PortolanError as error:
        sys.exit(f"{error.message}\nhint: {error.hint}")
